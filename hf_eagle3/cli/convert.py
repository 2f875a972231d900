"""`hf-eagle3 convert`: a draft of any dialect, or an adapter over one, written in another dialect."""

import argparse

from ..hub import engines
from ..hub.export import UNKNOWN_TARGET, ExportTarget, export
from .loading import load_any_draft, new_folder


HELP = "write a draft of any dialect for other engines; refuse what they would serve wrongly"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="directory or Hub id of a draft of any dialect, or of a LoRA adapter of one")
    parser.add_argument("output", help="directory to write")
    parser.add_argument(
        "--to",
        choices=tuple(engines.READERS),
        default=engines.PLAIN,
        help="plain: SGLang, vLLM, the original code, ModelOpt; speculators: vLLM, speculators (default: plain)",
    )
    parser.add_argument("--target", help="directory or Hub id of the target; its layers and name are written out")
    parser.add_argument("--target-name", help="Hub id of the target, where --target is a directory")
    parser.add_argument("--target-revision", help="branch, tag or commit of the target")
    parser.add_argument(
        "--engine",
        action="append",
        choices=tuple(engines.NAMES),
        help="must be able to serve it; repeatable (default: none of those that read the format may serve it wrongly)",
    )
    parser.add_argument(
        "--allow", action="append", default=[], metavar="RULE", help="export in spite of this rule; repeatable"
    )
    parser.add_argument("--store-head", action="store_true", help="store the target's head rows if the draft has none")
    parser.add_argument("--base", help="of an adapter: the draft it changes (default: the one it names)")
    parser.add_argument("--revision", help="branch, tag or commit of the draft")
    parser.add_argument("--subfolder", help="of the draft's repository")


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
