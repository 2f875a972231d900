"""`hf-eagle3 <command>`: options are defined in `options/`, and each command has a module with its `run` here.

Importing this module does not import torch or transformers: a command's module is imported after parsing.
"""

import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module

from ..errors import in_one_line
from .options import COMMANDS
from .parsing import HELP_FLAGS, command_of, leading_flags, parse, parser


__all__ = ["COMMANDS", "main", "parser"]
BUG = (
    "hf-eagle3: this is a bug in hf_eagle3. Please report the traceback, the command and the output of "
    "`hf-eagle3 --version` at https://github.com/hf-eagle3/hf_eagle3/issues"
)


def main(argv: list[str] | None = None, import_package: Callable[[], None] = lambda: None) -> int:
    """
    Entry point. User errors are reported in one line with exit code 2, bugs with a traceback.

    Args:
        argv: Arguments after `hf-eagle3`; `None` for `sys.argv`.
        import_package: Completes a deferred `import hf_eagle3`; see `hf_eagle3_cli.py`. May be called twice.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        return run(argv, import_package)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        line = in_one_line(error)
        if line is None:
            print(BUG, file=sys.stderr)
            raise
        if is_debugging(argv):
            traceback.print_exc()
        print(f"hf-eagle3 {command_of(argv)}: {line}", file=sys.stderr)
        return 2


def run(argv: list[str], import_package: Callable[[], None]) -> int:
    """Parse `argv` and run its command."""
    command, parents = command_of(argv), None
    if command == "train" and not set(argv) & set(HELP_FLAGS):  # most of its options come from transformers
        import_package()
        from . import train

        argv, parents = train.expand_config(argv), train.parents()
    arguments = parse(parser(command, parents), argv)
    COMMANDS[arguments.command].check(arguments)
    import_package()
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()
    return import_module(f".{arguments.command.replace('-', '_')}", __name__).run(arguments)


def is_debugging(argv: list[str]) -> bool:
    """Whether `--debug` (before the command) or `HF_EAGLE3_DEBUG` requests tracebacks."""
    return "--debug" in leading_flags(argv) or os.environ.get("HF_EAGLE3_DEBUG", "0") not in ("", "0")
