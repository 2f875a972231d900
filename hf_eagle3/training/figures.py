"""What training shows of a draft: accuracy and acceptance per step, simulated acceptance length, coverage.

Sums that add up over batches and processes; ratios are taken at the end. Shape letters: S steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .objective import ObjectiveOutput


# Rows of the table of sums, one number per step each.
CORRECT, ACCEPTED, ROWS = range(3)
# Numbers of the second table.
COVERED, AGREED, POSITIONS, CHAIN_TOKENS, CHAINS = range(5)


@dataclass
class TrainingFigures:
    """Sums of what was measured, on one device: `steps` (3, S) and `totals` (5,), float64."""

    steps: Tensor
    totals: Tensor

    @classmethod
    def zeros(cls, num_steps: int, device: torch.device) -> "TrainingFigures":
        """Nothing counted yet."""
        # float32 on devices without float64 (MPS); sums of one logging period
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return cls(torch.zeros(3, num_steps, dtype=dtype, device=device), torch.zeros(5, dtype=dtype, device=device))

    @torch.no_grad()
    def add(self, measured: ObjectiveOutput, next_tokens: Tensor, target_token_ids: Tensor | None) -> None:
        """Add a batch; `next_tokens` (M,) are the text's tokens at the predicted positions."""
        positions = measured.positions
        num_steps, size = len(measured.terms), positions.shape[0] * positions.shape[1]
        correct = torch.zeros(num_steps, size, dtype=torch.bool, device=self.steps.device)
        present = torch.zeros_like(correct)
        for step, terms in enumerate(measured.terms):
            there = positions.has_row(step)
            rows = positions.rows(step)[there]
            correct[step, rows] = terms.correct[there]
            present[step, rows] = True
            self.steps[CORRECT, step] += terms.correct[there].sum()
            self.steps[ACCEPTED, step] += terms.acceptance[there].sum()
            self.steps[ROWS, step] += there.sum()
        first = measured.terms[0]
        best = first.best if target_token_ids is None else target_token_ids[first.best.clamp_min(0)]
        self.totals[COVERED] += first.covered.sum()
        self.totals[AGREED] += (first.covered & (best == next_tokens)).sum()
        self.totals[POSITIONS] += len(positions.index)
        whole = present.all(0).nonzero()[:, 0]
        tokens, chains = simulated_cycles(whole.tolist(), correct[:, whole].long().cumprod(0).sum(0).tolist())
        self.totals[CHAIN_TOKENS] += tokens
        self.totals[CHAINS] += chains

    def reduced(self, accelerator) -> "TrainingFigures":
        """Summed over processes."""
        return TrainingFigures(accelerator.reduce(self.steps, "sum"), accelerator.reduce(self.totals, "sum"))

    @property
    def coverage(self) -> float:
        """Share of the target's argmaxes that the draft can propose."""
        return float(self.totals[COVERED] / self.totals[POSITIONS].clamp_min(1))

    @property
    def agreement(self) -> float:
        """Share of the text's tokens that are the target's argmax (and in the draft vocabulary)."""
        return float(self.totals[AGREED] / self.totals[POSITIONS].clamp_min(1))

    def ratios(self) -> dict[str, float]:
        """
        Named figures. All are teacher-forced: given the text's true prefix.

        `accuracy_k`: the draft's best token at step k is the target's. `acceptance_k`: chance that a token drawn from
        the draft is accepted at temperature 1. `simulated_acceptance_length`: tau of chains of S on this text at
        temperature 0; on the target's own greedy text it is what generation gives. `vocabulary_coverage`,
        `text_agreement`: see the properties.
        """
        out: dict[str, float] = {}
        rows = self.steps[ROWS].clamp_min(1)
        for name, row in (("accuracy", CORRECT), ("acceptance", ACCEPTED)):
            for step, value in enumerate((self.steps[row] / rows).tolist()):
                out[f"{name}_{step}"] = round(value, 4)
        if self.totals[CHAINS]:
            out["simulated_acceptance_length"] = round(float(self.totals[CHAIN_TOKENS] / self.totals[CHAINS]), 4)
        out["vocabulary_coverage"] = round(self.coverage, 4)
        out["text_agreement"] = round(self.agreement, 4)
        return out


def simulated_cycles(indices: list[int], accepted: list[int]) -> tuple[int, int]:
    """
    (tokens, cycles) of going through the text in cycles: each starts where the one before it ended.

    A mean over all starts would flatter the draft: cycles begin after a rejection, where the text is hard.

    Args:
        indices: Where a cycle may start, ascending.
        accepted: Draft tokens accepted from there.
    """
    tokens, cycles, start = 0, 0, -1
    for index, count in zip(indices, accepted, strict=True):
        if index >= start:
            tokens, cycles, start = tokens + count + 1, cycles + 1, index + count + 1
    return tokens, cycles
