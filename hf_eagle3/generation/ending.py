"""Where sequences end: from a walk's tokens to what the cycle commits.

Does not know models, caches or how tokens are chosen, and changes nothing. Shape letters: A active sequences.
"""

from dataclasses import dataclass

import torch

from .batch import Batch
from .sampling.stopping import StopChecker
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
        leaves: Whether it leaves the batch.
        is_live: Whether it had not ended before this cycle.
        ended: Original numbers of the sequences that end in this cycle but stay in the batch, and where they end.
        is_draft_finite: Whether the draft's scores were numbers, for all sequences.
    """

    tokens: list[list[int]]
    counts: list[int]
    accepted: list[int]
    is_cut: list[bool]
    leaves: list[bool]
    is_live: list[bool]
    ended: dict[int, int]
    is_draft_finite: bool


@dataclass(frozen=True)
class Pace:
    """
    How far sequences may run apart.

    Attributes:
        lockstep: All commit as many tokens.
        keeps_ended: Those that ended stay in the batch until all have.
        max_skew: Steps that they may lie apart; `None`: any number.
    """

    lockstep: bool
    keeps_ended: bool
    max_skew: int | None


def resolve(tree: DraftTree, walk: Walk | None, batch: Batch, stopper: StopChecker, pace: Pace) -> Plan | None:
    """
    The cycle's one synchronisation: chosen tokens to the CPU, and where sequences end.

    Returns:
        `None`: a token was chosen from NaN, perhaps because of a drafted one.

    Raises:
        ValueError: the target's logits are NaN without any draft.
    """
    if walk is None:
        return None
    found = _to_cpu(tree, walk)
    is_live = batch.is_live
    bad = [n for n, nan, live in zip(batch.active, found.is_nan, is_live, strict=True) if nan and live]
    if bad and tree.num_draft_tokens:
        return None
    if bad:
        raise ValueError(f"The target's logits are NaN (sequence {bad[0]}); its weights or its dtype are broken.")
    counts = list(found.counts)
    steps = batch.steps
    if pace.lockstep:  # sequences kept as padding do not hold the others back
        padding = batch.padding_places
        counts = [min(count for place, count in enumerate(counts) if place not in padding)] * len(counts)
    elif pace.max_skew is not None and max(steps) - min(steps) > pace.max_skew:
        counts = [min(counts)] * len(counts)
    tokens = [row[:count] for row, count in zip(found.tokens, counts, strict=True)]
    stops = walk.stops
    if stops is None:
        stops = stopper.stopping_index(batch.active, batch.active_lengths, tokens)
    full = found.counts if pace.lockstep else counts
    own = [count if stop is None else stop + 1 for count, stop in zip(counts, stops, strict=True)]
    own = [count * live for count, live in zip(own, is_live, strict=True)]
    counts, leaves, ended = _ends(stops, counts, batch, pace.keeps_ended)
    return Plan(
        tokens=[row[:count] for row, count in zip(tokens, own, strict=True)],
        counts=counts,
        accepted=[min(count, most - 1) for count, most in zip(own, full, strict=True)],
        is_cut=[stop is not None or count < most for stop, count, most in zip(stops, own, full, strict=True)],
        leaves=leaves,
        is_live=is_live,
        ended=ended,
        is_draft_finite=found.is_draft_finite,
    )


@dataclass
class _Found:
    tokens: list[list[int]]
    counts: list[int]
    is_nan: list[bool]
    is_draft_finite: bool


def _to_cpu(tree: DraftTree, walk: Walk) -> _Found:
    facts = [walk.tokens, walk.is_nan[:, None]]
    if tree.num_draft_tokens:  # else there is one token of each sequence, and no draft
        draft_scores = tree.scores if tree.log_probs is None else tree.log_probs
        facts += [draft_scores.isnan().any(dim=1).to(walk.counts.device)[:, None], walk.counts[:, None]]
    width, packed = walk.tokens.shape[1], torch.cat(facts, dim=1).tolist()
    return _Found(
        tokens=packed,
        counts=[row[-1] if tree.num_draft_tokens else 1 for row in packed],
        is_nan=[bool(row[width]) for row in packed],
        is_draft_finite=not (tree.num_draft_tokens and any(row[width + 1] for row in packed)),
    )


def _ends(
    stops: list[int | None], counts: list[int], batch: Batch, keeps_ended: bool
) -> tuple[list[int], list[bool], dict[int, int]]:
    """(tokens to commit, which active sequences leave, which end and stay, with their ends)."""
    if not keeps_ended:
        counts = [count if stop is None else stop + 1 for count, stop in zip(counts, stops, strict=True)]
        return counts, [stop is not None for stop in stops], {}
    ended = {
        number: batch.lengths[number] + stop + 1
        for number, stop in zip(batch.active, stops, strict=True)
        if stop is not None and not batch.is_done[number]
    }
    ends = batch.ends | ended
    if len(ends) < batch.num_sequences:
        return counts, [False] * len(stops), ended
    last = max(ends.values())
    return [last - batch.lengths[number] for number in batch.active], [True] * len(stops), ended
