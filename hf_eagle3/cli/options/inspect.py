"""Options of `hf-eagle3 inspect`."""

import argparse

from .shared import check_sources, refuse


HELP = "how a target would be sped up and what a draft for it needs; how a draft fits (no weights are loaded)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", help="directory or Hub id of a target")
    parser.add_argument("--draft", help="directory or Hub id of a draft")
    parser.add_argument("--attention", help="the target's attn_implementation (default: its own)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for what cannot be or would have no effect, before anything is loaded."""
    if not (arguments.target or arguments.draft):
        raise ValueError("Name a `--target`, a `--draft` or both.")
    check_sources(arguments, "--target", "--draft")
    if arguments.target is None:
        refuse(arguments, ("--attention",), "without `--target`; add it.")
