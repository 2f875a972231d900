"""Options of `hf-eagle3 demo`."""

import argparse

from .shared import (
    add_pair_argument,
    add_tree_arguments,
    positive,
    refuse,
    refuse_unused_sampling,
    refuse_unused_sizes,
    seed,
    temperature,
)


HELP = "run a pair shipped with the package with and without its draft, on the CPU; the embedded one offline"
NUM_PROMPTS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pair_argument(parser)
    parser.add_argument("--prompt", action="append", help="use this prompt instead of the held-out ones; repeatable")
    parser.add_argument(
        "--num-prompts", type=positive, default=NUM_PROMPTS, help="number of held-out prompts (default: 3)"
    )
    parser.add_argument("--max-new-tokens", type=positive, default=128, help="(default: 128)")
    parser.add_argument("--temperature", type=temperature, default=0.0, help="0: greedy (default: 0)")
    parser.add_argument("--seed", type=seed, default=0, help="(default: 0)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="(default: auto)")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of texts and figures")
    add_tree_arguments(parser)


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for invalid combinations and options without effect, before anything is loaded."""
    if arguments.prompt:
        refuse(arguments, ("--num-prompts",), "together with `--prompt`; omit one.", {"--num-prompts": NUM_PROMPTS})
    refuse_unused_sampling(arguments)
    refuse_unused_sizes(arguments, arguments.tree)
