"""`hf-eagle3 convert`: a draft of any dialect, or an adapter over one, written in another dialect."""

import argparse

from ..hub.export import UNKNOWN_TARGET, ExportTarget, export
from .loading import load_any_draft, new_folder


def run(arguments: argparse.Namespace) -> int:
    new_folder(arguments.output, "output")
    draft = load_any_draft(
        arguments.source, arguments.base, revision=arguments.revision, subfolder=arguments.subfolder
    )
    target = UNKNOWN_TARGET
    if arguments.target:
        target = ExportTarget.load(arguments.target, arguments.target_name, arguments.target_revision)
    found = export(
        draft, arguments.output, arguments.to, target, arguments.engine, arguments.allow, arguments.store_head
    )
    for finding in found:
        print(f"Note: {finding}")
    print(f"{arguments.to} draft written to {arguments.output}")
    return 0
