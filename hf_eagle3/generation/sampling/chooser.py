"""Choosing a step's token exactly as plain `generate` would: logits processors on the right prefix, then argmax or
draw.

Processors that were not declared row-wise run in lockstep: all sequences at one length, once per step. Does not know
trees. Shape letters: B sequences of the batch, A active ones, V vocabulary.
"""

import torch
from transformers import LogitsProcessorList

from ..batch import Batch
from .kinds import Kind, kind_of
from .noise import StepNoise


class TokenChooser:
    """
    Args:
        processors: The list that `generate` prepared.
        noise: Steps' noise when sampling; `None` for greedy.
        batch: The batch; prefixes are read from its tokens.
    """

    def __init__(self, processors: LogitsProcessorList, noise: StepNoise | None, batch: Batch):
        self.processors, self.noise, self.batch = processors, noise, batch
        self.kind = kind_of(processors)

    @property
    def is_plain_argmax(self) -> bool:
        """Greedy without processors: no scores need to be processed."""
        return self.noise is None and self.kind == Kind.NONE

    def scores(self, logits: torch.Tensor, numbers: list[int], lengths: list[int]) -> torch.Tensor:
        """
        Processed scores (A, V) of `logits` (A, V) float32, sequence `numbers[a]` having `lengths[a]` tokens so far.
        What processors change in place is changed in `logits`, as in plain `generate`.
        """
        if self.kind == Kind.NONE:
            return logits
        if self.kind == Kind.PREFIX_FREE:
            return self.processors(self.batch.ids[: len(numbers), :1], logits)
        groups: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            groups.setdefault(length, []).append(index)
        if len(groups) == 1:
            return self._one_length(logits, numbers, lengths[0])
        out = torch.empty_like(logits)
        for length, members in groups.items():
            part = logits[members]
            out[members] = self._one_length(part, [numbers[i] for i in members], length)
            logits[members] = part
        return out

    def _one_length(self, logits: torch.Tensor, numbers: list[int], length: int) -> torch.Tensor:
        if len(numbers) == self.batch.ids.shape[0] and numbers == sorted(numbers):
            return self.processors(self.batch.ids[:, :length], logits)
        if self.kind == Kind.ROW_WISE:
            return self.processors(self.batch.ids[numbers, :length], logits)
        everyone = logits.new_zeros(self.batch.ids.shape[0], logits.shape[1])
        everyone[numbers] = logits
        scores = self.processors(self.batch.ids[:, :length], everyone)[numbers]
        logits.copy_(everyone[numbers])
        return scores

    def choose(
        self, logits: torch.Tensor, numbers: list[int], lengths: list[int], steps: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        (tokens (A,), processed scores (A, V), logits (A, V) float32, is NaN (A,)) of one step; `logits` (A, V) in the
        target's dtype.
        """
        logits = logits.to(torch.float32, copy=True)
        # NaN that a processor makes is plain generate's choice, too.
        was_nan = logits.amax(dim=-1).isnan() if self.noise is None and self.kind != Kind.NONE else None
        scores = self.scores(logits, numbers, lengths)
        if self.noise is None:
            best = scores.max(dim=-1)
            is_nan = best.values.isnan()
            return best.indices, scores, logits, is_nan if was_nan is None else is_nan & was_nan
        probabilities = scores.softmax(dim=-1)
        tokens = (probabilities / self.noise.at(steps, numbers)).argmax(dim=-1)
        return tokens, scores, logits, probabilities[:, 0].isnan()  # one NaN score makes all probabilities NaN
