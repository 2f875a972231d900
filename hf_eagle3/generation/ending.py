"""Where sequences end: from a walk's tokens to what the cycle commits.

Does not know models, caches or how tokens are chosen. Shape letters: A active sequences.
"""

from dataclasses import dataclass

import torch

from .batch import Rows
from .sampling.chooser import StopChecker
from .sampling.noise import StepNoise
from .tree.draft_tree import DraftTree
from .walk import Walk


@dataclass
class Plan:
    """
    What a cycle commits, per active sequence, known on the CPU.

    Attributes:
        tokens: The sequence's own tokens; none for one that ended in an earlier cycle and is kept as padding.
        counts: Tokens committed, padding included.
        accepted: Draft tokens among its own.
        is_cut: Whether something cut the cycle short: the sequence's end, or others that it waits for.
        ends: Whether it leaves the batch.
        is_live: Whether it had not ended before this cycle.
        is_draft_finite: Whether the draft's scores were numbers, for all sequences.
    """

    tokens: list[list[int]]
    counts: list[int]
    accepted: list[int]
    is_cut: list[bool]
    ends: list[bool]
    is_live: list[bool]
    is_draft_finite: bool


class Ending:
    """
    Args:
        rows: The batch.
        stopper: The call's stopping criteria.
        noise: Steps' noise when sampling; sequences may not run too far ahead of it.
        lockstep: Whether all sequences commit as many tokens.
        runs_on: Whether sequences that ended stay in the batch until all have.
    """

    def __init__(self, rows: Rows, stopper: StopChecker, noise: StepNoise | None, lockstep: bool, runs_on: bool):
        self.rows, self.stopper, self.noise = rows, stopper, noise
        self.lockstep, self.runs_on = lockstep, runs_on

    def resolve(self, tree: DraftTree, walk: Walk | None) -> Plan | None:
        """
        The cycle's one synchronisation: chosen tokens to the CPU, and where sequences end.

        Returns:
            `None`: a token was chosen from NaN, perhaps because of a drafted one.

        Raises:
            ValueError: the target's logits are NaN without any draft.
        """
        if walk is None:
            return None
        rows = self.rows
        if self.noise is not None and not self.lockstep and max(rows.steps) - min(rows.steps) > self.noise.max_skew:
            walk.hold_back()
        facts = [walk.tokens, walk.is_nan[:, None]]
        if tree.num_draft_tokens:  # else there is one token of each row, and the draft said nothing
            said = tree.scores if tree.log_probs is None else tree.log_probs
            draft_nan = said.isnan().any(dim=1).to(walk.counts.device)
            facts += [draft_nan[:, None], walk.counts[:, None]]
        packed = torch.cat(facts, dim=1).tolist()
        width = walk.tokens.shape[1]
        bad = [row for row, fact in zip(rows.active, packed, strict=True) if fact[width] and not rows.is_done[row]]
        if bad and tree.num_draft_tokens:
            return None
        if bad:
            raise ValueError(f"The target's logits are NaN (row {bad[0]}); its weights or its dtype are broken.")
        chosen = [row[-1] if tree.num_draft_tokens else 1 for row in packed]
        counts = list(chosen)
        if self.lockstep:  # without padding, the tokens of ended rows are still wanted
            idle = rows.idle_places
            counts = [min(count for a, count in enumerate(counts) if a not in idle)] * len(counts)
        tokens = [row[:count] for row, count in zip(packed, counts, strict=True)]
        rows.write(walk.tokens)
        stops = walk.stops
        if stops is None:
            stops = self.stopper.stopping_index(rows.active, rows.active_lengths, tokens)
        is_live = [not rows.is_done[row] for row in rows.active]
        ends = self._ends(stops, counts)
        own = [count if stop is None else stop + 1 for count, stop in zip(counts, stops, strict=True)]
        own = [count * live for count, live in zip(own, is_live, strict=True)]
        return Plan(
            tokens=[row[:count] for row, count in zip(tokens, own, strict=True)],
            counts=counts,
            accepted=[min(count, full - 1) for count, full in zip(own, chosen, strict=True)],
            is_cut=[stop is not None or count < full for stop, count, full in zip(stops, own, chosen, strict=True)],
            ends=ends,
            is_live=is_live,
            is_draft_finite=not (tree.num_draft_tokens and any(fact[width + 1] for fact in packed)),
        )

    def _ends(self, stops: list[int | None], counts: list[int]) -> list[bool]:
        """Which active rows end now; shortens `counts` to their ends."""
        rows = self.rows
        if not self.runs_on:
            for a, stop in enumerate(stops):
                counts[a] = counts[a] if stop is None else stop + 1
            return [stop is not None for stop in stops]
        for row, stop in zip(rows.active, stops, strict=True):
            if stop is not None and not rows.is_done[row]:
                rows.is_done[row] = True
                rows.ends[row] = rows.lengths[row] + stop + 1
        if not all(rows.is_done):
            return [False] * len(stops)
        last = max(rows.ends.values())
        counts[:] = [last - rows.lengths[row] for row in rows.active]
        return [True] * len(stops)
