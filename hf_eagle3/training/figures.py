"""Metrics logged in training: accuracy and acceptance per step, simulated acceptance length, vocabulary coverage.

Kept as sums, which are additive over batches and processes; ratios are taken at the end. Does not know losses.

Shape letters: S steps, M positions with loss.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .objective import ObjectiveOutput


# Rows of `steps`: one sum per step each.
CORRECT, ACCEPTED, PREDICTIONS = range(3)
# Entries of `totals`.
COVERED, AGREED, POSITIONS, CHAIN_TOKENS, CHAINS = range(5)


@dataclass
class TrainingFigures:
    """Sums on one device: `steps` (3, S) and `totals` (5,), float64 (float32 on MPS)."""

    steps: Tensor
    totals: Tensor

    @classmethod
    def zeros(cls, num_steps: int, device: torch.device) -> "TrainingFigures":
        """Empty sums."""
        # MPS has no float64; sums of one logging period fit float32.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return cls(torch.zeros(3, num_steps, dtype=dtype, device=device), torch.zeros(5, dtype=dtype, device=device))

    @torch.no_grad()
    def add(self, measured: ObjectiveOutput, next_tokens: Tensor, target_token_ids: Tensor | None) -> None:
        """Add a batch; `next_tokens` (M,) are the text's tokens that the M positions predict."""
        positions = measured.positions
        num_steps, size = len(measured.terms), positions.shape[0] * positions.shape[1]
        correct = torch.zeros(num_steps, size, dtype=torch.bool, device=self.steps.device)
        present = torch.zeros_like(correct)
        for step, terms in enumerate(measured.terms):
            exists = positions.has_draft_index(step)
            # By draft index i, not target position: steps 0..S-1 at one i are a chain drafted from the same prefix.
            indices = positions.draft_indices(step)[exists]
            correct[step, indices] = terms.correct[exists]
            present[step, indices] = True
            self.steps[CORRECT, step] += terms.correct[exists].sum()
            self.steps[ACCEPTED, step] += terms.acceptance[exists].sum()
            self.steps[PREDICTIONS, step] += exists.sum()
        first = measured.terms[0]
        best = first.best if target_token_ids is None else target_token_ids[first.best.clamp_min(0)]
        self.totals[COVERED] += first.covered.sum()
        self.totals[AGREED] += (first.covered & (best == next_tokens)).sum()
        self.totals[POSITIONS] += len(positions.index)
        complete = present.all(0).nonzero()[:, 0]
        # cumprod stops at a chain's first mistake, so its sum is the number of accepted tokens.
        accepted = correct[:, complete].long().cumprod(0).sum(0)
        tokens, chains = simulated_cycles(complete.tolist(), accepted.tolist())
        self.totals[CHAIN_TOKENS] += tokens
        self.totals[CHAINS] += chains

    def reduced(self, accelerator) -> "TrainingFigures":
        """Summed over processes."""
        return TrainingFigures(accelerator.reduce(self.steps, "sum"), accelerator.reduce(self.totals, "sum"))

    @property
    def coverage(self) -> float:
        """Fraction of the target's argmaxes that the draft can propose."""
        return float(self.totals[COVERED] / self.totals[POSITIONS].clamp_min(1))

    @property
    def agreement(self) -> float:
        """Fraction of the text's tokens that are the target's argmax (and in the draft vocabulary)."""
        return float(self.totals[AGREED] / self.totals[POSITIONS].clamp_min(1))

    def ratios(self) -> dict[str, float]:
        """
        Metrics by name, all teacher-forced on the text's own prefix.

        `accuracy_k`: the draft's argmax at step k is the target's. `acceptance_k`: probability that a token sampled
        from the draft is accepted at temperature 1. `simulated_acceptance_length`: tau of chains of S on this text at
        temperature 0, equal to that of generation on the target's own greedy text. `vocabulary_coverage`,
        `text_agreement`: see the properties.
        """
        out: dict[str, float] = {}
        predictions = self.steps[PREDICTIONS].clamp_min(1)
        for name, row in (("accuracy", CORRECT), ("acceptance", ACCEPTED)):
            for step, value in enumerate((self.steps[row] / predictions).tolist()):
                out[f"{name}_{step}"] = round(value, 4)
        if self.totals[CHAINS]:
            out["simulated_acceptance_length"] = round(float(self.totals[CHAIN_TOKENS] / self.totals[CHAINS]), 4)
        out["vocabulary_coverage"] = round(self.coverage, 4)
        out["text_agreement"] = round(self.agreement, 4)
        return out


def simulated_cycles(indices: list[int], accepted: list[int]) -> tuple[int, int]:
    """
    (tokens, cycles) of decoding the text in cycles, each starting where the previous one ended.

    A mean over all starting points would be too high: real cycles start after a rejection, where the text is hard.

    Args:
        indices: Where a cycle may start, ascending.
        accepted: Draft tokens accepted from each start.
    """
    tokens, cycles, start = 0, 0, -1
    for index, count in zip(indices, accepted, strict=True):
        if index >= start:
            tokens, cycles, start = tokens + count + 1, cycles + 1, index + count + 1
    return tokens, cycles
