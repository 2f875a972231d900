"""Options of `hf-eagle3 convert`."""

import argparse
from pathlib import Path

from ...hub import formats
from .shared import check_sources, refuse


HELP = "write a draft of any dialect for other engines; refuse what they would serve wrongly"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="directory or Hub id of a draft of any dialect, or of a LoRA adapter of one")
    parser.add_argument("output", help="directory to write")
    parser.add_argument(
        "--to",
        choices=tuple(formats.READERS),
        default=formats.PLAIN,
        help="plain: SGLang, vLLM, the original code, ModelOpt; speculators: vLLM, speculators (default: plain)",
    )
    parser.add_argument("--target", help="directory or Hub id of the target; its layers and name are written out")
    parser.add_argument("--target-name", help="Hub id of the target, where --target is a directory")
    parser.add_argument("--target-revision", help="branch, tag or commit of the target")
    parser.add_argument(
        "--engine",
        action="append",
        choices=tuple(formats.NAMES),
        help="must be able to serve it; repeatable (default: none of those that read the format may serve it wrongly)",
    )
    parser.add_argument(
        "--allow", action="append", default=[], metavar="RULE", help="export in spite of this rule; repeatable"
    )
    parser.add_argument("--store-head", action="store_true", help="store the target's head rows if the draft has none")
    parser.add_argument("--base", help="of an adapter: the draft it changes (default: the one it names)")
    parser.add_argument("--revision", help="branch, tag or commit of the draft")
    parser.add_argument("--subfolder", help="of the draft's repository")


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for what cannot be or would have no effect, before anything is loaded."""
    check_sources(arguments, "source", "--base", "--target")
    if arguments.target is None:
        refuse(arguments, ("--target-name", "--target-revision", "--store-head"), "without `--target`; add it.")
    if Path(arguments.source).is_dir():
        refuse(arguments, ("--revision",), f"on the directory {arguments.source}; leave it out.")
