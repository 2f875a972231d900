"""`FeatureReader`: what drafters share that keep the target's features of committed tokens in a cache of their own.

What was committed waits until a tree is grown: after plain steps several tokens are read at once.
"""

from itertools import groupby

import torch

from ..batch import Batch
from .interface import Drafter, DraftInputs, Prompt
from .memory import prompt_inputs


def joined(pending: list[DraftInputs]) -> list[DraftInputs]:
    """Neighbours in one where all sequences have equally many entries, as after plain steps: one pass for them."""
    out: list[DraftInputs] = []
    for is_even, group in groupby(pending, key=lambda inputs: inputs.is_even):
        parts = list(group)
        if not is_even or len(parts) == 1:
            out += parts
            continue
        names = ("tokens", "features", "slots", "positions")
        whole = {name: torch.cat([vars(part)[name] for part in parts], dim=1) for name in names}
        counts = [sum(each) for each in zip(*(part.counts for part in parts), strict=True)]
        out.append(DraftInputs(**whole, counts=counts, last_slot=parts[-1].last_slot, first_slot=parts[0].first_slot))
    return out


class FeatureReader(Drafter):
    """
    Attributes:
        batch: The sequences; read only.
        pending: What was committed and not read yet.
    """

    batch: Batch | None
    pending: list[DraftInputs]

    def start(self, prompt: Prompt) -> None:
        """As in [`Drafter`]. The prompt is read at once if a cycle will follow."""
        self.pending = [prompt_inputs(self, self.batch, prompt)]
        if prompt.is_read:
            self.feed()

    def extend(self, inputs: DraftInputs) -> None:
        """As in [`Drafter`]."""
        self.pending.append(inputs)

    def feed(self) -> None:
        """Read what was committed since the last time."""
        with torch.autocast(self.device.type, enabled=False):
            for inputs in joined(self.pending):
                self.read(inputs)
        self.pending = []

    def read(self, inputs: DraftInputs) -> None:
        """Make entries of the drafter's own cache."""
        raise NotImplementedError
