"""`hf-eagle3 <command>`: options in `options/`, one small file per command with its `run` beside this one.

Importing this module needs neither torch nor transformers: a command's own module is imported once it was parsed.
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
    "hf-eagle3: this is a bug in hf_eagle3, not a mistake of yours. Please report the traceback, the command and what "
    "`hf-eagle3 --version` prints at https://github.com/hf-eagle3/hf_eagle3/issues"
)


def main(argv: list[str] | None = None, import_package: Callable[[], None] = lambda: None) -> int:
    """
    Entry point; mistakes of the caller end in one line and exit code 2, others in a traceback.

    Args:
        argv: The words after `hf-eagle3`; `None` for those of the process.
        import_package: Does what `import hf_eagle3` has not done yet; see `hf_eagle3_cli.py`. May be called twice.
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
    if command == "train" and not set(argv) & set(HELP_FLAGS):  # most of its options are transformers'
        import_package()
        from . import train

        argv, parents = train.expand_config(argv), train.parents()
    arguments = parse(parser(command, parents), argv)
    COMMANDS[arguments.command].check(arguments)
    import_package()
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()
    return import_module(f".{arguments.command}", __name__).run(arguments)


def is_debugging(argv: list[str]) -> bool:
    """Whether tracebacks were asked for, by `--debug` before the command or in the environment."""
    return "--debug" in leading_flags(argv) or os.environ.get("HF_EAGLE3_DEBUG", "0") not in ("", "0")
