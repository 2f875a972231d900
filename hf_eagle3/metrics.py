"""Definitions of the reported metrics: acceptance length, acceptance rates, speedup, confidence intervals.

Pure Python; does not know models or tensors. A *cycle* is one drafting and one verification of one sequence.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import TypeVar


Sample = TypeVar("Sample")


def acceptance_length(num_committed_tokens: int, num_cycles: int) -> float:
    """tau: committed tokens per cycle including the target's own token, so at least 1. NaN without cycles."""
    return num_committed_tokens / num_cycles if num_cycles else float("nan")


def acceptance_rates(accepted: Iterable[tuple[int, int]], max_depth: int) -> list[float]:
    """
    n-alpha: probability that the (n+1)-th draft token is accepted, given that the n before it were. Meaningful on
    chains.

    Args:
        accepted: Per cycle, (accepted draft tokens, draft tokens that could have been accepted). The caller excludes
            cycles cut short by the end of a sequence.
        max_depth: Number of rates.

    Returns:
        One rate per n; NaN where no cycle reached n.
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
    Speedup over several calls, each measured several times with plain `generate` and the method in turns.

    A call's ratio is the median of plain seconds / seconds over its repetitions, so that a slow phase of the machine,
    which affects both, cancels out. Calls are weighted by their plain time: the result is the total plain time over
    the total time at those ratios.

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
    Percentile bootstrap of `statistic` over calls. Clusters are resampled, and repetitions within each call, so that
    the interval covers both the choice of prompts and timing noise.

    Args:
        clusters: Independent units (prompts), each with its calls (turns, seeds), each with its repetitions.
        statistic: A function of calls.
        level: Coverage probability of the interval.
        resamples: Number of resamples.
        seed: Random seed of the resampling.

    Returns:
        (low, high); `None` for a single cluster measured once, which has no spread.
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
