"""`hf-eagle3 <command>`: one small file per command, each with `add_arguments` and `run`."""

import argparse
import sys

from transformers.utils import logging

from . import benchmark, convert, demo, generate, inspect, prepare, push, space, train


COMMANDS = {
    "benchmark": benchmark,
    "convert": convert,
    "demo": demo,
    "generate": generate,
    "inspect": inspect,
    "prepare": prepare,
    "push": push,
    "space": space,
    "train": train,
}


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """
    The whole command line; the hundred options of `train` only where that is the `command`, as they take a while.
    """
    top = argparse.ArgumentParser(
        prog="hf-eagle3", description="EAGLE-3 tree speculation for Hugging Face Transformers."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for name, module in COMMANDS.items():
        parents = module.parents() if name == command == "train" else []
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False, parents=parents)
        module.add_arguments(sub)
    return top


def main(argv: list[str] | None = None) -> int:
    """Entry point; mistakes of the caller end in one line and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    command = argv[0] if argv else None
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        arguments = parser(command).parse_args(train.expand_config(argv) if command == "train" else argv)
        return COMMANDS[arguments.command].run(arguments)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"hf-eagle3 {command}: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if not from_http(error):
            raise
        print(f"hf-eagle3 {command}: the Hub cannot be reached ({error}).", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def from_http(error: Exception) -> bool:
    """Whether the library under huggingface_hub raised it; which one that is depends on the version."""
    return any(kind.__module__.partition(".")[0] in ("httpx", "httpx2", "requests") for kind in type(error).__mro__)
