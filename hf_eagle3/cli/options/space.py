"""Options of `hf-eagle3 space`."""

import argparse

from .shared import (
    AUTO_DTYPE,
    DTYPES,
    KNOWN_DRAFT,
    PAIRS,
    add_pair_argument,
    add_template_argument,
    check_sources,
    find_draft,
    port,
    refuse,
)


HELP = "serve the demo page: race plain generate, see accepted tokens, plots and draft trees (extra: space)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pair_argument(parser)
    parser.add_argument("--target", default="", help="directory or Hub id of another target")
    parser.add_argument("--draft", default="", help=f"directory or Hub id of its EAGLE-3 draft model ({KNOWN_DRAFT})")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help=f"dtype of both models ({AUTO_DTYPE})")
    parser.add_argument("--device", default="", help="cpu, cuda, mps, ... (default: the accelerator if there is one)")
    add_template_argument(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 makes the page public (default: 127.0.0.1)",
    )
    parser.add_argument("--port", type=port, help="port (default: the first free one from 7860)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for invalid combinations and options without effect, before anything is loaded."""
    if arguments.target:
        refuse(arguments, ("--pair",), "together with `--target`; omit one.", {"--pair": PAIRS[0]})
    check_sources(arguments, "--target", "--draft")
    if arguments.target:
        find_draft(arguments)
