"""Definitions of what is reported: acceptance length, acceptance rates, speedup, intervals. Pure Python.

Does not know models or tensors. A *cycle* is one drafting and one verification of one row.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import TypeVar


Sample = TypeVar("Sample")


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


def paired_speedup(calls: Sequence[Sequence[tuple[float, float]]]) -> float:
    """
    Speedup over several calls that were each measured several times, plain and sped up side by side.

    A call's ratio is the median over its repetitions of plain seconds / seconds, so that a slow moment of the machine,
    which hits both of a pair, cancels. Calls are weighted by their plain time: the result is the time all of them take
    plainly over the time they take at those ratios.

    Args:
        calls: Per call, per repetition, (plain seconds, seconds).
    """
    plain = total = 0.0
    for pairs in calls:
        seconds = median(before for before, _ in pairs)
        plain += seconds
        total += seconds / median(speedup(before, after) for before, after in pairs)
    return speedup(plain, total)


def bootstrap_interval(
    clusters: Sequence[Sequence[Sequence[Sample]]],
    statistic: Callable[[Sequence[Sequence[Sample]]], float],
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """
    Percentile bootstrap of `statistic` over calls: clusters are drawn with replacement, and within each call its
    repetitions, so that the interval covers both which prompts were asked and how the machine felt.

    Args:
        clusters: What is independent (prompts), each with its calls (turns, seeds), each with its repetitions.
        statistic: A function of calls.
        level: Probability that the interval is to cover.
        resamples: Draws.
        seed: Of the draws; the same seed gives the same interval.

    Returns:
        (low, high); `None` from one cluster measured once, which says nothing about spread.
    """
    if len(clusters) == 1 and all(len(call) == 1 for call in clusters[0]):
        return None
    generator = random.Random(seed)
    values = sorted(
        statistic(
            [
                generator.choices(call, k=len(call))
                for cluster in generator.choices(clusters, k=len(clusters))
                for call in cluster
            ]
        )
        for _ in range(resamples)
    )
    outside = int(resamples * (1 - level) / 2)
    return values[outside], values[-1 - outside]
