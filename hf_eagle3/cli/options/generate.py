"""Options of `hf-eagle3 generate`."""

import argparse

from .shared import (
    add_pair_arguments,
    add_template_argument,
    add_tree_arguments,
    check_sources,
    find_draft,
    natural,
    positive,
    probability,
    refuse,
    refuse_unused_sampling,
    refuse_unused_sizes,
    refuse_unused_template,
    seed,
    temperature,
)


HELP = "generate text with a draft; show tokens/s, acceptance and time per phase"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pair_arguments(parser)
    parser.add_argument("--prompt", required=True, help="the prompt, or - to read standard input")
    parser.add_argument("--raw", action="store_true", help="do not apply the tokenizer's chat template")
    add_template_argument(parser)
    parser.add_argument("--max-new-tokens", type=positive, default=128, help="(default: 128)")
    parser.add_argument("--temperature", type=temperature, default=0.0, help="0: greedy (default: 0)")
    parser.add_argument("--top-k", type=natural, default=0, help="0: off (default: 0)")
    parser.add_argument("--top-p", type=probability, default=1.0, help="1: off (default: 1)")
    parser.add_argument("--seed", type=seed, default=0, help="(default: 0)")
    add_tree_arguments(parser)
    parser.add_argument(
        "--compare",
        action="store_true",
        help="also run plain generate; show the speedup and whether the tokens are identical",
    )
    parser.add_argument(
        "--explain", action="store_true", help="also show the choices of the tree mode auto and the costs behind them"
    )
    parser.add_argument(
        "--show", action="store_true", help="colour the text by origin: accepted draft tokens, the target's own tokens"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of text and table")


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for invalid combinations and options without effect, before anything is loaded."""
    check_sources(arguments, "--target", "--draft")
    refuse_unused_template(arguments)
    refuse_unused_sampling(arguments)
    refuse_unused_sizes(arguments, arguments.tree)
    if arguments.json:
        refuse(arguments, ("--show",), "with `--json`, which prints no text; omit one.")
    if arguments.tree not in (None, "auto"):
        refuse(arguments, ("--explain",), f"with `--tree {arguments.tree}`; it applies to the tree mode auto.")
    find_draft(arguments)
