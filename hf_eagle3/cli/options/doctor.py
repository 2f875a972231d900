"""Options of `hf-eagle3 doctor`."""

import argparse

from .shared import add_pair_arguments, add_template_argument, check_sources, positive, refuse_unused_template


HELP = "find out why a draft accepts few tokens: measure, try the usual repairs, name the one that helps"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pair_arguments(parser)
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="a prompt, repeatable (default: four general ones)"
    )
    parser.add_argument("--raw", action="store_true", help="do not apply the tokenizer's chat template")
    add_template_argument(parser)
    parser.add_argument(
        "--max-new-tokens", type=positive, default=128, help="length of the answers measured on (default: 128)"
    )
    parser.add_argument("--depth", type=positive, default=5, help="draft tokens per chain (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of text")


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for invalid combinations and options without effect, before anything is loaded."""
    check_sources(arguments, "--target", "--draft")
    refuse_unused_template(arguments)
    if arguments.max_new_tokens < arguments.depth + 2:
        raise ValueError(
            f"`--max-new-tokens` is {arguments.max_new_tokens}; chains of `--depth` {arguments.depth} need at least "
            f"{arguments.depth + 2}."
        )
