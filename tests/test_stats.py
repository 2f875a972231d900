"""What is counted: a batch of two by hand, and the relations that hold for every call."""

import math

import pytest
import torch
from models import left_padded, tiny_draft, tiny_target

import hf_eagle3
from hf_eagle3.generation.stats import PHASES


@pytest.fixture(scope="module")
def pair():
    target = tiny_target()
    return target, tiny_draft(target)


def test_counters_by_hand():
    """Row 0: cycles of 2 and 0 accepted; row 1: one of 4, cut by its end after 3 committed tokens."""
    stats = hf_eagle3.SpeculationStats()
    stats.start(2)
    stats.count_cycle(0, num_accepted_tokens=2, num_committed=3, depth=4, is_cut=False)
    stats.count_cycle(0, num_accepted_tokens=0, num_committed=1, depth=4, is_cut=False)
    stats.count_cycle(1, num_accepted_tokens=3, num_committed=3, depth=4, is_cut=True)
    assert stats.num_cycles == 3
    assert stats.acceptance_length == 7 / 3
    assert stats.histogram == [1, 0, 1, 1]
    rates = stats.acceptance_rates  # the cut cycle is left out
    assert rates[:3] == [1 / 2, 1.0, 0.0]
    assert math.isnan(rates[3])


@pytest.mark.parametrize("lengths", [[9], [13, 4, 9]], ids=str)
@pytest.mark.parametrize("do_sample", [False, True])
def test_relations_of_every_call(pair, lengths, do_sample):
    target, draft = pair
    torch.manual_seed(0)
    out = target.generate(
        **left_padded(lengths),
        max_new_tokens=30,
        do_sample=do_sample,
        eos_token_id=5,
        assistant_model=draft,
        return_dict_in_generate=True,
    )
    stats = out.speculation
    assert stats.prompt_lengths == [max(lengths)] * len(lengths)
    assert max(stats.generated_lengths) == out.sequences.shape[1] - max(lengths)
    # The prefill's token of each row is not a cycle's.
    assert stats.num_committed_tokens == sum(stats.generated_lengths) - len(lengths)
    assert stats.num_cycles == sum(map(len, stats.accepted_tokens))
    assert stats.num_iterations == max(map(len, stats.accepted_tokens))
    assert set(stats.phase_seconds) == set(PHASES)
    assert all(seconds > 0 for seconds in stats.phase_seconds.values())


def test_record_adds_calls_up_and_ends(pair):
    target, draft = pair
    options = {**left_padded([9]), "max_new_tokens": 10, "do_sample": False, "assistant_model": draft}
    with hf_eagle3.record() as stats:
        target.generate(**options)
        once = stats.num_cycles
        target.generate(**options)
    assert stats.num_cycles == 2 * once
    assert len(stats.accepted_tokens) == 2
    target.generate(**options)
    assert stats.num_cycles == 2 * once


def test_one_token_needs_no_cycle(pair):
    target, draft = pair
    with hf_eagle3.record() as stats:
        target.generate(**left_padded([9]), max_new_tokens=1, do_sample=False, assistant_model=draft)
    assert stats.num_cycles == 0
    assert math.isnan(stats.acceptance_length)
