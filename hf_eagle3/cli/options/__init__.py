"""Options of the commands, a module each: `HELP`, `add_arguments` and `check`.

Does not import torch or transformers, so that `--help`, `--version` and mistyped options respond immediately.
"""

from types import ModuleType

from . import benchmark, convert, demo, doctor, generate, inspect, prepare, push, space, train


COMMANDS: dict[str, ModuleType] = {
    "benchmark": benchmark,
    "convert": convert,
    "demo": demo,
    "doctor": doctor,
    "generate": generate,
    "inspect": inspect,
    "prepare": prepare,
    "push": push,
    "space": space,
    "train": train,
}
