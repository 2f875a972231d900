"""Options of `hf-eagle3 inspect`."""

import argparse

from .shared import check_sources, refuse


HELP = "show how a target would run, what its draft needs, and whether a draft fits (loads no weights)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", help="directory or Hub id of a target")
    parser.add_argument("--draft", help="directory or Hub id of a draft")
    parser.add_argument("--attention", help="the target's attn_implementation (default: its own)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for invalid combinations and options without effect, before anything is loaded."""
    if not (arguments.target or arguments.draft):
        raise ValueError("Set `--target`, `--draft` or both.")
    check_sources(arguments, "--target", "--draft")
    if arguments.target is None:
        refuse(arguments, ("--attention",), "without `--target`; add it.")
