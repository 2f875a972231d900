"""Grouped heads under a tree mask: packed into the query axis, they give what repeating their keys gives."""

import pytest
import torch
from models import left_padded, tiny_draft, tiny_target
from transformers import AttentionInterface
from transformers.integrations import sdpa_attention as host

import hf_eagle3
from hf_eagle3.generation.ops.grouped_attention import PACKED_QUERIES, packed_mask
from hf_eagle3.generation.verify import attention
from hf_eagle3.generation.verify.attention import share_mask, take_tree_masks


class Module:
    num_key_value_groups = 3
    is_causal = True


def inputs(length: int, rows: int = 2, values: int = 8, mask_rows: int = 2):
    torch.manual_seed(0)
    query = torch.randn(rows, length, 6, 8).transpose(1, 2)  # laid out as models have it
    key, value = torch.randn(rows, 2, 11, 8), torch.randn(rows, 2, 11, values)
    seen = torch.rand(mask_rows, 1, length, 11) < 0.6
    seen[..., 0] = True
    return query, key, value, torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


@pytest.fixture
def ours(monkeypatch):
    monkeypatch.setattr(AttentionInterface, "_global_mapping", dict(AttentionInterface._global_mapping))
    take_tree_masks("sdpa")
    return AttentionInterface()["sdpa"]


@pytest.fixture
def no_repeats(monkeypatch):
    def repeat_kv(states, times):
        raise AssertionError("keys are repeated")

    monkeypatch.setattr(host, "repeat_kv", repeat_kv)


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("values", [8, 5])
@pytest.mark.parametrize("mask_rows", [1, 2])
@pytest.mark.parametrize("length", [1, 7, PACKED_QUERIES])
def test_packed_equals_repeated(length, mask_rows, values, scaling, ours):
    given = inputs(length, values=values, mask_rows=mask_rows)
    expected, _ = host.sdpa_attention_forward(Module, *given, scaling=scaling)
    found, weights = ours(Module, *given, scaling=scaling)
    assert weights is None
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [1, 7, PACKED_QUERIES + 1])
def test_a_shared_mask_gives_the_same_to_every_layer(length, ours):
    *states, mask = inputs(length)
    expected, _ = ours(Module, *states, mask)
    shared = share_mask(mask.clone(), hides_nothing=False)
    for _ in range(2):
        found, _ = ours(Module, *states, shared)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("heads", [2, 6])
def test_a_mask_that_hides_nothing_is_left_out(heads, ours, monkeypatch):
    query, key, value, mask = inputs(1)
    given = query[:, :heads], key, value, torch.zeros_like(mask)
    monkeypatch.setattr(Module, "num_key_value_groups", heads // 2)
    expected, _ = ours(Module, *given)
    given = *given[:3], share_mask(torch.full_like(mask, torch.nan), hides_nothing=True)
    found, _ = ours(Module, *given)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_pass_packs_its_mask_once(monkeypatch):
    target, packed = tiny_target(), []
    draft, prompts = tiny_draft(target), left_padded([13, 4, 9])
    monkeypatch.setattr(
        attention, "packed_mask", lambda mask, groups: (packed.append(mask), packed_mask(mask, groups))[1]
    )
    with hf_eagle3.record() as stats:
        target.generate(**prompts, max_new_tokens=20, do_sample=False, assistant_model=draft)
    assert 0 < len(packed) <= stats.num_iterations < len(packed) * target.config.num_hidden_layers


def test_no_key_is_repeated(ours, no_repeats):
    ours(Module, *inputs(7))


@pytest.mark.parametrize("changed", ["many queries", "boolean", "mask per head", "position bias", "dropout"])
def test_the_rest_is_the_hosts(changed, ours, no_repeats):
    query, key, value, mask = inputs(PACKED_QUERIES + 1 if changed == "many queries" else 7)
    options = {}
    if changed == "boolean":
        mask = mask == 0
    elif changed == "mask per head":
        mask = mask.expand(-1, 6, -1, -1)
    elif changed == "position bias":
        options["position_bias"] = torch.zeros(1, 6, 7, 11)
    elif changed == "dropout":
        options["dropout"] = 0.1
    with pytest.raises(AssertionError, match="keys are repeated"):
        ours(Module, query, key, value, mask, **options)


def test_trees_are_verified_without_repeated_keys(monkeypatch):
    target = tiny_target()
    heads = target.config.num_attention_heads, target.config.num_key_value_heads
    assert heads[0] > heads[1], "the target has no grouped heads"
    draft, prompts = tiny_draft(target), left_padded([13, 4, 9])
    target.generate(**prompts, max_new_tokens=5, do_sample=False, assistant_model=draft)  # what is done once is done
    widths = []
    repeat_kv = host.repeat_kv

    def watched(states, times):
        widths.append(states.shape[2])
        return repeat_kv(states, times)

    monkeypatch.setattr(host, "repeat_kv", watched)
    target.generate(**prompts, max_new_tokens=20, do_sample=False, assistant_model=draft)
    assert set(widths) <= {13}, f"keys were repeated in passes after the prompt's: {sorted(set(widths))}"
