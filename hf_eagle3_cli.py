"""The `hf-eagle3` command, in a module of its own so that `hf-eagle3 --help` does not import torch.

Importing anything of `hf_eagle3` first runs `hf_eagle3/__init__.py`, which imports torch and transformers to install
the `generate` hook. Here the package enters `sys.modules` with its body still to be run, which is enough to import the
parsers below it; the body runs once a command has been parsed and is about to start.
"""

import functools
import importlib.util
import sys


def main() -> int:
    """Entry point of the console script."""
    spec = importlib.util.find_spec("hf_eagle3")
    package = importlib.util.module_from_spec(spec)
    sys.modules["hf_eagle3"] = package
    from hf_eagle3.cli import main as run_command

    return run_command(import_package=functools.cache(lambda: spec.loader.exec_module(package)))
