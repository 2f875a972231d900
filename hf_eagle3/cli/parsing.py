"""The argument parser, with suggestions for mistyped names. Does not import torch or transformers."""

import argparse
import difflib
import platform
from collections.abc import Iterable
from importlib import metadata
from itertools import takewhile

from .._version import __version__
from .options import COMMANDS


HELP_FLAGS = ("-h", "--help")


class ShowVersions(argparse.Action):
    """`--version`: versions of this package, transformers, torch and Python."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Print the versions and exit."""
        others = ", ".join(f"{name} {installed(name)}" for name in ("transformers", "torch"))
        print(f"hf-eagle3 {__version__} ({others}, Python {platform.python_version()})")
        parser.exit()


def installed(name: str) -> str:
    """Version of an installed distribution, from its metadata."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def parser(
    command: str | None = None, parents: list[argparse.ArgumentParser] | None = None
) -> argparse.ArgumentParser:
    """
    The parser of all commands.

    Args:
        command: The command that is going to run. Others do not need the hundred options of `train`, which are slow.
        parents: For `train`: parsers of all training arguments (`cli/train.py`). Default: only the options of this
            package, for `--help`.
    """
    top = argparse.ArgumentParser(
        prog="hf-eagle3",
        description="EAGLE-3 tree speculation for Hugging Face Transformers.",
        allow_abbrev=False,
    )
    top.add_argument(
        "--version", action=ShowVersions, nargs=0, default=argparse.SUPPRESS, help="show versions and exit"
    )
    top.add_argument(
        "--debug",
        action="store_true",
        dest="show_traceback",
        help="show the traceback behind an error (also: HF_EAGLE3_DEBUG=1)",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for name, options in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=options.HELP,
            description=options.HELP,
            allow_abbrev=False,
            parents=parents or [] if name == command == "train" else [],
        )
        options.add_arguments(sub)
        if name == command == "train" and parents is None:
            options.show_fields(sub)
    return top


def parse(top: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """
    Parse `argv`. An invalid command line exits with code 2 after the usage of the command and one line of error.
    """
    current, words = top, argv[len(leading_flags(argv)) :]
    while (choices := subcommands(current)) and words and not words[0].startswith("-"):
        name, words = words[0], words[1:]
        if name not in choices:
            current.error(f"unknown command {name!r}{suggestion(name, choices)} (choose from {', '.join(choices)})")
        current = choices[name]
    arguments, unknown = top.parse_known_args(argv)
    if unknown:
        flags = [flag for action in current._actions for flag in action.option_strings]
        hint = suggestion(unknown[0].partition("=")[0], flags)
        current.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return arguments


def leading_flags(argv: list[str]) -> list[str]:
    """Options in front of the command."""
    return list(takewhile(lambda word: word.startswith("-"), argv))


def command_of(argv: list[str]) -> str | None:
    """The command in `argv`, or `None`."""
    words = argv[len(leading_flags(argv)) :]
    return words[0] if words else None


def subcommands(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Parsers of the subcommands by name; empty if there are none."""
    return next((a.choices for a in of._actions if isinstance(a, argparse._SubParsersAction)), {})


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the closest match in `known`, if any."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
