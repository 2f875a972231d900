"""Entry point of the `hf-eagle3` command, outside the package so that `hf-eagle3 --help` does not import torch.

Importing any submodule of `hf_eagle3` first executes `hf_eagle3/__init__.py`, which imports torch and transformers to
install the `generate` hook. Here the package is added to `sys.modules` without executing it, which suffices to import
the argument parsers; `__init__.py` is executed after a command has been parsed, just before it runs.
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
