"""`hf-eagle3 push`: a draft's repository, with its card, to the Hub or to a folder."""

import argparse
from pathlib import Path

from ..hub import engines
from ..hub.publish import Publication, push_to_hub, write_repository
from .loading import load_any_draft, new_folder


HELP = "upload a draft with a model card, for Transformers, vLLM and SGLang"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("draft", help="directory or Hub id of the draft, or of a LoRA adapter of one")
    parser.add_argument("repo_id", help="where to: user/name")
    parser.add_argument("--dry-run", metavar="FOLDER", help="write everything here and upload nothing")
    parser.add_argument("--target", help="directory or Hub id of the target (default: the one that the draft names)")
    parser.add_argument("--target-name", help="Hub id of the target for the card, where --target is a directory")
    parser.add_argument("--target-revision", help="branch, tag or commit of the target")
    parser.add_argument("--benchmark", help="JSON file of `hf-eagle3 benchmark`: where the card's figures come from")
    parser.add_argument("--dataset", action="append", default=[], help="Hub id of training data; repeatable")
    parser.add_argument("--license", help="of the draft, as the Hub writes it, e.g. apache-2.0")
    parser.add_argument("--tag", action="append", default=[], help="besides the usual ones; repeatable")
    parser.add_argument(
        "--to", choices=tuple(engines.READERS), default=engines.PLAIN, help="file format (default: plain)"
    )
    parser.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="of a new repository (default: as your account has it)",
    )
    parser.add_argument("--revision", help="branch to push to (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--commit-message", help="default: Upload EAGLE-3 draft")
    parser.add_argument("--base", help="of an adapter: the draft it changes (default: the one it names)")


def is_hub_id(source: str | None) -> bool:
    return source is not None and not Path(source).is_dir()


def run(arguments: argparse.Namespace) -> int:
    draft = load_any_draft(arguments.draft, arguments.base)
    if not (arguments.target_name or draft.config.target_name_or_path or is_hub_id(arguments.target)):
        print("Note: the card will name no target; --target ID or --target-name ID tells it.")
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
        print(f"Nothing uploaded; {arguments.repo_id} would hold what is in {folder}")
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
