"""Options of `hf-eagle3 convert`."""

import argparse
from pathlib import Path

from ...hub import formats
from .shared import check_sources, refuse


HELP = "convert a draft of any dialect for other engines; refuse drafts that they would serve incorrectly"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="directory or Hub id of a draft of any dialect, or of a LoRA adapter of one")
    parser.add_argument("output", help="output directory")
    parser.add_argument(
        "--to",
        choices=tuple(formats.READERS),
        default=formats.PLAIN,
        help="plain: SGLang, vLLM, the original code, ModelOpt, and of block drafters the projects that train them; "
        "speculators: vLLM, speculators (default: plain)",
    )
    parser.add_argument("--target", help="directory or Hub id of the target, to write its layers and name")
    parser.add_argument("--target-name", help="Hub id of the target if --target is a directory")
    parser.add_argument("--target-revision", help="branch, tag or commit of the target")
    parser.add_argument(
        "--engine",
        action="append",
        choices=tuple(formats.NAMES),
        help="an engine that must serve it correctly; repeatable (default: all that read the format)",
    )
    parser.add_argument(
        "--allow", action="append", default=[], metavar="RULE", help="export despite this rule; repeatable"
    )
    parser.add_argument("--store-head", action="store_true", help="store the target's head rows if the draft has none")
    parser.add_argument(
        "--verify",
        choices=("vllm",),
        help="serve the result with vLLM and compare greedy text and accepted drafts with ours, in float32",
    )
    parser.add_argument(
        "--vllm-python", help="interpreter of the environment that has vLLM, for --verify (default: this one)"
    )
    parser.add_argument("--base", help="base draft of an adapter (default: the one named in the adapter)")
    parser.add_argument("--revision", help="branch, tag or commit of the draft")
    parser.add_argument("--subfolder", help="subfolder in the draft's repository")


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for invalid combinations and options without effect, before anything is loaded."""
    check_sources(arguments, "source", "--base", "--target")
    if arguments.target is None:
        flags = ("--target-name", "--target-revision", "--store-head", "--verify")
        refuse(arguments, flags, "without `--target`; add it.")
    if arguments.verify is None:
        refuse(arguments, ("--vllm-python",), "without `--verify`; add it.")
    if Path(arguments.source).is_dir():
        refuse(arguments, ("--revision",), f"on the directory {arguments.source}; omit it.")
