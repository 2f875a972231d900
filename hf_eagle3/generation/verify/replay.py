"""States of a chain's accepted tokens, from what the layers that hold them read in the verification pass.

    verification   root a b c      a was accepted, b was not
    states         put back to before the root, then these layers alone run over their own inputs at root and a

A pass over the accepted tokens would run attention, MLPs, experts and the head again. (Transformers can crop layers
with convolution states only, not recurrent ones: `LinearAttentionCacheLayerMixin.is_croppable`, 5.24.)

Shape letters: B sequences, L tokens of the pass, H hidden.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache

from ...compat.caches import DynamicLayer, EmptyLayer, IndexedLayer, SlidingLayer, StateLayer
from ...target.target import Target


class StateReplay:
    """
    Args:
        target: The target.
        cache: Its cache, which its layers with states are given in every pass.
    """

    def __init__(self, target: Target, cache: Cache):
        self.target, self.cache = target, cache
        self.calls: list[tuple[nn.Module, tuple, dict]] = []
        layers = cache.layers if type(cache) is DynamicCache else []
        self.num_states = sum(isinstance(layer, StateLayer) for layer in layers)
        # Keys in a window are overwritten, an indexer's are beside them: neither can be cut at the accepted tokens.
        kept = (DynamicLayer, EmptyLayer, StateLayer)
        if any(isinstance(x, (SlidingLayer, IndexedLayer)) or not isinstance(x, kept) for x in layers):
            self.num_states = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep what a pass inside the block hands to layers with states."""
        self.calls = []
        modules = self.target.state_modules if self.num_states else []
        handles = [module.register_forward_pre_hook(self._record, with_kwargs=True) for module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _record(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if any(value is self.cache for value in (*args, *kwargs.values())):  # other threads' passes have another
            self.calls.append((module, args, kwargs))

    def covers(self, length: int) -> bool:
        """Whether all layers with states were seen in the last pass, of `length` tokens; compiled ones are not."""
        inputs = [_tensor(args, kwargs) for _, args, kwargs in self.calls]
        return 0 < self.num_states == len(inputs) and all(x is not None and x.shape[1] == length for x in inputs)

    def run(self, length: int, count: int) -> None:
        """Advance the states by the first `count` of the last pass's `length` tokens."""

        def first(value: Any) -> Any:
            if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[1] == length:
                return value[:, :count]
            return value

        calls, self.calls = self.calls, []
        with self.target.stepping():
            for module, args, kwargs in calls:
                module(*map(first, args), **{name: first(value) for name, value in kwargs.items()})


def _tensor(args: tuple, kwargs: dict) -> torch.Tensor | None:
    """The first three-dimensional argument, (B, L, H)."""
    values = (*args, *kwargs.values())
    return next((value for value in values if isinstance(value, torch.Tensor) and value.dim() == 3), None)
