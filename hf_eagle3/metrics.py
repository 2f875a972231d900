"""Definitions of what is reported: acceptance length, acceptance rates, speedup. Pure Python.

Does not know models or tensors. A *cycle* is one drafting and one verification of one row.
"""

from collections.abc import Iterable, Sequence


def acceptance_length(num_committed_tokens: int, num_cycles: int) -> float:
    """tau: committed tokens per cycle, the target's own token included, so at least 1. NaN before the first cycle."""
    return num_committed_tokens / num_cycles if num_cycles else float("nan")


def acceptance_rates(accepted: Iterable[tuple[int, int]], max_depth: int) -> list[float]:
    """
    n-alpha: probability that the n+1-th draft token is accepted, given that the n before it were.

    Args:
        accepted: Per cycle (accepted draft tokens, draft tokens that could have been accepted). Cycles cut by the end
            of a row are to be left out by the caller; meaningful on chains.
        max_depth: How many rates to give.

    Returns:
        One rate per n; NaN where no cycle got that far.
    """
    cycles = list(accepted)
    rates = []
    for n in range(max_depth):
        tried = sum(1 for count, depth in cycles if count >= n and depth > n)
        hits = sum(1 for count, depth in cycles if count > n and depth > n)
        rates.append(hits / tried if tried else float("nan"))
    return rates


def histogram(accepted: Sequence[int]) -> list[int]:
    """How many cycles accepted 0, 1, 2, ... draft tokens."""
    return [accepted.count(n) for n in range(max(accepted, default=-1) + 1)]


def speedup(plain_seconds: float, seconds: float) -> float:
    """Time of plain `generate` over time with the draft, for the same tokens in the same run."""
    return plain_seconds / seconds
