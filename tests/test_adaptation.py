"""A draft that learns in use: what is kept of answers, what stays as it was, and that more is accepted.

prompt 5 tokens, answer 8   kept as 13 ids with the loss mask 0 0 0 0 0 1 1 1 1 1 1 1 1
"""

import pytest
import torch
from models import left_padded, tiny_draft, tiny_target

import hf_eagle3
from hf_eagle3.generation.observed import OBSERVERS


SMALL = {"training_time_test_steps": 3, "batch_tokens": 64, "learning_rate": 3e-3}


@pytest.fixture
def pair():
    target = tiny_target()
    return target, tiny_draft(target)


def kept(adaptation) -> list[tuple[list[int], list[int]]]:
    return [(ids.tolist(), mask.tolist()) for ids, mask in adaptation._answers]


def test_answers_are_kept_without_padding_and_the_prompt_has_no_loss(pair):
    target, draft = pair
    inputs = left_padded([5, 3])
    with hf_eagle3.adapt(draft, target) as adaptation:
        out = target.generate(**inputs, max_new_tokens=8, do_sample=False, assistant_model=draft.with_tree("chain"))
        first, second = kept(adaptation)
    assert first == (out[0].tolist(), [0] * 5 + [1] * 8)
    assert second == (out[1, 2:].tolist(), [0] * 3 + [1] * 8)
    assert target not in OBSERVERS


def test_other_calls_are_not_kept(pair):
    target, draft = pair
    inputs = left_padded([5])
    with hf_eagle3.adapt(draft, target) as adaptation:
        target.generate(**inputs, max_new_tokens=4)
        target.generate(**inputs, max_new_tokens=4, assistant_model=tiny_draft(target))
        embeds = target.get_input_embeddings()(inputs["input_ids"])
        target.generate(inputs_embeds=embeds, max_new_tokens=4, assistant_model=draft)
        assert adaptation.num_answers == 0
        assert adaptation.step() is None
        with hf_eagle3.attach(target, draft):
            target.generate(**inputs, max_new_tokens=4)
        assert adaptation.num_answers == 1
    target.generate(**inputs, max_new_tokens=4, assistant_model=draft)
    assert adaptation.num_answers == 1


def test_memory_is_bounded_and_the_oldest_answers_go(pair):
    target, draft = pair
    with hf_eagle3.adapt(draft, target, max_tokens=30, max_length=12) as adaptation:
        for number in range(6):
            adaptation.see(torch.arange(8 + number), 2)
        assert [len(ids) for ids, _ in kept(adaptation)] == [12, 12]
        assert adaptation.num_tokens == 24


@pytest.mark.parametrize("lora_rank", [None, 4])
def test_more_is_accepted_and_nothing_else_changes(pair, lora_rank):
    """The text, sampled text, torch's generator, the target, and the draft's own objects stay."""
    if lora_rank:
        pytest.importorskip("peft")
    target, draft = pair
    before = {name: value.clone() for name, value in target.state_dict().items()}
    grads = [p.requires_grad for p in target.parameters()]
    view, inputs = draft.with_tree("chain", tree_depth=3), left_padded([6, 5, 4, 7])
    greedy = {"max_new_tokens": 24, "do_sample": False}
    sampled = {"max_new_tokens": 12, "do_sample": True}
    plain = target.generate(**inputs, **greedy)
    torch.manual_seed(3)
    plain_sample, after_sample = target.generate(**inputs, **sampled), torch.rand(1)
    weight, storage = draft.fc.weight, draft.fc.weight.data_ptr()
    start = {name: value.clone() for name, value in draft.state_dict().items()}

    torch.manual_seed(3)
    rate = 2e-2 if lora_rank else 3e-3  # an adapter starts at zero
    options = SMALL | {"lora_rank": lora_rank, "learning_rate": rate}
    with hf_eagle3.adapt(draft, target, **options) as adaptation:
        with hf_eagle3.record() as first:
            assert torch.equal(target.generate(**inputs, **greedy, assistant_model=view), plain)
        adaptation.step(60)
        with hf_eagle3.record() as last:
            assert torch.equal(target.generate(**inputs, **greedy, assistant_model=view), plain)
        assert torch.equal(target.generate(**inputs, **sampled, assistant_model=view), plain_sample)
        assert torch.equal(torch.rand(1), after_sample)
    assert adaptation.num_steps == len(adaptation.losses) == 60
    # An adapter of rank 4 beside a random, frozen head can do less.
    loss, tau = (0.95, 1.05) if lora_rank else (0.9, 1.2)
    assert adaptation.losses[-1] < loss * adaptation.losses[0]
    assert last.acceptance_length > tau * first.acceptance_length
    torch.testing.assert_close(target.state_dict(), before, rtol=0, atol=0)
    assert [p.requires_grad for p in target.parameters()] == grads
    assert all(p.grad is None for p in target.parameters())
    assert draft.fc.weight is weight
    assert weight.data_ptr() == storage
    changed = {name for name, value in draft.state_dict().items() if not torch.equal(value, start[name])}
    assert "midlayer.self_attn.q_proj.weight" in changed
    assert ("lm_head.weight" in changed) == (lora_rank is None)
    assert not {"d2t", "t2d"} & changed


def test_a_draft_in_half_precision_keeps_its_dtype_and_learns(pair):
    target, draft = pair
    target, draft = target.to(torch.bfloat16), draft.to(torch.bfloat16)
    with hf_eagle3.adapt(draft, target, **SMALL | {"learning_rate": 1e-4}) as adaptation:
        adaptation.see(torch.arange(2, 22) % 24, 3)
        weight = draft.fc.weight.clone()
        adaptation.step(3)
    assert draft.fc.weight.dtype == torch.bfloat16
    moved = adaptation._trained.fc.weight - weight.float()
    assert moved.abs().max() > 0
    torch.testing.assert_close(draft.fc.weight, adaptation._trained.fc.weight.to(torch.bfloat16), rtol=0, atol=0)


def test_what_is_refused_says_why(pair):
    target, draft = pair
    with pytest.raises(ValueError, match="only an `Eagle3DraftModel`"):
        hf_eagle3.adapt(target, target)
    with pytest.raises(ValueError, match="`learning_rate` is 0"):
        hf_eagle3.adapt(draft, target, learning_rate=0)
    with hf_eagle3.adapt(draft, target), pytest.raises(ValueError, match="has an adaptation already"):
        hf_eagle3.adapt(draft, target)
    target.resize_token_embeddings(30)
    with pytest.raises(ValueError, match=r"24 tokens .*target has 30"):
        hf_eagle3.adapt(draft, target)


def test_a_loss_that_is_not_finite_leaves_the_draft_as_it_was(pair):
    target, draft = pair
    with hf_eagle3.adapt(draft, target, **SMALL) as adaptation:
        adaptation.see(torch.arange(2, 22) % 24, 3)
        adaptation._trained.fc.weight.data.fill_(torch.inf)
        with pytest.raises(FloatingPointError, match="lower `learning_rate`"):
            adaptation.step()
    assert draft.fc.weight.isfinite().all()
