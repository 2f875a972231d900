"""Options of `hf-eagle3 space`."""

import argparse

from .shared import AUTO_DTYPE, DTYPES, add_template_argument, check_sources, positive


HELP = "a page in the browser: race plain generate, see accepted tokens, plots and draft trees (extra: space)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", default="", help="directory or Hub id (default: the embedded pair)")
    parser.add_argument("--draft", default="", help="directory or Hub id of its EAGLE-3 draft model")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help=f"of both models ({AUTO_DTYPE})")
    parser.add_argument("--device", default="", help="cpu, cuda, mps, ... (default: the accelerator, else cpu)")
    add_template_argument(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 shows the page to others (default: 127.0.0.1)",
    )
    parser.add_argument("--port", type=port, help="(default: the first free one from 7860)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def port(text: str) -> int:
    """An argument type."""
    number = positive(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port; give 1 to 65535")
    return number


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for what cannot be or would have no effect, before anything is loaded."""
    check_sources(arguments, "--target", "--draft")
