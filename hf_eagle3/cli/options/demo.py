"""Options of `hf-eagle3 demo`."""

import argparse

from .shared import (
    add_tree_arguments,
    positive,
    refuse,
    refuse_unused_sampling,
    refuse_unused_sizes,
    seed,
    temperature,
)


HELP = "see it work: the pair that ships with the package, plain and with its draft, offline on the CPU"
NUM_PROMPTS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", action="append", help="instead of the held-out prompts; repeatable")
    parser.add_argument("--num-prompts", type=positive, default=NUM_PROMPTS, help="of the held-out ones (default: 3)")
    parser.add_argument("--max-new-tokens", type=positive, default=128, help="(default: 128)")
    parser.add_argument("--temperature", type=temperature, default=0.0, help="0 is greedy (default: 0)")
    parser.add_argument("--seed", type=seed, default=0, help="(default: 0)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="(default: auto)")
    add_tree_arguments(parser)


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for what cannot be or would have no effect, before anything is loaded."""
    if arguments.prompt:
        refuse(arguments, ("--num-prompts",), "beside `--prompt`; leave one out.", {"--num-prompts": NUM_PROMPTS})
    refuse_unused_sampling(arguments)
    refuse_unused_sizes(arguments, arguments.tree)
