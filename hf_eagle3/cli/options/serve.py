"""Options of `hf-eagle3 serve`."""

import argparse

from .shared import (
    add_pair_arguments,
    add_tree_arguments,
    check_sources,
    find_draft,
    port,
    refuse_unused_sizes,
)


HELP = "serve a target with its draft by transformers' own server, for OpenAI clients (extra: serve)"
CONTINUOUS = ("--continuous-batching", "--cb-")  # beginnings of options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pair_arguments(parser)
    parser.add_argument("--host", default="localhost", help="address to listen on (default: localhost)")
    parser.add_argument("--port", type=port, default=8000, help="(default: 8000)")
    add_tree_arguments(parser)
    parser.add_argument(
        "server_options", nargs="*", metavar="-- ...", help="further options, passed to `transformers serve`"
    )


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for invalid combinations and options without effect, before anything is loaded."""
    check_sources(arguments, "--target", "--draft")
    refuse_unused_sizes(arguments, arguments.tree)
    for option in arguments.server_options:
        if option.startswith(CONTINUOUS):
            raise ValueError(
                f"`{option}` does not go with a draft: continuous batching runs the target without `generate`. Omit "
                "it, or serve the draft with vLLM (`hf-eagle3 convert`)."
            )
    find_draft(arguments)
