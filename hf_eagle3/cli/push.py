"""`hf-eagle3 push`: upload a draft with its model card to the Hub, or write the repository to a folder."""

import argparse
from pathlib import Path

from ..hub.publish import Publication, push_to_hub, write_repository
from ..model_loading import load_shareable_draft
from .inputs import new_folder


def is_hub_id(source: str | None) -> bool:
    return source is not None and not Path(source).is_dir()


def run(arguments: argparse.Namespace) -> int:
    draft = load_shareable_draft(arguments.draft, arguments.base)
    if not (arguments.target_name or draft.config.target_name_or_path or is_hub_id(arguments.target)):
        print("Note: the card will not name a target; set --target or --target-name to its Hub id.")
    settings = {
        "target": arguments.target,
        "target_name": arguments.target_name,
        "target_revision": arguments.target_revision,
        "benchmark": arguments.benchmark,
        "datasets": tuple(arguments.dataset),
        "license": arguments.license,
        "tags": tuple(arguments.tag),
        "dialect": arguments.to,
    }
    if arguments.dry_run:
        folder = new_folder(arguments.dry_run, "--dry-run")
        for finding in write_repository(draft, folder, arguments.repo_id, Publication(**settings)):
            print(f"Note: {finding}")
        kind = {None: "", True: "private ", False: "public "}[arguments.private]
        where = f"the {kind}repository {arguments.repo_id}"
        where = f"branch {arguments.revision} of {where}" if arguments.revision else where
        where = f"a pull request to {where}" if arguments.create_pr else where
        print(f"Nothing uploaded; {where} would contain the files of {folder}")
        return 0
    commit = push_to_hub(
        draft,
        arguments.repo_id,
        private=arguments.private,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        commit_message=arguments.commit_message,
        **settings,
    )
    print(f"Uploaded: {commit.pr_url or commit.commit_url}")
    return 0
