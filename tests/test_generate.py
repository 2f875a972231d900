"""Text with a draft equals text without, token for token: greedy and sampling, one row and ragged batches.

target.generate(prompt)                          -> 5 9 3 3 7 ...
target.generate(prompt, assistant_model=draft)   -> 5 9 3 3 7 ...     same ids, same generator state afterwards
"""

import pytest
import torch
from models import CHAIN_TARGETS, TREE_TARGETS, left_padded, tiny_draft, tiny_target

import hf_eagle3


ALL_TARGETS = (*TREE_TARGETS, *CHAIN_TARGETS)
PROMPTS = ([11], [13, 4, 9])
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 12, "top_p": 0.95}


@pytest.fixture(scope="module", params=ALL_TARGETS)
def pair(request):
    target = tiny_target(request.param)
    return target, tiny_draft(target)


def both(target, draft, inputs: dict, seed: int = 0, **options):
    """(plain, speculative) sequences and the generator states after them."""
    results = []
    for assistant in ({}, {"assistant_model": draft}):
        torch.manual_seed(seed)
        results.append((target.generate(**inputs, **options, **assistant), torch.get_rng_state()))
    return results


def assert_same(target, draft, inputs: dict, **options) -> "hf_eagle3.SpeculationStats":
    with hf_eagle3.record() as stats:
        (plain, state), (ours, our_state) = both(target, draft, inputs, **options)
    assert ours.tolist() == plain.tolist()
    assert torch.equal(our_state, state)
    return stats


@pytest.mark.parametrize("lengths", PROMPTS, ids=str)
def test_greedy_text_is_identical(pair, lengths):
    stats = assert_same(*pair, left_padded(lengths), max_new_tokens=40, do_sample=False)
    assert sum(sum(row) for row in stats.accepted_tokens) > 0, "nothing was accepted: the test shows nothing"


@pytest.mark.parametrize("lengths", PROMPTS, ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sampled_text_is_identical_with_the_same_seed(pair, lengths, seed):
    stats = assert_same(*pair, left_padded(lengths), seed=seed, max_new_tokens=30, **SAMPLING)
    assert sum(sum(row) for row in stats.accepted_tokens) > 0


@pytest.mark.parametrize("do_sample", [False, True])
def test_rows_that_end_early_are_padded_as_in_plain_generate(pair, do_sample):
    inputs = left_padded([13, 4, 9, 7, 11, 3])
    options = {"max_new_tokens": 40, "do_sample": do_sample, "eos_token_id": [5, 6, 7]}
    stats = assert_same(*pair, inputs, **options)
    assert len(set(stats.generated_lengths)) > 1, "all rows ended together: the test shows nothing"


@pytest.mark.parametrize("mode", ["static", "chain"])
@pytest.mark.parametrize("shared_noise", [True, False])
def test_every_tree_shape_gives_the_same_text(mode, shared_noise):
    target = tiny_target()
    draft = tiny_draft(target)
    shapes = [{"tree_depth": 1}, {"tree_depth": 5}] if mode == "chain" else [
        {"num_draft_tokens": 1, "tree_depth": 8, "tree_top_k": 2},
        {"num_draft_tokens": 3, "tree_depth": 1, "tree_top_k": 3},
        {"num_draft_tokens": 60, "tree_depth": 3, "tree_top_k": 6},
    ]  # fmt: skip
    for shape in shapes:
        view = draft.with_tree(mode, shared_noise=shared_noise, **shape)
        for options in ({"do_sample": False}, SAMPLING):
            assert_same(target, view, left_padded([6, 12]), max_new_tokens=25, **options)


def test_num_return_sequences_and_unequal_rows():
    target = tiny_target()
    draft = tiny_draft(target)
    options = {"max_new_tokens": 30, "num_return_sequences": 4, "eos_token_id": 5}
    assert_same(target, draft, left_padded([9]), **options, **SAMPLING)
    assert_same(target, draft, left_padded([9, 5]), **options, **SAMPLING)


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 7])
def test_the_length_limit_is_met_exactly(pair, max_new_tokens):
    inputs = left_padded([5, 8])
    assert_same(*pair, inputs, max_new_tokens=max_new_tokens, do_sample=False)
    ours = pair[0].generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, assistant_model=pair[1])
    assert ours.shape[1] == 8 + max_new_tokens


def test_learned_positions_are_never_exceeded():
    target = tiny_target("gpt2")  # 96 positions
    assert_same(target, tiny_draft(target), left_padded([20]), max_length=96, do_sample=False)


def test_prompts_longer_than_the_drafts_position_hint():
    target = tiny_target()
    draft = tiny_draft(target, max_position_embeddings=16)
    assert_same(target, draft, left_padded([50]), max_new_tokens=20, do_sample=False)


def test_draft_of_another_dtype_and_bf16_target_run():
    target = tiny_target().to(torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32):
        out = target.generate(
            **left_padded([9]), max_new_tokens=20, do_sample=False, assistant_model=tiny_draft(target).to(dtype)
        )
        assert out.shape == (1, 29)


def test_the_mode_follows_the_target(pair):
    target, draft = pair
    with hf_eagle3.record() as stats:
        target.generate(**left_padded([9]), max_new_tokens=5, do_sample=False, assistant_model=draft)
    assert stats.mode == ("chain" if target.config.model_type in CHAIN_TARGETS else "tree")
