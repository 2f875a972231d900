"""`hf-eagle3 convert`: convert a draft of any dialect, or a LoRA adapter of one, to another dialect."""

import argparse

from ..errors import explained
from ..hub.export import UNKNOWN_TARGET, ExportTarget, export
from ..model_loading import MODEL_REMEDY, load_any_draft
from .inputs import new_folder


def run(arguments: argparse.Namespace) -> int:
    new_folder(arguments.output, "output")
    draft = load_any_draft(
        arguments.source, arguments.base, revision=arguments.revision, subfolder=arguments.subfolder
    )
    target = UNKNOWN_TARGET
    if arguments.target:
        with explained(f"`--target` {arguments.target} cannot be read", MODEL_REMEDY):
            target = ExportTarget.load(arguments.target, arguments.target_name, arguments.target_revision)
    found = export(
        draft, arguments.output, arguments.to, target, arguments.engine, arguments.allow, arguments.store_head
    )
    for finding in found:
        print(f"Note: {finding}")
    print(f"{arguments.to} draft written to {arguments.output}")
    return 0
