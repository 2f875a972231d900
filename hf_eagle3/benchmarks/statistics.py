"""From records to the rows of the report: speedups with intervals, acceptance, phase shares. Does not know models."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

from .. import metrics
from .methods import Method
from .runner import Key, Tally


Pairs = list[tuple[float, float]]


def rows(
    records: Sequence[Mapping],
    tallies: Mapping[Key, Tally],
    methods: Iterable[Method],
    is_exact: bool,
) -> list[dict]:
    """
    One row per task, method, temperature and batch size, in the order measured.

    Args:
        records, tallies: Of the [`Runner`].
        methods: Tell which text each method must generate.
        is_exact: Whether rounding cannot explain another text (float32): the speedup of a method that must reproduce
            plain generate's text and did not is then `None`.
    """
    by_name = {method.name: method for method in methods}
    groups: dict[Key, list[Mapping]] = {}
    for record in records:
        key = (record["task"], record["method"], record["temperature"], record["batch_size"])
        groups.setdefault(key, []).append(record)
    out = []
    for key, group in groups.items():
        task, method, temperature, batch_size = key
        keeps_text = by_name[method].keeps_text(temperature)
        row = {"task": task, "method": method, "temperature": temperature, "batch_size": batch_size}
        row |= _acceptance(tallies[key], by_name[method].is_ours)
        row |= _identity(group, keeps_text)
        refused = is_exact and keeps_text and not row["identical"]
        row |= dict.fromkeys(_speed(group)) if refused else _speed(group)
        row["ceiling"] = _ceiling(tallies[key])
        out.append(row)
    return out


def _acceptance(tally: Tally, is_ours: bool) -> dict:
    """tau for all methods; n-alpha for chains, as in the paper, up to the deepest level that was ever drafted."""
    stats, total = tally.stats, sum(tally.phases.values())
    rates = stats.acceptance_rates if is_ours and stats.mode == "chain" else []
    return {
        "acceptance_length": stats.acceptance_length if stats.num_cycles else None,  # no cycle in one-token answers
        "acceptance_rates": [rate for rate in rates if not math.isnan(rate)],
        "accepted_histogram": stats.histogram,
        "phase_shares": {name: seconds / total for name, seconds in tally.phases.items()},
        "mode": stats.mode,
        "mode_reason": stats.reason,
    }


def _ceiling(tally: Tally) -> float | None:
    """Decoding speedup if only the two models' passes took time, from the calls of this row."""
    models = tally.phases["verify_forward"] + tally.phases["draft_forward"]
    return metrics.speedup(tally.plain_decode_seconds, models) if models else None


def _identity(group: Sequence[Mapping], keeps_text: bool) -> dict:
    prompts = {name for record in group for name in record["question_ids"]}
    differing = {name for record in group for name in record["differing"]}
    return {
        "num_prompts": len(prompts),
        "num_differing": len(differing),
        "identical": not differing,
        "same_text_promised": keeps_text,
    }


def _speed(group: Sequence[Mapping]) -> dict:
    clusters = _clusters(group, lambda r: (r["plain_seconds"], r["seconds"]))
    calls = [call for cluster in clusters for call in cluster]
    interval = metrics.bootstrap_interval(clusters, metrics.paired_speedup)
    decoding = _clusters(
        [
            record
            for record in group
            if record["new_tokens"] > 1
            and record["first_token_seconds"] < min(record["plain_seconds"], record["seconds"])
        ],
        lambda r: (r["plain_seconds"] - r["first_token_seconds"], r["seconds"] - r["first_token_seconds"]),
    )
    return {
        "speedup": metrics.paired_speedup(calls),
        "speedup_interval": None if interval is None else list(interval),
        # Without the target's prefill, which both sides share; the draft's own prefill is included.
        "decode_speedup": metrics.paired_speedup([c for cl in decoding for c in cl]) if decoding else None,
        # Equal token counts: a ratio of total times, from the median of each side rather than of the pairs.
        "tokens_per_second_ratio": metrics.speedup(
            *(sum(median(pair[side] for pair in call) for call in calls) for side in (0, 1))
        ),
    }


def _clusters(group: Sequence[Mapping], pair: Callable[[Mapping], tuple[float, float]]) -> list[list[Pairs]]:
    """(plain, method) seconds by batch of prompts, by call (turn, seed), by repetition."""
    clusters: dict[tuple, dict[tuple, Pairs]] = {}
    for record in group:
        calls = clusters.setdefault(tuple(record["question_ids"]), {})
        calls.setdefault((record["turn"], record["seed"]), []).append(pair(record))
    return [list(calls.values()) for calls in clusters.values()]
