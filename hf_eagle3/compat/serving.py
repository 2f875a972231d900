"""Transformers' own server, `transformers serve`: its command, and how it loads models.

Imported by `hf-eagle3 serve` alone: in 5.8 its modules cannot be imported without the packages of a server. For that
reason these points are not in the contract's table; a missing one is reported by the command.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from .points import COMMANDS, POINTS, uses


_USE = "`hf-eagle3 serve`"
_MANAGERS = "transformers.cli.serving.model_manager"
# Takes the arguments of `transformers serve` and runs until it is stopped.
Serve = uses(
    "transformers.cli.serve", "Serve", _USE, scope=COMMANDS, parameters=("force_model", "continuous_batching")
)
_ModelManager = uses(_MANAGERS, "ModelManager", _USE, scope=COMMANDS)
_load = uses(f"{_MANAGERS}.ModelManager", "load_model_and_processor", _USE, scope=COMMANDS)


def server_fault() -> str | None:
    """What `hf-eagle3 serve` needs and this transformers lacks, or `None`."""
    faults = ((point, point.fault()) for point in POINTS if point.used_for == _USE)
    return next((f"{point.path} is {fault}" for point, fault in faults if fault is not None), None)


@contextmanager
def server_models(seen: Callable[[PreTrainedModel], None]) -> Iterator[None]:
    """Inside the block, `seen` is called with each model that a server loads, before any request reaches it."""

    @functools.wraps(_load)
    def load(self, *args, **kwargs):
        model, processor = _load(self, *args, **kwargs)
        seen(model)
        return model, processor

    _ModelManager.load_model_and_processor = load
    try:
        yield
    finally:
        _ModelManager.load_model_and_processor = _load
