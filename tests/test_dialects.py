"""What keys of other people's `config.json` mean; what is not known is said, what is not supported is refused.

The files stand for published ones: DeepSpec's, NVIDIA's for gpt-oss and Kimi, Amazon's, z-lab's, SafeAILab's EAGLE-1.
"""

import json
import shutil

import pytest
import torch
from conftest import DATA
from models import VOCAB, left_padded, tiny_draft, tiny_target
from safetensors.torch import load_file, save_file
from test_generate import SAMPLING, assert_same

from hf_eagle3 import Eagle3Config, Eagle3DraftModel
from hf_eagle3.dialects import IDS_KEY, read_config
from hf_eagle3.target.target import Target, check_fit


SIZES = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}
FILE = {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "draft_vocab_size": 64, **SIZES}


def fields(overrides=None, **changes) -> dict:
    return read_config({k: v for k, v in (FILE | changes).items() if v is not ...}, "the file", overrides)


def nested(**keys) -> dict:
    return {"eagle_config": keys}


@pytest.mark.parametrize(
    ("changes", "ids"),
    [
        ({}, None),
        ({"target_layer_ids": [1, 9, 17, 25, 33]}, [1, 9, 17, 25, 33]),  # DeepSpec
        ({IDS_KEY: [2, 4, 5], "target_layer_ids": [1, 3, 4]}, [1, 3, 4]),
        (nested(**{IDS_KEY: [1, 3, 4]}), [1, 3, 4]),
        (nested(**{IDS_KEY: []}), None),  # ModelOpt, where the usual ones are read
        ({IDS_KEY: []} | nested(**{IDS_KEY: [1, 3, 4]}), [1, 3, 4]),
    ],
    ids=str,
)
def test_tapped_layers_by_every_name(changes, ids):
    assert fields(**changes).get("target_layer_ids") == ids


def test_names_that_contradict_each_other_unless_the_caller_knows():
    changes = {"target_layer_ids": [1, 3, 4]} | nested(**{IDS_KEY: [2, 4, 5]})
    with pytest.raises(
        ValueError, match=r"`eagle_config.*\[2, 4, 5\] .* and `target_layer_ids` .* do not name the same"
    ):
        fields(**changes)
    assert fields({"target_layer_ids": [0, 1, 2]}, **changes)["target_layer_ids"] == [0, 1, 2]


@pytest.mark.parametrize("where", ["top", "nested"])
@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("norm_before_fc", "norm_before_fc"),
        ("fc_norm", "fc_norm"),
        ("use_aux_norm", "fc_norm"),
        ("norm_before_residual", "norm_before_residual"),
        ("norm_output", "norm_output"),
    ],
)
def test_flags_at_the_top_and_in_eagle_config(where, key, field):
    assert fields(**({key: True} if where == "top" else nested(**{key: True})))[field] is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (nested(use_aux_hidden_state=False), "`use_aux_hidden_state` is false, so the draft reads the target's last"),
        ({"use_aux_hidden_state": False}, "`use_aux_hidden_state` is false"),
        (nested(parallel_draft_step=4), "`parallel_draft_step` is 4"),
        ({"ptd_token_id": 7}, "`ptd_token_id`, so it is a parallel drafter"),
        ({"dflash_config": {"mask_token_id": 1}, "block_size": 16}, "`dflash_config`, so it is a block drafter"),
        ({"medusa_num_heads": 4}, "so it is a set of Medusa heads"),
        ({"partial_rotary_factor": 0.25}, "`partial_rotary_factor` is 0.25; only 1 is supported"),
        ({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "`partial_rotary_factor` is 0.5"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "differs by kind of layer"),
        (
            {"draft_vocab_size": ..., "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1},
            "With its one layer it may be an EAGLE-1/2 draft.* pass draft_vocab_size=128",
        ),
        (
            {"draft_vocab_size": ..., "architectures": ["EagleLlamaForCausalLM"]},
            "`architectures` EagleLlamaForCausalLM, so it is an EAGLE-1/2 draft",
        ),
        (
            {"draft_vocab_size": ..., "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 32},
            r"with AutoModelForCausalLM and use it as the target.*pass draft_vocab_size=128",
        ),
    ],
    ids=str,
)
def test_other_kinds_are_refused_for_what_they_are(changes, message):
    with pytest.raises(ValueError, match=message):
        fields(**changes)


def test_the_whole_vocabulary_by_every_way_to_say_it():
    for changes in ({"draft_vocab_size": None}, {"draft_vocab_size": ..., "architectures": ["Qwen3Eagle3Model"]}):
        assert fields(**changes)["draft_vocab_size"] == 128
    assert fields({"draft_vocab_size": 32}, draft_vocab_size=..., architectures=["x"])["draft_vocab_size"] == 32


def test_an_override_stands_whatever_the_file_says():
    """Each of these files is refused without it."""
    mixed = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    assert fields({"sliding_window": None}, **mixed)["sliding_window"] is None
    assert fields({"target_layer_ids": [1]}, **nested(use_aux_hidden_state=False))["target_layer_ids"] == [1]
    assert fields({"vocab_size": 256}, vocab_size=...)["vocab_size"] == 256
    config = Eagle3Config.from_dict(FILE | {"num_key_value_heads": 3}, num_key_value_heads=2)
    assert config.num_key_value_heads == 2
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    for given in (rope, {"rope_theta": 5e5}, {}):
        assert Eagle3Config.from_dict(FILE | given, rope_theta=1e6).rope_parameters["rope_theta"] == 1e6


def test_keys_of_unknown_meaning_are_named(caplog):
    fields(embedding_multiplier=0.25, temperature=1.0, length_penalty=1.0, pretraining_tp=1, alpha=None, beta=False)
    assert "`embedding_multiplier`" in caplog.text
    assert "pretraining_tp" not in caplog.text
    for name in ("temperature", "length_penalty", "alpha", "beta"):
        assert f"`{name}`" not in caplog.text


def test_files_of_our_own_and_of_others_are_known(caplog, tmp_path):
    tiny_draft(tiny_target(), has_lm_head=False).save_pretrained(tmp_path)
    for folder in (tmp_path, *(DATA / "parity" / name for name in ("specforge_tiny", "speculators_tiny"))):
        Eagle3DraftModel.from_pretrained(folder)
    assert "unknown keys" not in caplog.text


def test_a_whole_draft_of_deepspec(tmp_path):
    """The target's own file with a few keys more, five taps, q and k norms, no mapping, `layers.0`."""
    target = tiny_target("qwen3", num_hidden_layers=6, layer_types=["full_attention"] * 6)
    draft = tiny_draft(target, draft_vocab_size=VOCAB, target_layer_ids=[0, 1, 2, 3, 4], use_qk_norm=True)
    draft.save_pretrained(tmp_path)
    raw = target.config.to_dict() | {"architectures": ["Qwen3Eagle3Model"], "num_hidden_layers": 1}
    raw |= {"target_layer_ids": [0, 1, 2, 3, 4], "num_target_layers": 6, "ttt_length": 7, "step_loss_decay": 0.8}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    stored = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in stored.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    loaded = Eagle3DraftModel.from_pretrained(tmp_path)
    assert loaded.config.target_layer_ids == [0, 1, 2, 3, 4]
    for name, tensor in draft.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


# -- a head that is not there -----------------------------------------------------------------------------------------


def test_a_reduced_draft_that_lost_its_head_is_not_given_the_targets(tmp_path):
    shutil.copytree(DATA / "parity" / "specforge_tiny", tmp_path / "draft")
    stored = load_file(tmp_path / "draft" / "model.safetensors")
    stored.pop("lm_head.weight")
    save_file(stored, tmp_path / "draft" / "model.safetensors")
    with pytest.raises(ValueError, match=r"`lm_head.weight` is missing .*has_lm_head=False"):
        Eagle3DraftModel.from_pretrained(tmp_path / "draft")
    draft = Eagle3DraftModel.from_pretrained(tmp_path / "draft", has_lm_head=False)
    draft.save_pretrained(tmp_path / "again")
    assert Eagle3DraftModel.from_pretrained(tmp_path / "again").lm_head is None
    raw = json.loads((tmp_path / "draft" / "config.json").read_text()) | nested(has_lm_head=False)  # ModelOpt's word
    (tmp_path / "draft" / "config.json").write_text(json.dumps(raw))
    assert Eagle3DraftModel.from_pretrained(tmp_path / "draft").lm_head is None


def test_a_whole_vocabulary_without_a_head_has_the_targets(tmp_path):
    tiny_draft(tiny_target(), draft_vocab_size=VOCAB, has_lm_head=False).save_pretrained(tmp_path)
    assert "has_lm_head" not in json.loads((tmp_path / "config.json").read_text())
    assert Eagle3DraftModel.from_pretrained(tmp_path).lm_head is None


# -- the last layer ---------------------------------------------------------------------------------------------------


def test_the_last_layer_is_read_before_the_final_norm():
    """As vLLM (`hidden_states + residual` behind layer n - 1) and SGLang (gpt-oss) feed it."""
    target = tiny_target()
    draft = tiny_draft(target, target_layer_ids=[0, 2, 3])
    for mode in ("static", "chain", "auto"):
        for options in ({"do_sample": False}, SAMPLING):
            stats = assert_same(target, draft.with_tree(mode), left_padded([9, 4]), max_new_tokens=20, **options)
    assert stats.num_cycles
    reader = Target(target, draft.config)
    ids = left_padded([9])["input_ids"]
    features, last = reader.read(ids, torch.ones_like(ids))
    torch.testing.assert_close(target.model.norm(features[..., 64:]), last)
    assert (features[..., 64:] - last).abs().max() > 1e-2


def test_ids_that_count_the_embedding_as_hidden_states_do():
    """nvidia/gpt-oss-120b-Eagle3-v3 names 24 30 36 of 36 layers in `eagle_config`."""
    target = tiny_target()
    sizes = {"vocab_size": VOCAB, "draft_vocab_size": 6, "hidden_size": 32}
    config = Eagle3Config.from_dict(FILE | nested(**{IDS_KEY: [1, 3, 4]}), **sizes)
    assert check_fit(target.config, config) == [0, 2, 3]
    with pytest.raises(ValueError, match=r"taps layers \[1, 3, 5\] .* the target has 4"):
        check_fit(target.config, tiny_draft(target, target_layer_ids=[1, 3, 5]).config)


@pytest.mark.parametrize("way", ["static", "host_chain", "compiled"])
def test_where_only_hidden_states_can_be_read_the_last_layer_is_refused(way):
    target, options = tiny_target(), {}
    draft = tiny_draft(target, target_layer_ids=[0, 2, 3])
    if way == "static":
        options = {"cache_implementation": "static"}
    elif way == "host_chain":
        draft = draft.with_tree("host_chain", tree_depth=3)
    else:
        target.compile(backend="eager")
    with pytest.raises(ValueError, match=r"taps the last layer \(3\) before the final norm"):
        target.generate(**left_padded([9]), max_new_tokens=8, do_sample=False, assistant_model=draft, **options)
