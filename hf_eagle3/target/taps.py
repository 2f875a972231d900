"""Outputs of the tapped layers, captured by forward hooks. Does not know drafts or which layers to tap.

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
        decoder: The module that runs once per forward pass and contains the layers.
        layers: The tapped layers, by index.
        config: The target's text configuration.
    """

    def __init__(self, decoder: nn.Module, layers: dict[int, nn.Module], config):
        self.decoder, self.layers, self.config = decoder, layers, config
        self._passes: list[dict[int, torch.Tensor]] = []
        self._thread: int | None = None  # id of the capturing thread; None outside `capturing`

    def register(self) -> list[RemovableHandle]:
        """Register the hooks and return their handles."""
        handles = [layer.register_forward_hook(self._capture_hook(number)) for number, layer in self.layers.items()]
        return [*handles, self.decoder.register_forward_pre_hook(self._start_pass)]

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Capture forward passes inside the block, and no others."""
        self._passes.clear()
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._thread = None

    def take(self) -> list[torch.Tensor]:
        """
        Outputs of each tapped layer, (B, L, H), with L over all captured passes; clears the capture.

        Raises:
            RuntimeError: a layer's hook did not run.
        """
        passes, self._passes = self._passes, []
        seen = [number for number in self.layers if passes and all(number in found for found in passes)]
        if len(seen) < len(self.layers):
            raise RuntimeError(
                f"Hooks ran only on layers {seen} of the tapped {list(self.layers)}; a compiled model ignores hooks "
                "added later. Pass the uncompiled model."
            )
        return [
            torch.cat([found[number] for found in passes], dim=1) if len(passes) > 1 else passes[0][number]
            for number in self.layers
        ]

    def _start_pass(self, module, args) -> None:
        # The target may also run in another thread, or in a logits processor outside `capturing`.
        if self._thread == threading.get_ident():
            self._passes.append({})

    def _capture_hook(self, number: int):
        def capture(module, args, output):
            if self._thread == threading.get_ident():
                hidden = output if isinstance(output, torch.Tensor) else output[0]
                # Layers of a looped model run several times per pass; the last output overwrites the earlier ones.
                self._passes[-1][number] = one_stream(hidden, self.config)

        return capture
