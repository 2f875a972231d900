"""Options of every command, a file each: `HELP` and `add_arguments`. Imports neither torch nor transformers, so that
`--help`, `--version` and mistyped options answer at once."""

from types import ModuleType

from . import benchmark, convert, demo, generate, inspect, prepare, push, space, train


COMMANDS: dict[str, ModuleType] = {
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
