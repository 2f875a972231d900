"""Figures of the benchmark by hand: speedups from pairs of times, their intervals, rows from records, the report."""

import random

import pytest

from hf_eagle3 import SpeculationStats, metrics
from hf_eagle3.benchmarks import report
from hf_eagle3.benchmarks.ceiling import Ceiling
from hf_eagle3.benchmarks.methods import Method
from hf_eagle3.benchmarks.plots import draw
from hf_eagle3.benchmarks.runner import Tally
from hf_eagle3.benchmarks.statistics import rows


def test_paired_speedup_by_hand():
    """Call 1: ratios 2, 4, 3, so 3, of 8 s. Call 2: ratio 1 of 2 s. 10 s plainly, 8 / 3 + 2 s sped up."""
    calls = [[(8.0, 4.0), (8.0, 2.0), (9.0, 3.0)], [(2.0, 2.0)]]
    assert metrics.paired_speedup(calls) == pytest.approx(10 / (8 / 3 + 2))


def test_paired_speedup_ignores_a_slow_moment_that_hits_both():
    quiet = [[(2.0, 1.0)] * 3]
    slow = [[(2.0, 1.0), (20.0, 10.0), (2.0, 1.0)]]
    assert metrics.paired_speedup(slow) == metrics.paired_speedup(quiet) == 2


def noisy_clusters(seed: int, count: int = 40, truth: float = 2.0):
    """Prompts of one call each, three rounds; both times carry noise of their own, and the prompts a ratio."""
    generator = random.Random(seed)
    clusters = []
    for _ in range(count):
        length, ratio = generator.uniform(1, 2), truth * generator.uniform(0.8, 1.25)
        pair = [
            (length * generator.uniform(0.95, 1.05), length / ratio * generator.uniform(0.95, 1.05)) for _ in range(3)
        ]
        clusters.append([pair])
    return clusters


def test_the_interval_contains_the_truth_and_not_much_else():
    low, high = metrics.bootstrap_interval(noisy_clusters(0), metrics.paired_speedup)
    assert 1.85 < low < 2.0 < high < 2.15
    assert (low, high) == metrics.bootstrap_interval(noisy_clusters(0), metrics.paired_speedup)
    assert (low, high) != metrics.bootstrap_interval(noisy_clusters(0), metrics.paired_speedup, seed=1)


def test_the_interval_covers_as_often_as_it_says():
    """30 samples at 95 %: fewer than 25 hits have a chance below 1 in 5,000 (binomial)."""
    truth = metrics.paired_speedup([call for cluster in noisy_clusters(99, 20000) for call in cluster])
    hits = 0
    for seed in range(30):
        low, high = metrics.bootstrap_interval(noisy_clusters(seed), metrics.paired_speedup, resamples=200)
        hits += low <= truth <= high
    assert hits >= 25


def test_one_measurement_has_no_interval():
    assert metrics.bootstrap_interval([[[(2.0, 1.0)]]], metrics.paired_speedup) is None
    assert metrics.bootstrap_interval([[[(2.0, 1.0), (2.0, 1.0)]]], metrics.paired_speedup) == (2.0, 2.0)


def test_prompts_are_drawn_whole():
    """Two calls of one prompt always come together, so of two prompts only three samples exist."""
    seen = []
    clusters = [[["a"], ["b"]], [["c"]]]
    metrics.bootstrap_interval(clusters, lambda calls: seen.append("".join(c[0] for c in calls)) or 0.0)
    assert set(seen) == {"abab", "abc", "cab", "cc"}


def test_repetitions_are_drawn_within_their_call():
    seen = []
    metrics.bootstrap_interval([[["a", "b"]]], lambda calls: seen.append("".join(calls[0])) or 0.0)
    assert set(seen) == {"aa", "ab", "ba", "bb"}


def test_ceiling_by_hand():
    """A cycle costs 1.5 steps of verification and 0.5 of drafting: tau 3 gains 3 / (1 + 0.5 + 0.5)."""
    ceiling = Ceiling("chain:5", 0.0, 1, acceptance_length=3.0, verification=1.5, drafting=0.5)
    assert ceiling.relative_cost == 1.0
    assert ceiling.ceiling == 1.5


def record(question: str, plain: float, seconds: float, **changes) -> dict:
    return {
        "task": "gsm8k",
        "method": "chain:3",
        "temperature": 0.0,
        "batch_size": 1,
        "seed": 0,
        "question_ids": [question],
        "turn": 0,
        "repetition": 0,
        "prompt_tokens": 9,
        "new_tokens": 12,
        "first_token_seconds": 1.0,
        "plain_seconds": plain,
        "seconds": seconds,
        "committed_tokens": 11,
        "num_cycles": 5,
        "differing": [],
    } | changes


def chain_tally() -> Tally:
    """Chains of 3: cycles accepted 3, 1, 0 and, cut by the end, 1."""
    stats = SpeculationStats(mode="chain", reason="asked for")
    stats.start(1)
    for accepted, is_cut in ((3, False), (1, False), (0, False), (1, True)):
        stats.count_cycle(0, accepted, accepted + 1, depth=3, is_cut=is_cut)
    tally = Tally(stats=stats, plain_decode_seconds=6.0)
    tally.phases.update({"prefill": 1.0, "draft_forward": 1.0, "verify_forward": 2.0, "other": 1.0})
    return tally


def rows_of(records, method=None, tally=None, is_exact=True) -> list[dict]:
    method = method or Method("chain:3", {}, is_ours=True)
    keys = {(r["task"], r["method"], r["temperature"], r["batch_size"]) for r in records}
    return rows(records, dict.fromkeys(keys, tally or chain_tally()), [method], is_exact)


def test_a_row_by_hand():
    (row,) = rows_of([record("1", 4.0, 2.0), record("1", 8.0, 2.0, repetition=1), record("2", 3.0, 2.0)])
    # Prompt 1: ratios 2 and 4, so 3, of 6 s; prompt 2: 1.5 of 3 s. 9 s over 2 + 2 s.
    assert row["speedup"] == pytest.approx(9 / 4)
    assert row["speedup_interval"][0] <= row["speedup"] <= row["speedup_interval"][1]
    # Without the first token's second: ratios 3 and 7, so 5, of 5 s; 2 of 2 s.
    assert row["decode_speedup"] == pytest.approx(7 / 2)
    assert row["tokens_per_second_ratio"] == pytest.approx((6 + 3) / (2 + 2))
    assert row["acceptance_length"] == 9 / 4
    # The cut cycle is left out: of 3 first tokens 2 were accepted, of 2 second ones 1, of 1 third one 1.
    assert row["acceptance_rates"] == [2 / 3, 1 / 2, 1.0]
    assert row["accepted_histogram"] == [1, 2, 0, 1]
    assert row["phase_shares"] == {"prefill": 0.2, "draft_forward": 0.2, "verify_forward": 0.4, "other": 0.2}
    assert row["ceiling"] == 2.0  # 6 s of plain steps, 3 s in the models
    assert (row["identical"], row["num_differing"], row["num_prompts"]) == (True, 0, 2)


def test_acceptance_rates_are_of_chains():
    tally = chain_tally()
    tally.stats.mode = "tree"
    assert rows_of([record("1", 2.0, 1.0)], tally=tally)[0]["acceptance_rates"] == []


def test_rates_end_where_no_cycle_got():
    tally = chain_tally()
    tally.stats.accepted_tokens[0][0] = 0  # 1, 0 and 0 accepted: the third depth is tried by none
    assert rows_of([record("1", 2.0, 1.0)], tally=tally)[0]["acceptance_rates"] == [1 / 3, 0.0]


DIFFERENT = [record("1", 4.0, 2.0), record("2", 4.0, 2.0, differing=["2"])]


def test_float32_refuses_a_speedup_of_another_text():
    (row,) = rows_of(DIFFERENT)
    assert (row["identical"], row["num_differing"], row["num_prompts"]) == (False, 1, 2)
    for name in ("speedup", "speedup_interval", "decode_speedup", "tokens_per_second_ratio"):
        assert row[name] is None
    assert row["acceptance_length"] == 9 / 4


def test_bfloat16_counts_the_differing_prompts():
    (row,) = rows_of(DIFFERENT, is_exact=False)
    assert (row["speedup"], row["num_differing"]) == (2.0, 1)


def test_the_host_may_sample_another_text_and_not_write_one():
    host = Method("lookup:10", {})
    sampled = [r | {"method": "lookup:10", "temperature": 1.0} for r in DIFFERENT]
    greedy = [r | {"method": "lookup:10"} for r in DIFFERENT]
    assert rows_of(sampled, host)[0]["speedup"] == 2.0
    assert rows_of(sampled, host)[0]["same_text_promised"] is False
    assert rows_of(greedy, host)[0]["speedup"] is None


def fixed_document() -> dict:
    """Two tasks; a chain at temperatures 0 and 1 and in batches of 2, prompt lookup sampling, one other text."""
    first = rows_of([record("1", 4.0, 2.0), record("1", 4.0, 2.0, repetition=1)])[0]
    base = first | {"speedup_interval": [1.5, 2.5]}
    other = base | {"task": "mine", "speedup": 3.0, "acceptance_length": 2.75}
    sampled = base | {"temperature": 1.0}
    host = sampled | {
        "method": "lookup:10",
        "speedup": 1.25,
        "same_text_promised": False,
        "num_differing": 1,
        "acceptance_rates": [],
        "ceiling": None,
        "phase_shares": {},
    }
    nothing = dict.fromkeys(("speedup", "speedup_interval", "decode_speedup", "tokens_per_second_ratio"))
    refused = sampled | {"task": "mine", "num_differing": 1, "identical": False} | nothing
    batched = base | {"batch_size": 2, "tokens_per_second_ratio": 1.5}
    return {
        "versions": {"hf_eagle3": "0.1.0", "torch": "2.13.0", "cuda": None},
        "hardware": {"device": "cpu", "device_name": "A processor", "threads": 2},
        "settings": {
            "target": "org/Model-8B",
            "draft": "org/draft",
            "dtype": "float32",
            "interrupted": False,
            "repetitions": 2,
            "warm_up": 1,
            "max_new_tokens": 12,
            "ignore_eos": False,
            "left_out": {"mine": 3},
            "skipped": ["lookup:10 at temperature 1, batch size 2: one row only"],
            "command": "hf-eagle3 benchmark --target org/Model-8B",
        },
        "ceiling": {"new_tokens": 33, "methods": [Ceiling("chain:3", 0.0, 1, 3.0, 1.5, 0.5).to_dict()]},
        "rows": [base, other, sampled, refused, host, batched],
        "records": [],
    }


def test_the_report_of_a_fixed_document():
    text = report.markdown(fixed_document())
    for line in (
        "| 0 | 1 | EAGLE-3 chain 3 | 3.00 | 1.50 | 0.50 | 1.50x |",
        "| Model | Method | GSM8K speedup | GSM8K τ | mine speedup | mine τ | Mean speedup | Mean τ |",
        "| **Temperature=0** |  |  |  |  |  |  |  |",
        "| Model-8B | EAGLE-3 chain 3 | 2.00x | 2.25 | 3.00x | 2.75 | 2.50x | 2.50 |",
        "| Model-8B | EAGLE-3 chain 3 | 2.00x | 2.25 | differs | 2.25 | – | 2.25 |",
        r"| Model-8B | PLD 10\* | 1.25x | 2.25 | – | – | – | – |",
        "| GSM8K | EAGLE-3 chain 3 | 0 | 1 | 2.00x | 1.50 to 2.50 | 3.00x | 2.00x | 0 of 1 |",
        r"| GSM8K | PLD 10 | 1 | 1 | 1.25x | 1.50 to 2.50 | 3.00x | – | 1 of 1\* |",
        "| mine | EAGLE-3 chain 3 | 1 | 1 | differs | – | – | 2.00x | 1 of 1 |",
        "| 0 | EAGLE-3 chain 3 | 2.00x | 1.50x |",
        "| GSM8K | EAGLE-3 chain 3 | 0 | 1 | 0.67 | 0.50 | 1.00 |",
        "- mine: 3 turns skipped, too long for the target",
        "- not measured: lookup:10 at temperature 1, batch size 2: one row only",
        "- hf_eagle3 0.1.0, torch 2.13.0",
        "- `hf-eagle3 benchmark --target org/Model-8B`",
    ):
        assert line in text.splitlines()
    assert "Texts differ" in text
    assert "Interrupted" not in text


def test_the_report_holds_ratios_only():
    """No time of the records, however it is written, reaches the Markdown."""
    document = fixed_document()
    before = report.markdown(document)
    document["records"] = [record("1", 123.4, 56.7)]
    assert report.markdown(document) == before
    assert "second," not in before.replace("Tokens per second,", "")


def test_answers_of_one_token_have_no_cycle(tmp_path):
    one = [record("1", 1.0, 1.1, new_tokens=1, committed_tokens=0, num_cycles=0)]
    (row,) = rows_of(one, tally=Tally(stats=SpeculationStats(mode="chain")))
    assert row["acceptance_length"] is row["decode_speedup"] is row["ceiling"] is None
    document = fixed_document()
    document["rows"] = [row]
    assert "| Model-8B | EAGLE-3 chain 3 | 0.91x | – | 0.91x | – |" in report.markdown(document).splitlines()
    assert [path.name for path in draw(document, tmp_path)] == ["speedup.png"]


def test_an_empty_measurement_is_said(tmp_path):
    document = fixed_document()
    document["rows"], document["settings"]["interrupted"] = [], True
    text = report.markdown(document)
    assert "Nothing was measured." in text
    assert "**Interrupted" in text
    assert draw(document, tmp_path) == []


def test_pictures_of_what_is_there(tmp_path):
    names = {path.name for path in draw(fixed_document(), tmp_path)}
    assert names == {f"{n}.png" for n in ("speedup", "accepted_lengths", "n_alpha", "phases", "throughput")}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names)
    document = fixed_document()
    document["rows"] = [row for row in document["rows"] if row["method"] == "lookup:10"]
    assert {path.name for path in draw(document, tmp_path)} == {"speedup.png", "accepted_lengths.png"}
