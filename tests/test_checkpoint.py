"""Checkpoints of every dialect load to the same draft; damaged, renamed or foreign ones name what is wrong.

midlayer.mlp.up_proj.weight   SafeAILab, SpecForge, SGLang          layers.0.mlp.up_proj.weight   speculators, newer
writers
"""

import json
import os
import shutil

import pytest
import torch
from conftest import DATA
from models import VOCAB, tiny_draft, tiny_target
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from hf_eagle3 import Eagle3Config, Eagle3DraftModel, embedded
from hf_eagle3.cli import main


PARITY = DATA / "parity"
IDS = "eagle_aux_hidden_state_layer_ids"


@pytest.fixture
def folder(tmp_path):
    """A writable copy of a plain draft."""
    shutil.copytree(PARITY / "specforge_tiny", tmp_path / "draft")
    return tmp_path / "draft"


def edit_config(folder, **changes):
    raw = json.loads((folder / "config.json").read_text())
    raw.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))


def edit_tensors(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def logits(draft):
    torch.manual_seed(0)
    size = draft.config.hidden_size
    return draft(torch.randn(1, 7, size), torch.randn(1, 7, draft.config.fused_features_size)).logits


@pytest.mark.parametrize(
    ("name", "recorded", "length"),
    [
        ("specforge_tiny", "recorded_specforge_tiny_7steps", 48),
        ("speculators_tiny", "recorded_speculators_tiny_7steps", 47),
        ("speculators_fullvocab", "recorded_speculators_fullvocab_3steps", 47),
    ],
)
def test_recorded_logits_of_both_public_trainers(name, recorded, length):
    """Step 0 of training-time test, as SpecForge and speculators computed it; only positions below 47 are valid."""
    draft = Eagle3DraftModel.from_pretrained(PARITY / name)
    inputs = load_file(PARITY / "inputs.safetensors")
    rows = load_file(PARITY / "speculators_tiny" / "model.safetensors")["embed_tokens.weight"]  # the target's
    out = draft(inputs_embeds=rows[inputs["input_ids"][:, 1:]], target_features=inputs["aux_hidden_states"][:, :-1])
    expected = load_file(PARITY / f"{recorded}.safetensors")["logits_0"]
    assert expected.shape[1] == length
    torch.testing.assert_close(out.logits, expected[:, :47], rtol=0, atol=1e-5)


def test_a_shifted_position_or_feature_is_seen():
    draft = Eagle3DraftModel.from_pretrained(PARITY / "specforge_tiny")
    inputs = load_file(PARITY / "inputs.safetensors")
    rows = load_file(PARITY / "speculators_tiny" / "model.safetensors")["embed_tokens.weight"]
    expected = load_file(PARITY / "recorded_specforge_tiny_7steps.safetensors")["logits_0"][:, :47]
    embeds, features = rows[inputs["input_ids"]], inputs["aux_hidden_states"]
    wrong_features = draft(inputs_embeds=embeds[:, 1:], target_features=features[:, 1:]).logits
    stretched = draft(embeds[:, 1:], features[:, :-1], position_ids=2 * torch.arange(47)[None]).logits
    for wrong in (wrong_features, stretched):
        assert (wrong - expected).abs().max() > 1e-2


def test_dialects_hold_the_same_draft():
    plain = Eagle3DraftModel.from_pretrained(PARITY / "specforge_tiny", target_layer_ids=[1, 3, 4])
    other = Eagle3DraftModel.from_pretrained(PARITY / "speculators_tiny")
    assert other.config.target_layer_ids == [1, 3, 4]
    assert other.config.has_embed_tokens
    torch.testing.assert_close(logits(plain), logits(other))


@pytest.mark.parametrize("kind", ["bin", "sharded", "layers.0", "no t2d", "int32 d2t"])
def test_every_way_to_store_it(folder, kind):
    expected = logits(Eagle3DraftModel.from_pretrained(folder))
    tensors = load_file(folder / "model.safetensors")
    if kind == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    elif kind == "sharded":
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        shards = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
        for file, part in shards.items():
            save_file({name: tensors[name] for name in part}, folder / file)
        index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif kind == "layers.0":
        save_file({n.replace("midlayer.", "layers.0."): t for n, t in tensors.items()}, folder / "model.safetensors")
    elif kind == "no t2d":
        edit_tensors(folder, lambda t: t.pop("t2d"))
    else:
        edit_tensors(folder, lambda t: t.update(d2t=t["d2t"].int()))
    torch.testing.assert_close(logits(Eagle3DraftModel.from_pretrained(folder)), expected, rtol=0, atol=0)


def test_the_originals_config_means_what_its_code_does(folder):
    """No rope_theta means 10000, a stated layer count is ignored, head_dim is derived."""
    edit_config(
        folder,
        architectures=["LlamaForCausalLM"],
        num_hidden_layers=40,
        rope_theta=...,
        rope_parameters=...,
        head_dim=...,
        max_position_embeddings=2048,
    )
    draft = Eagle3DraftModel.from_pretrained(folder)
    assert draft.config.rope_parameters["rope_theta"] == 10000.0
    assert draft.config.num_hidden_layers == 1
    assert draft.config.head_dim == 16
    other = Eagle3DraftModel.from_pretrained(folder, rope_theta=500000.0)
    assert other.config.rope_parameters["rope_theta"] == 500000.0
    assert not torch.equal(logits(draft), logits(other))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_before_residual": True},
        {"norm_before_fc": True},
        {"fc_norm": True, "norm_output": True},
        {"use_qk_norm": True, "attention_bias": True},
        {"num_hidden_layers": 3},
        {"target_layer_ids": [0, 1, 2, 3, 5]},
        {"target_hidden_size": 96, "has_embed_tokens": True},
        {"draft_vocab_size": 128},
        {"has_lm_head": False},
        {"sliding_window": 64, "num_hidden_layers": 2},
        {"target_name_or_path": "org/target", "target_revision": "0123abc"},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 64, "rope_theta": 5e5}},
    ],
    ids=str,
)  # fmt: skip
def test_every_flag_survives_a_round_trip(tmp_path, changes):
    fields = {"vocab_size": 128, "draft_vocab_size": 64, "hidden_size": 64, "intermediate_size": 96}
    fields |= {"num_attention_heads": 4, "num_key_value_heads": 2, "target_layer_ids": [1, 3, 4]}
    torch.manual_seed(0)
    draft = Eagle3DraftModel(Eagle3Config(**fields | changes)).eval()
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    draft.with_tree("chain", tree_depth=3).save_pretrained(tmp_path)
    loaded = Eagle3DraftModel.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == draft.state_dict().keys()
    for name, tensor in draft.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    own = {"dtype": None, "_name_or_path": None}
    assert loaded.config.to_dict() | own == draft.config.to_dict() | own
    assert loaded.tree_config == draft.with_tree("chain", tree_depth=3).tree_config
    if draft.config.has_lm_head:
        torch.testing.assert_close(logits(loaded), logits(draft), rtol=0, atol=0)


def test_a_window_hides_what_is_older():
    fields = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    torch.manual_seed(0)
    draft = Eagle3DraftModel(Eagle3Config(**fields, sliding_window=3)).eval()
    embeds, features = torch.randn(1, 8, 16), torch.randn(1, 8, 48)
    before = draft(embeds, features).logits
    features[:, 2] += 1
    for mask in (None, torch.ones(1, 8)):
        changed = (draft(embeds, features, attention_mask=mask).logits - before).abs().amax(-1)[0] > 1e-6
        assert changed.tolist() == [False, False, True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("layer", "window"),
    [
        ({"sliding_window": 64}, None),  # stated, used by no layer
        ({"sliding_window": 64, "layer_types": ["full_attention"]}, None),
        ({"sliding_window": 64, "layer_types": ["sliding_attention"]}, 64),
        ({"sliding_window": None, "layer_types": ["sliding_attention"]}, None),
        ({"sliding_window": 64, "use_sliding_window": True}, None),  # Qwen3: from layer 28 on
        ({"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 0}, 64),
    ],
    ids=str,
)
def test_the_window_of_speculators_drafts(tmp_path, layer, window):
    """speculators 0.9.0 trains with a window of 2048 unless told otherwise."""
    shutil.copytree(PARITY / "speculators_tiny", tmp_path / "draft")
    raw = json.loads((tmp_path / "draft" / "config.json").read_text())
    raw["transformer_layer_config"] |= layer
    (tmp_path / "draft" / "config.json").write_text(json.dumps(raw))
    assert Eagle3DraftModel.from_pretrained(tmp_path / "draft").config.sliding_window == window


def test_what_is_written_is_the_plain_directory(tmp_path):
    draft = Eagle3DraftModel.from_pretrained(PARITY / "speculators_tiny")
    draft.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["architectures"] == ["LlamaForCausalLMEagle3"]
    assert raw["model_type"] == "llama"
    assert raw["tie_word_embeddings"] is False
    assert raw["eagle_aux_hidden_state_layer_ids"] == [2, 4, 5]  # vLLM: indices into hidden_states
    assert raw["eagle_config"] == {
        "eagle_aux_hidden_state_layer_ids": [1, 3, 4],
        "use_aux_hidden_state": True,
    }  # SGLang
    assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"] == 10000.0
    assert (raw["vocab_size"], raw["draft_vocab_size"]) == (128, 64)
    absent = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "target_hidden_size", "rope_scaling")
    assert not set(absent) & set(raw), "engines test for presence: absent, not false or null"
    assert None not in raw.values()
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {"midlayer.self_attn.q_proj.weight", "fc.weight", "norm.weight", "lm_head.weight", "d2t", "t2d"} <= names
    assert not any(name.startswith("layers.0.") for name in names)


BROKEN = {
    "missing": (lambda t: t.pop("midlayer.mlp.up_proj.weight"), "`midlayer.mlp.up_proj.weight` is missing"),
    "renamed": (lambda t: t.update(fcc=t.pop("fc.weight")), "`fc.weight` is missing"),
    "surplus": (lambda t: t.update(extra=torch.ones(2)), "`extra` .* is not part of this draft"),
    "mis-shaped": (lambda t: t.update({"norm.weight": torch.ones(7)}), "`norm.weight` has shape"),
    "NaN": (lambda t: t["norm.weight"].fill_(torch.nan), "`norm.weight` .* contains NaN"),
    "no d2t": (lambda t: (t.pop("d2t"), t.pop("t2d")), r"`d2t` is missing from \S*draft"),
    "foreign t2d": (lambda t: t["t2d"].logical_not_(), r"`t2d` of \S*draft does not mark"),
    "no lm_head": (lambda t: t.pop("lm_head.weight"), r"`lm_head.weight` is missing .*has_lm_head=False"),
    "d2t out of range": (
        lambda t: t["d2t"].add_(1000),
        r"`d2t` of \S*draft maps 64 draft ids outside the target's 0..127; the first is 0, mapped to \d",
    ),
    "d2t below zero": (
        lambda t: t["d2t"].select(0, 5).fill_(-7),
        "maps 1 draft ids outside .* the first is 5, mapped to -2",
    ),
    "d2t twice the same": (
        lambda t: t["d2t"].select(0, 1).fill_(int(t["d2t"][0]) - 1),
        "maps 2 draft ids to the same",
    ),
    "d2t of ids": (lambda t: t["d2t"].add_(torch.arange(64)), "contains target ids instead of offsets"),
    "d2t of ids, no t2d": (
        lambda t: (t["d2t"].add_(torch.arange(64)), t.pop("t2d")),
        "contains target ids instead",
    ),
    "d2t that was cast": (lambda t: t.update(d2t=t["d2t"] * 1.37), r"`d2t` .*contains fractions \(torch.float32\)"),
    "twice": (
        lambda t: t.update({"layers.0.mlp.up_proj.weight": torch.ones(2)}),
        "stores `midlayer.mlp.up_proj.weight` twice",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tensor_is_named(folder, name):
    edit, message = BROKEN[name]
    edit_tensors(folder, edit)
    with pytest.raises(ValueError, match=message):
        Eagle3DraftModel.from_pretrained(folder)


def test_documented_surplus_is_allowed(folder):
    edit_tensors(folder, lambda t: t.update({"midlayer.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    Eagle3DraftModel.from_pretrained(folder)


def test_broken_files(folder, tmp_path):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        Eagle3DraftModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="no weights"):
        Eagle3DraftModel.from_pretrained(folder)
    with pytest.raises(OSError, match=r"config\.json"):
        Eagle3DraftModel.from_pretrained(tmp_path)
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        Eagle3DraftModel.from_pretrained(folder)


def test_a_pickle_with_code_is_not_run(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    (folder / "model.safetensors").unlink()
    torch.save({"fc.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only|damaged"):
        Eagle3DraftModel.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_configurations_that_cannot_be(folder):
    cases = [
        ({"draft_vocab_size": ..., "architectures": ["LlamaForCausalLM"]}, "`draft_vocab_size` is missing"),
        ({"draft_vocab_size": 1000}, "must be between 1 and `vocab_size`"),
        ({"eagle_aux_hidden_state_layer_ids": [2, 2, 5]}, "without repeats"),
        ({IDS: [2, 4, 5], "eagle_config": {IDS: [2, 4, 5]}},
         "do not name the same layers"),
        ({"speculators_model_type": "dflash", "transformer_layer_config": {}}, "speculators `dflash`"),
        ({"num_key_value_heads": 3}, "multiple of `num_key_value_heads`"),
        ({"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}, "mixes full and sliding"),
        ({"sliding_window": 0, "layer_types": ["sliding_attention"]}, "`sliding_window` is 0"),
    ]  # fmt: skip
    original = (folder / "config.json").read_text()
    for changes, message in cases:
        (folder / "config.json").write_text(original)
        edit_config(folder, **changes)
        with pytest.raises(ValueError, match=message):
            Eagle3DraftModel.from_pretrained(folder)


def test_unknown_arguments_are_not_swallowed(folder):
    with pytest.raises(TypeError):
        Eagle3DraftModel.from_pretrained(folder, tree_dept=3)
    with pytest.raises(TypeError):
        Eagle3DraftModel.from_pretrained(folder).with_tree("static", dept=3)


def test_the_wrong_class_says_so(folder, tmp_path):
    sizes = {
        "vocab_size": 8,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    target = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes))
    target.save_pretrained(tmp_path / "target")
    with pytest.raises(ValueError, match="not an EAGLE-3 draft"):
        Eagle3DraftModel.from_pretrained(tmp_path / "target")
    with pytest.raises(TypeError, match="assistant_model=draft"):
        Eagle3DraftModel.from_pretrained(folder).generate(torch.ones(1, 3, dtype=torch.long))


@pytest.mark.parametrize("draft_vocab_size", [6, VOCAB], ids=["reduced", "whole vocabulary"])
def test_transformers_own_classes_refuse_a_draft(tmp_path, draft_vocab_size):
    """Of the whole vocabulary every shape would fit, and all layers would be random."""
    tiny_draft(tiny_target(), draft_vocab_size=draft_vocab_size).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"load it with hf_eagle3\.Eagle3DraftModel"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is LlamaConfig  # as engines read it
    Eagle3DraftModel.from_pretrained(tmp_path)


def test_a_view_shares_weights_and_nothing_else(folder):
    draft = Eagle3DraftModel.from_pretrained(folder)
    view = draft.with_tree("chain", tree_depth=3)
    assert view.fc.weight is draft.fc.weight
    assert draft.tree_config.tree_mode == "auto"
    assert view.tree_config.tree_depth == 3
    assert view.with_tree("auto").tree_config == draft.tree_config


def test_tapped_layers_of_shallow_targets_are_distinct():
    expected = {
        2: [0],
        3: [0, 1],
        4: [0, 1, 2],
        5: [0, 2, 3],
        6: [0, 2, 4],
        7: [1, 2, 3],
        8: [1, 3, 4],
        32: [1, 15, 28],
    }
    for layers, ids in expected.items():
        target = AutoConfig.for_model("llama", num_hidden_layers=layers)
        assert Eagle3Config.from_target(target).target_layer_ids == ids
    with pytest.raises(ValueError, match="at least 2"):
        Eagle3Config.from_target(AutoConfig.for_model("llama", num_hidden_layers=1))


def test_written_files_are_for_whoever_the_umask_lets_read(tmp_path):
    draft = tiny_draft(tiny_target())
    before = os.umask(0o022)
    try:
        for name, size in (("one", "50GB"), ("sharded", "20KB")):
            draft.save_pretrained(tmp_path / name, max_shard_size=size)
        main(["convert", str(tmp_path / "one"), str(tmp_path / "plain")])
        target = ["--target", str(embedded.TARGET), "--target-name", "org/target"]
        main(["convert", str(embedded.DRAFT), str(tmp_path / "speculators"), "--to", "speculators", *target])
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".safetensors"]) > 4
    assert {path.name: oct(path.stat().st_mode) for path in files} == {path.name: oct(0o100644) for path in files}


# Precision of what is computed, not stored


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
CONVERSIONS = {
    "to": lambda draft: draft.to(torch.bfloat16),
    "to device and dtype": lambda draft: draft.to("cpu", torch.bfloat16),
    "half": lambda draft: draft.half(),
    "inside another module": lambda draft: torch.nn.ModuleList([draft]).bfloat16(),
}


@pytest.mark.parametrize("kind", ["default", "llama3"])
@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
def test_converting_a_draft_leaves_its_angles_alone(convert, kind):
    """In bfloat16 a frequency is off by up to 0.4 %, at position 4000 an angle by several turns."""
    rope = {"rope_type": kind, "rope_theta": 10000.0} | (LLAMA3 if kind == "llama3" else {})
    draft = Eagle3DraftModel(tiny_draft(tiny_target()).config.changed({"rope_parameters": rope}))
    positions = torch.tensor([[4000]])
    expected = draft.rotary(positions, torch.float32)
    convert(draft)
    assert draft.norm.weight.dtype != torch.float32
    for found, right in zip(draft.rotary(positions, torch.float32), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=0)


def test_a_missing_subfolder_is_named(tmp_path):
    with pytest.raises(OSError, match=r"There is no `config\.json` in the subfolder `nope` of `.*`; pass"):
        Eagle3DraftModel.from_pretrained(tmp_path, subfolder="nope")
