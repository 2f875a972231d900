"""Options of the commands, a module each: `HELP`, `add_arguments` and `check`.

Does not import torch or transformers, so that `--help`, `--version` and mistyped options respond immediately.
"""

from types import ModuleType

from . import (
    benchmark,
    convert,
    demo,
    doctor,
    generate,
    inspect,
    make_draft,
    paper,
    prepare,
    push,
    serve,
    space,
    train,
)


COMMANDS: dict[str, ModuleType] = {
    "benchmark": benchmark,
    "convert": convert,
    "demo": demo,
    "doctor": doctor,
    "generate": generate,
    "inspect": inspect,
    "make-draft": make_draft,
    "paper": paper,
    "prepare": prepare,
    "push": push,
    "serve": serve,
    "space": space,
    "train": train,
}
