"""Attention implementations: a tree under sdpa where the target's own takes no tree mask, a chain where sdpa cannot
stand in.

    loaded with             a prompt is read by    trees are verified by
    sdpa, eager             itself                 itself
    FlashAttention, flex    itself                 sdpa     (gemma2, gpt_oss, falcon: chains, by itself)

FlashAttention is played by a stub under its names: it refuses every 4-D mask.
"""

import pytest
import torch
from architectures import tiny_model
from models import left_padded, tiny_draft, tiny_target
from node_criterion import worst_node_error
from test_loading import assert_text
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import flash_attention_mask

from hf_eagle3.generation.verify import tree_pass as target_pass
from hf_eagle3.target.mode import decoding_mode


FLASH_NAMES = ("flash_attention_2", "flash_attention_3", "kernels-community/flash-attn3")


def stub_flash(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **kwargs):
    """What FlashAttention computes: causal from the last key backwards, a window, 2-D padding masks but no others."""
    if attention_mask is not None and attention_mask.dim() != 2:
        raise TypeError("FlashAttention takes no 4-D mask")
    length, width = query.shape[2], key.shape[2]
    behind = torch.arange(width - length, width)[:, None] - torch.arange(width)
    seen = (behind >= 0) & (behind < (sliding_window or width))
    if attention_mask is not None:
        seen = seen & attention_mask[:, None, None, -width:].bool()
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).nan_to_num(), None


@pytest.fixture
def flash(monkeypatch):
    """`flash(model, name)` loads it with a stub, under a name of the real ones; gone after the test."""
    monkeypatch.setattr(AttentionInterface, "_global_mapping", dict(AttentionInterface._global_mapping))
    monkeypatch.setattr(AttentionMaskInterface, "_global_mapping", dict(AttentionMaskInterface._global_mapping))
    monkeypatch.setattr(target_pass.logger, "warning_once", lambda text: warned.append(text))
    warned = []

    def load(model, name):
        AttentionInterface.register(name, stub_flash)
        AttentionMaskInterface.register(name, flash_attention_mask)
        model.config._attn_implementation = name
        return model

    load.warned = warned
    return load


@pytest.mark.parametrize("name", FLASH_NAMES)
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3"])
def test_flash_attention_reads_and_sdpa_verifies(architecture, name, flash):
    target = tiny_target(architecture)
    draft = tiny_draft(target)
    flash(target, name)
    assert_text(target, draft)
    assert worst_node_error(target, left_padded([21, 9, 15]), num_nodes=12, cycles=2) < 1e-4
    assert flash.warned
    assert set(flash.warned) == {flash.warned[0]}, "said once: always the same text"
    assert f"{name} takes no tree mask" in flash.warned[0]
    assert target.config._attn_implementation == name


def test_plain_passes_go_where_they_went(flash):
    """Wrapping an attention implementation changes nothing but passes under additive 4-D masks."""
    target = flash(tiny_target(), "flash_attention_2")
    inputs = left_padded([13, 4, 9])
    before = target(**inputs).logits
    target.generate(**inputs, max_new_tokens=5, do_sample=False, assistant_model=tiny_draft(tiny_target()))
    assert torch.equal(target(**inputs).logits, before)
    with pytest.raises(TypeError, match="no 4-D mask"):
        target(inputs["input_ids"], attention_mask=torch.ones(3, 1, 13, 13, dtype=torch.bool))


@pytest.mark.parametrize("changes", [{}, {"attn_logit_softcapping": 1.0}], ids=["no sdpa", "soft-capped"])
def test_where_sdpa_cannot_stand_in_flash_attention_verifies_chains(changes, flash, monkeypatch):
    target = tiny_target("gemma3", **changes)
    monkeypatch.setattr(type(target.get_decoder()), "_supports_sdpa", bool(changes))
    draft = tiny_draft(target)
    flash(target, "flash_attention_2")
    assert_text(target, draft, mode="chain")
    assert not flash.warned
    mode = decoding_mode(target, DynamicCache(config=target.config))
    assert "flash_attention_2 takes no tree mask, and sdpa cannot replace it" in mode.reason


@pytest.mark.parametrize(
    ("name", "kind"), [("llama", "tree"), ("falcon", "chain"), ("gemma2", "chain"), ("gpt_neo", "chain")]
)
def test_which_architectures_let_sdpa_stand_in(name, kind):
    """Gemma 2 has soft-caps; Falcon and GPT-Neo choose a class of their own for FlashAttention."""
    target = tiny_model(name)
    target.config._attn_implementation = "flash_attention_2"
    assert decoding_mode(target, DynamicCache(config=target.config)).kind == kind


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")  # what the host gives
def test_flex_attention():
    target = tiny_target("gemma3")
    draft = tiny_draft(target)
    target.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"):  # else every shape is compiled for a minute
        assert_text(target, draft, lengths=([13, 4],))
        assert worst_node_error(target, left_padded([15, 9]), num_nodes=8, cycles=2) < 1e-4
