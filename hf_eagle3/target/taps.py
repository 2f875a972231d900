"""Outputs of the tapped layers, kept by forward hooks while passes run.

Shape letters: B batch, L sequence, H hidden.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .parts import one_stream


class Taps:
    """
    Args:
        decoder: The module that runs once in every pass, and the layers with it.
        layers: The tapped layers, by number.
        config: The target's text configuration.
    """

    def __init__(self, decoder: nn.Module, layers: dict[int, nn.Module], config):
        self.decoder, self.layers, self.config = decoder, layers, config
        self._passes: list[dict[int, torch.Tensor]] = []
        self._thread: int | None = None  # the thread whose passes are kept, None: none

    def register(self) -> list[RemovableHandle]:
        """Handles of the hooks."""
        handles = [layer.register_forward_hook(self._keeps(number)) for number, layer in self.layers.items()]
        return [*handles, self.decoder.register_forward_pre_hook(self._begins)]

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Passes inside are kept; everything else that runs the target is not."""
        self._passes.clear()
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._thread = None

    def take(self) -> list[torch.Tensor]:
        """
        The layers' outputs of the passes kept, one behind the other, each (B, L, H).

        Raises:
            RuntimeError: not every layer was seen to run.
        """
        passes, self._passes = self._passes, []
        seen = [number for number in self.layers if passes and all(number in found for found in passes)]
        if len(seen) < len(self.layers):
            raise RuntimeError(
                f"Of the tapped layers {list(self.layers)} only {seen} were seen to run; a compiled model "
                "ignores hooks added later. Pass the uncompiled model."
            )
        return [
            torch.cat([found[number] for found in passes], dim=1) if len(passes) > 1 else passes[0][number]
            for number in self.layers
        ]

    def _begins(self, module, args) -> None:
        # Another thread may run the same target; a logits processor may too, outside `capturing`.
        if self._thread == threading.get_ident():
            self._passes.append({})

    def _keeps(self, number: int):
        def keep(module, args, output):
            if self._thread == threading.get_ident():
                hidden = output if isinstance(output, torch.Tensor) else output[0]
                # A layer of a looped model runs several times in a pass: its last output counts.
                self._passes[-1][number] = one_stream(hidden, self.config)

        return keep
