"""Tiny replicas of public repositories load with the right taps, norms, head, embedding and mapping, or are refused.

deepseek-ai/eagle3_qwen3_8b_ttt7   layers.0.*, five taps, q and k norms, no mapping      -> loads
amazon/gpt-oss-120b-p-eagle        a tensor `mask_hidden`                                 -> "a parallel drafter"

Sizes are scaled down; everything else is as published (`replica_data.py`, which says what was read where).
"""

import json
import re

import pytest
import torch
from models import tiny_target
from replica_data import REPLICAS, Replica
from safetensors.torch import save_file
from transformers import LlamaConfig

from hf_eagle3 import Eagle3Config, Eagle3DraftModel
from hf_eagle3.configuration_eagle3 import OPTIONAL_FLAGS
from hf_eagle3.dialect_keys import meaning_of
from hf_eagle3.dialects import foreign_kind
from hf_eagle3.target.target import check_fit


HIDDEN, MIDDLE, HEADS, KV_HEADS, HEAD_DIM, VOCAB, DRAFT_VOCAB = 16, 24, 4, 2, 8, 12, 5
FLAGS = (*OPTIONAL_FLAGS, "attention_bias", "mlp_bias")


def scaled(config: dict) -> dict:
    """`config` with tiny sizes where it states sizes."""
    whole = config.get("draft_vocab_size") == config.get("vocab_size")
    sizes = {"hidden_size": HIDDEN, "intermediate_size": MIDDLE, "num_attention_heads": HEADS, "head_dim": HEAD_DIM}
    sizes |= {
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "draft_vocab_size": VOCAB if whole else DRAFT_VOCAB,
    }
    out = {name: sizes.get(name, value) for name, value in config.items()}
    for name in ("transformer_layer_config", "model"):
        if isinstance(out.get(name), dict):
            out[name] = scaled(out[name])
    return out


def tensors_of(replica: Replica, config: dict) -> dict[str, torch.Tensor]:
    """Random tensors by published name."""
    torch.manual_seed(0)
    layer = config.get("transformer_layer_config") or config
    eagle = config.get("eagle_config") or {}
    size = layer.get("head_dim", HIDDEN // HEADS)
    taps = len(config.get("target_layer_ids") or eagle.get("eagle_aux_hidden_state_layer_ids") or (0, 0, 0))
    shapes = dict.fromkeys(replica.further, (2, 2))
    if replica.names != "other":
        prefix, _, has_qk_norm = replica.names.partition(" ")
        top = "model." if prefix.startswith("model.") else ""
        shapes |= {f"{top}fc.weight": (HIDDEN, taps * HIDDEN), f"{top}norm.weight": (HIDDEN,)}
        for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{name}.weight"] = (HIDDEN,)
        for name, rows in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (rows * size, 2 * HIDDEN)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (HIDDEN, HEADS * size)
        shapes |= {f"{prefix}.mlp.{name}_proj.weight": (MIDDLE, HIDDEN) for name in ("gate", "up")}
        shapes[f"{prefix}.mlp.down_proj.weight"] = (HIDDEN, MIDDLE)
        if has_qk_norm:
            shapes |= {f"{prefix}.self_attn.{name}_norm.weight": (size,) for name in "qk"}
        if config.get("norm_before_fc") or eagle.get("norm_before_fc"):
            shapes[f"{top}input_norm.weight"] = (taps * HIDDEN,)
        if config.get("fc_norm"):
            shapes |= {f"{top}fc_norm.{i}.weight": (HIDDEN,) for i in range(taps)}
        if replica.head:
            shapes["lm_head.weight"] = (config.get("draft_vocab_size", VOCAB), HIDDEN)
        if replica.embed:
            shapes[f"{top}embed_tokens.weight"] = (VOCAB, HIDDEN)
    stored = {name: torch.randn(shape) for name, shape in shapes.items()}
    if replica.names != "other" and config.get("draft_vocab_size", VOCAB) < VOCAB:
        stored["d2t"] = torch.tensor([2, 3, 3, 5, 7])  # target ids 2 4 5 8 11
        if replica.t2d:
            stored["t2d"] = torch.isin(torch.arange(VOCAB), torch.tensor([2, 4, 5, 8, 11]))
    return stored


def native(name: str) -> str:
    """Our name of a published tensor, by hand."""
    for theirs, ours in (("model.layers.0.", "midlayer."), ("layers.0.", "midlayer."), ("model.", "")):
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def written(folder, replica: Replica) -> dict[str, torch.Tensor]:
    config = scaled(replica.config)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = tensors_of(replica, config)
    save_file(tensors, folder / "model.safetensors")
    return tensors


def test_there_are_enough_of_them():
    assert len(REPLICAS) == len({r.repository for r in REPLICAS}) >= 60
    assert len({r.publisher for r in REPLICAS}) >= 20
    assert {r.seen for r in REPLICAS} == {"config", "code", "card"}
    for replica in REPLICAS:
        assert replica.source.startswith("https://")
        assert bool(replica.expects) != bool(replica.refused)


@pytest.mark.parametrize("replica", [r for r in REPLICAS if r.refused is None], ids=lambda r: r.repository)
def test_a_published_layout_loads(tmp_path, caplog, replica):
    tensors = written(tmp_path, replica)
    draft = Eagle3DraftModel.from_pretrained(tmp_path, dtype=torch.float32)
    config, expects = draft.config, replica.expects
    assert "unknown keys" not in caplog.text
    target = LlamaConfig(
        hidden_size=HIDDEN, num_attention_heads=HEADS, vocab_size=VOCAB, num_hidden_layers=replica.layers
    )
    assert check_fit(target, config) == expects["taps"]
    rope = config.rope_parameters
    assert (rope["rope_theta"], rope.get("rope_type")) == (expects["theta"], expects.get("rope", "default"))
    assert [name for name in FLAGS if vars(config)[name]] == expects.get("flags", [])
    assert config.num_hidden_layers == 1
    assert config.sliding_window is None
    if "made_for" in expects:
        assert config.target_name_or_path == expects["made_for"]
    ids = draft.target_token_ids
    assert (None if ids is None else ids.tolist()) == ([2, 4, 5, 8, 11] if "d2t" in tensors else None)
    assert (draft.lm_head is not None, draft.embed_tokens is not None) == (replica.head, replica.embed)
    state = draft.state_dict()
    assert state.keys() - {"t2d"} == {native(name) for name in tensors} - {"t2d"}
    for name, tensor in tensors.items():
        assert torch.equal(state[native(name)], tensor), name


@pytest.mark.parametrize("replica", [r for r in REPLICAS if r.refused], ids=lambda r: r.repository)
def test_another_kind_is_refused_by_name(tmp_path, replica):
    tensors = written(tmp_path, replica)
    with pytest.raises(ValueError, match=replica.refused):
        Eagle3DraftModel.from_pretrained(tmp_path)
    if "use_aux_hidden_state" not in replica.refused:
        assert foreign_kind(replica.config, [native(name) for name in tensors]) is not None


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("mask_hidden", "fc.weight", "norm.weight", "midlayer.hidden_norm.weight"), "p-eagle"),
        (("midlayer.self_attn.kv_a_proj_with_mqa.weight",), "eagle3-mla"),
        (("hidden_norm.weight", "fc.weight", "norm.weight"), "block"),
        (("fc.weight", "fc.bias", "embed_tokens.weight"), "eagle"),
        (("0.0.linear.weight", "0.1.weight"), "medusa"),
        (("fc.weight", "norm.weight", "midlayer.hidden_norm.weight", "lm_head.weight"), None),
    ],
    ids=str,
)
def test_the_tensors_alone_say_what_it_is(names, kind):
    found = foreign_kind({}, names)
    assert (found and found[0]) == kind


def test_every_key_is_read_refused_or_ignored_for_a_reason():
    def keys(config):
        for name, value in config.items():
            yield name
            if name in ("eagle_config", "transformer_layer_config"):
                yield from keys(value)

    counts = {"read": 0, "ignored": 0, "refused": 0}
    refused_files = {r.repository for r in REPLICAS if r.refused}
    for replica in REPLICAS:
        for key in set(keys(replica.config)):
            meaning, why = meaning_of(key)
            if meaning == "unknown":  # only in files that are refused as a whole
                assert replica.repository in refused_files, f"{replica.repository}: `{key}`"
                continue
            assert why
            assert meaning != "refused" or replica.refused or replica.config[key] in (None, False), key
            counts[meaning] += 1
    assert min(counts.values()) > 10


# -- AutoModel writes the target's whole configuration ----------------------------------------------------------------

AUTOMODEL = {"architectures": ["LlamaEagle3DraftModel"], "attn_implementation": "eager", "parallel_drafting": False}
AUTOMODEL |= {"fc_norm": False, "norm_output": False, "draft_vocab_size": DRAFT_VOCAB, "tie_word_embeddings": False}


@pytest.mark.parametrize("fc_norm", [False, True])
def test_a_draft_of_automodel(tmp_path, caplog, fc_norm):
    """`model.` before its names; layers, windows and activation of the target, which the draft does not have."""
    layers = ["sliding_attention", "full_attention"] * 6
    raw = tiny_target().config.to_dict() | AUTOMODEL | {"fc_norm": fc_norm, "layer_types": layers}
    raw |= {"num_hidden_layers": 12, "sliding_window": 8, "hidden_activation": "gelu_pytorch_tanh", "hidden_act": None}
    raw |= {"target_hidden_size": raw["hidden_size"]}
    replica = Replica("", "code", "", raw, 12, "model.layers.0", embed=True)
    tensors = written(tmp_path, replica)
    draft = Eagle3DraftModel.from_pretrained(tmp_path, target_hidden_size=HIDDEN)
    assert "unknown keys" not in caplog.text
    assert (draft.config.sliding_window, draft.config.num_hidden_layers) == (None, 1)
    assert (draft.config.hidden_act, draft.config.fc_norm) == ("gelu_pytorch_tanh", fc_norm)
    for name, tensor in tensors.items():
        assert torch.equal(draft.state_dict()[native(name)], tensor), name


def test_multimodal_rope_is_the_plain_one_on_text(caplog):
    sizes = {"vocab_size": VOCAB, "draft_vocab_size": DRAFT_VOCAB, "hidden_size": 32, "num_attention_heads": 4}
    rope = {"type": "default", "rope_type": "default", "mrope_interleaved": True, "mrope_section": [2, 1, 1]}
    plain = Eagle3Config.from_dict(sizes | {"rope_theta": 5e6})
    config = Eagle3Config.from_dict(sizes | {"rope_theta": 5e6, "rope_scaling": rope})
    assert config.rope_parameters == plain.rope_parameters
    assert re.search(r"multimodal RoPE \(`mrope_section`\)", caplog.text)
