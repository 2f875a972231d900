"""Vocabulary mapping, metrics, noise, ranking, tree sizes and rows, with values readable by eye."""

import math

import pytest
import torch
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from hf_eagle3 import TreeConfig, metrics, vocabulary
from hf_eagle3.generation.batch import Batch
from hf_eagle3.generation.draft.ranking import Warp, rank_children
from hf_eagle3.generation.ops.transfer import kept_entries
from hf_eagle3.generation.sampling.noise import StepNoise


def test_draft_vocabulary_offsets():
    """Draft ids 0, 1, 2 stand for target ids 2, 3, 6."""
    d2t, t2d = vocabulary.mapping_from_target_ids(torch.tensor([6, 2, 3]), 8)
    assert d2t.tolist() == [2, 2, 4]
    assert t2d.int().tolist() == [0, 0, 1, 1, 0, 0, 1, 0]
    assert vocabulary.target_ids(d2t).tolist() == [2, 3, 6]


@pytest.mark.parametrize("ids", [[1, 1], [8], [-1], []])
def test_impossible_draft_vocabularies(ids):
    with pytest.raises(ValueError, match=r"distinct ids in 0\.\.7"):
        vocabulary.mapping_from_target_ids(torch.tensor(ids, dtype=torch.long), 8)


def test_full_vocabulary_needs_no_mapping():
    assert vocabulary.complete_mapping(torch.zeros(8).long(), None, 8, 8) is None
    with pytest.raises(ValueError, match="not the identity"):
        vocabulary.complete_mapping(torch.ones(8).long(), None, 8, 8)


def test_acceptance_length_counts_the_targets_own_token():
    assert metrics.acceptance_length(7, 2) == 3.5
    assert math.isnan(metrics.acceptance_length(0, 0))


def test_acceptance_rates_are_conditional():
    """Five chains of 2: accepted 2, 2, 1, 0, and one of depth 1 that accepted 1."""
    assert metrics.acceptance_rates([(2, 2), (2, 2), (1, 2), (0, 2), (1, 1)], 2) == [4 / 5, 2 / 3]
    assert metrics.histogram([0, 2, 2]) == [1, 0, 2]


@pytest.mark.parametrize("vocab_size", [7, 512, 40000])
def test_noise_is_what_multinomial_draws(vocab_size):
    probabilities = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(0)).mul(2).softmax(-1)
    torch.manual_seed(7)
    expected = [torch.multinomial(probabilities, 1)[:, 0].tolist() for _ in range(4)]
    state = torch.get_rng_state()
    torch.manual_seed(7)
    noise = StepNoise((3, vocab_size), torch.device("cpu"))
    rows = [0, 1, 2]
    noise.at([6, 0, 3], rows)  # looks ahead; steps are drawn in order whatever is asked first
    drawn = [(probabilities / noise.at([step] * 3, rows)).argmax(-1).tolist() for step in range(4)]
    assert drawn == expected
    noise.forget_before(2)
    noise.rewind_to(4)
    assert torch.equal(torch.get_rng_state(), state)


def test_ranking_without_noise_is_by_probability():
    logits = torch.tensor([[[0.0, 3.0, 1.0, 2.0]]])
    scores, ids = rank_children(logits, 2)
    assert ids.tolist() == [[[1, 3]]]
    torch.testing.assert_close(scores, logits.log_softmax(-1)[..., [1, 3]])


def test_ranking_by_noise_predicts_the_sample():
    """The best child under shared noise is the very token that sampling from q with that noise gives."""
    generator = torch.Generator().manual_seed(0)
    for warp in (Warp(), Warp(temperature=0.5), Warp(top_k=5), Warp(1.3, 20, 0.7), Warp(top_p=0.6)):
        logits = torch.randn(6, 1, 40, generator=generator) * 2
        noise = torch.empty(6, 40).exponential_(generator=generator)
        scores, ids = rank_children(logits, 7, -noise.log(), warp)
        warped = logits[:, 0] / warp.temperature
        for warper in (
            *([TopKLogitsWarper(warp.top_k)] if warp.top_k else []),
            *([TopPLogitsWarper(warp.top_p)] if warp.top_p else []),
        ):
            warped = LogitsProcessorList([warper])(None, warped)
        assert ids[:, 0, 0].tolist() == (warped.softmax(-1) / noise).argmax(-1).tolist()
        assert (scores <= 0).all()
        assert (scores[..., 1:] <= scores[..., :-1]).all()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_draft_tokens": 0}, "`num_draft_tokens` is 0"),
        ({"tree_depth": -1}, "`tree_depth` is -1"),
        ({"tree_top_k": 2.5}, "`tree_top_k` is 2.5"),
        ({"num_draft_tokens": 10_000}, "exceeds 1024"),
        ({"tree_mode": "static", "num_draft_tokens": 100, "tree_depth": 2, "tree_top_k": 3}, "drafts only 12 nodes"),
        ({"tree_mode": "forest"}, "known are 'auto', 'static', 'chain'"),
    ],
)
def test_absurd_tree_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        TreeConfig(**sizes)


def test_chains_have_as_many_tokens_as_levels():
    config = TreeConfig().with_changes("chain", tree_depth=7)
    assert (config.num_draft_tokens, config.tree_top_k, config.is_chain) == (7, 1, True)
    assert config.with_changes("chain", tree_depth=3).num_draft_tokens == 3
    assert TreeConfig().shallower(1).num_draft_tokens == 10
    assert TreeConfig().with_changes("chain", num_draft_tokens=4).tree_depth == 4
    with pytest.raises(ValueError, match="`num_draft_tokens` is 3 and `tree_depth` 6"):
        TreeConfig().with_changes("chain", num_draft_tokens=3, tree_depth=6)
    with pytest.raises(ValueError, match="`shared_noise` is 'no'"):
        TreeConfig().with_changes("static", shared_noise="no")


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(
    "order", [[0, 1, 2, 3, 4], [0, 4, 2], [4, 3], [1, 0, 2, 3, 4], [2, 3, 4], [0, 2, 1], [3]], ids=str
)
def test_rows_are_kept_in_place_where_they_can_be(dim, order):
    storage = torch.arange(5 * 5 * 3.0).view(5, 5, 3)
    expected = storage.index_select(dim, torch.tensor(order))
    kept = kept_entries(storage, order, dim)
    assert torch.equal(kept, expected)
    in_place = all(row == place or row >= len(order) for place, row in enumerate(order))
    assert (kept.data_ptr() == storage.data_ptr()) == in_place


def test_rows_that_end_leave_gaps_that_the_last_ones_fill():
    batch = Batch(torch.zeros(6, 3, dtype=torch.long), 9, 0, 3, None)
    assert batch.remove([1, 4]) == [0, 5, 2, 3]
    assert batch.active == [0, 5, 2, 3]
    assert batch.remove([0, 3]) == [2, 1]
    assert batch.active == [2, 5]
