"""Others' own code on our files, and ours on theirs: speculators, vLLM, SGLang and the original repository.

Each part runs where that code can be imported (`pip install speculators`; a checkout named by HF_EAGLE3_ORIGINAL) and
is skipped with its reason elsewhere; `test_export.py` checks the same rules from a table, without them.
"""

import importlib
import json
import os
import sys
import types

import pytest
import torch
from conftest import DATA
from models import tiny_draft, tiny_target
from safetensors.torch import load_file
from transformers import AutoConfig

from hf_eagle3 import Eagle3Config, Eagle3DraftModel
from hf_eagle3.hub.export import ExportTarget, export
from hf_eagle3.hub.publish import Publication


LENGTH = 40


@pytest.fixture(scope="module")
def target_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    tiny_target().save_pretrained(folder)
    return folder


def shaken(draft: Eagle3DraftModel) -> Eagle3DraftModel:
    """Every weight counts: norms are not ones, positions matter."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.mul_(4) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) * 0.3)
    return draft


def our_logits(draft: Eagle3DraftModel, rows: torch.Tensor, features: torch.Tensor, ids: torch.Tensor):
    with torch.no_grad():
        return draft(inputs_embeds=rows[ids], target_features=features).logits


def inputs_of(draft: Eagle3DraftModel) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, draft.config.vocab_size, (1, LENGTH), generator=generator)
    return torch.randn(1, LENGTH, draft.config.fused_features_size, generator=generator), ids


@pytest.fixture(scope="module")
def speculators():
    """speculators' model class."""
    reason = "speculators is not installed (pip install speculators)"
    pytest.importorskip("speculators", reason=reason)
    return importlib.import_module("speculators.models.eagle3").Eagle3DraftModel


def their_logits(cls, folder, features, ids) -> torch.Tensor:
    """Logits of speculators' own pass over one document."""
    config = cls.config_class.from_pretrained(folder)
    config.transformer_layer_config._attn_implementation = "eager"
    model = cls.from_pretrained(folder, config=config).float().eval()
    found = []
    model.lm_head.register_forward_hook(lambda module, args, output: found.append(output))
    with torch.no_grad():
        model(features, ids, torch.zeros_like(ids), ttt_steps=1)
    return found[0]


SHAPES = {
    "plain": {},
    "every layer normed": {"fc_norm": True, "norm_output": True},
    "normed before fusion": {"norm_before_fc": True, "norm_before_residual": True},
    "Qwen3-shaped": {"use_qk_norm": True, "norm_before_residual": True},
    "two layers": {"num_hidden_layers": 2},
    "whole vocabulary": {"draft_vocab_size": 24},
    "a window": {"sliding_window": 7},
    "scaled RoPE": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_speculators_gives_our_logits(speculators, target_folder, tmp_path, shape):
    draft = shaken(tiny_draft(tiny_target(), **SHAPES[shape]))
    where = ExportTarget.load(str(target_folder), str(target_folder))
    export(draft, tmp_path, "speculators", where)
    features, ids = inputs_of(draft)
    rows = load_file(target_folder / "model.safetensors")["model.embed_tokens.weight"]
    expected = our_logits(draft, rows, features, ids)
    assert expected.std() > 0.1
    torch.testing.assert_close(their_logits(speculators, tmp_path, features, ids), expected, rtol=1e-5, atol=1e-5)


def test_a_wrong_flag_would_be_seen(speculators, target_folder, tmp_path):
    draft = shaken(tiny_draft(tiny_target(), norm_before_residual=True))
    export(draft, tmp_path, "speculators", ExportTarget.load(str(target_folder), str(target_folder)))
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"norm_before_residual": False}))
    features, ids = inputs_of(draft)
    rows = load_file(target_folder / "model.safetensors")["model.embed_tokens.weight"]
    difference = their_logits(speculators, tmp_path, features, ids) - our_logits(draft, rows, features, ids)
    assert difference.abs().max() > 1e-2


@pytest.mark.parametrize("shape", SHAPES)
def test_what_speculators_saves_gives_its_logits_here(speculators, target_folder, tmp_path, shape):
    draft = shaken(tiny_draft(tiny_target(), **SHAPES[shape]))
    export(draft, tmp_path / "ours", "speculators", ExportTarget.load(str(target_folder), str(target_folder)))
    theirs = speculators.from_pretrained(tmp_path / "ours").float().eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.startswith(("layers", "fc")):
                parameter.add_(torch.randn_like(parameter) * 0.05)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = Eagle3DraftModel.from_pretrained(tmp_path / "theirs")
    features, ids = inputs_of(loaded)
    rows = loaded.embed_tokens.weight
    expected = their_logits(speculators, tmp_path / "theirs", features, ids)
    torch.testing.assert_close(our_logits(loaded, rows, features, ids), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(our_logits(draft, rows, features, ids), expected, atol=1e-3)  # noqa: TID251


def vllm_module(name: str):
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    return pytest.importorskip(name, exc_type=ImportError, reason="vLLM's configurations cannot be imported")


def test_vllm_takes_our_speculators_files(target_folder, tmp_path):
    """Its configuration class, without a GPU."""
    configs = vllm_module("vllm.transformers_utils.configs.speculators.base")
    draft = tiny_draft(tiny_target(), norm_before_residual=True, target_layer_ids=[0, 1, 2])
    export(draft, tmp_path, "speculators", ExportTarget.load(str(target_folder), "org/target"))
    raw = json.loads((tmp_path / "config.json").read_text())
    speculative = configs.SpeculatorsConfig.extract_vllm_speculative_config(raw)
    assert speculative == {"method": "eagle3", "num_speculative_tokens": 3}
    found = configs.SpeculatorsConfig.from_pretrained(tmp_path)
    assert found.architectures == ["Eagle3LlamaForCausalLM"]
    assert found.eagle_aux_hidden_state_layer_ids == [1, 2, 3]
    assert (found.norm_before_residual, found.fc_norm, found.draft_vocab_size) == (True, False, 6)


def test_vllm_takes_our_plain_files(tmp_path):
    configs = vllm_module("vllm.transformers_utils.configs.eagle")
    draft = tiny_draft(tiny_target(), norm_before_residual=True, fc_norm=True)
    draft.save_pretrained(tmp_path)
    found = configs.EAGLEConfig(AutoConfig.from_pretrained(tmp_path), method="eagle3", model_type="eagle")
    assert found.architectures == ["LlamaForCausalLMEagle3"]
    assert found.eagle_aux_hidden_state_layer_ids == [i + 1 for i in draft.config.target_layer_ids]
    assert (found.norm_before_residual, found.fc_norm, found.draft_vocab_size) == (True, True, 6)
    assert not hasattr(found, "target_hidden_size")


# --- the original repository: python code beside its weights, no package


@pytest.fixture(scope="module")
def original():
    """The model class of a checkout of SafeAILab/EAGLE."""
    folder = os.environ.get("HF_EAGLE3_ORIGINAL")
    if not folder:
        pytest.skip("set HF_EAGLE3_ORIGINAL to a checkout of github.com/SafeAILab/EAGLE")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("eagle.model.cnets").Model
    finally:
        sys.path.remove(folder)


def load_original(cls, folder):
    # Its EConfig under transformers 4, for which it was written: keys as they stand, these two by default. (Under
    # transformers 5 `rope_scaling` is another name of `rope_parameters`, which its code does not expect.)
    raw = json.loads((folder / "config.json").read_text())
    config = types.SimpleNamespace(**{"rope_scaling": None, "pretraining_tp": 1} | raw)
    model = cls(config, load_emb=False, bias=True)
    report = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    return model.eval(), report


def test_the_originals_loader_finds_every_key(original, tmp_path):
    draft = shaken(tiny_draft(tiny_target()))
    export(draft, tmp_path, target=Publication(tiny_target()).export_target(draft), only=["vllm", "sglang"])
    model, report = load_original(original, tmp_path)
    assert report.unexpected_keys == []
    assert report.missing_keys == ["embed_tokens.weight"]  # the target's; `load_emb` reads it there
    rows = tiny_target().get_input_embeddings().weight
    model.embed_tokens.weight.data = rows.data
    model.reset()
    features, ids = inputs_of(draft)
    with torch.no_grad():
        hidden, _ = model(features, input_ids=ids, use_cache=True)
        logits = model.lm_head(model.norm(hidden))
    torch.testing.assert_close(logits, our_logits(draft, rows, features, ids), rtol=1e-5, atol=1e-5)


def test_a_key_of_another_name_would_be_reported(original, tmp_path):
    draft = tiny_draft(tiny_target(), fc_norm=True)
    draft.save_pretrained(tmp_path)
    _, report = load_original(original, tmp_path)
    assert [name for name in report.unexpected_keys if name.startswith("fc_norm")]


def test_the_originals_names_and_shapes(tmp_path):
    """The same from a list written out by hand, for everybody: what its `Model` registers for a target of 4 heads."""
    draft = tiny_draft(tiny_target())
    draft.save_pretrained(tmp_path)
    found = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    width, heads, mlp, vocabulary, own = 32, 16, 48, 24, 6
    assert found == {
        "fc.weight": (width, 3 * width),
        "midlayer.hidden_norm.weight": (width,),
        "midlayer.input_layernorm.weight": (width,),
        "midlayer.post_attention_layernorm.weight": (width,),
        "midlayer.self_attn.q_proj.weight": (width, 2 * width),
        "midlayer.self_attn.k_proj.weight": (heads, 2 * width),
        "midlayer.self_attn.v_proj.weight": (heads, 2 * width),
        "midlayer.self_attn.o_proj.weight": (width, width),
        "midlayer.mlp.gate_proj.weight": (mlp, width),
        "midlayer.mlp.up_proj.weight": (mlp, width),
        "midlayer.mlp.down_proj.weight": (width, mlp),
        "norm.weight": (width,),
        "lm_head.weight": (own, width),
        "d2t": (own,),
        "t2d": (vocabulary,),
    }
    stored = load_file(tmp_path / "model.safetensors")
    assert (stored["d2t"].dtype, stored["t2d"].dtype) == (torch.int64, torch.bool)


def test_recorded_files_of_speculators_travel_to_plain(tmp_path):
    """Without the package: a file it wrote gives its own recorded logits after conversion."""
    draft = Eagle3DraftModel.from_pretrained(DATA / "parity" / "speculators_tiny")
    export(draft, tmp_path, only=["vllm", "sglang"])
    plain = Eagle3DraftModel.from_pretrained(tmp_path)
    assert isinstance(plain.config, Eagle3Config)
    assert not plain.config.has_embed_tokens
    inputs = load_file(DATA / "parity" / "inputs.safetensors")
    rows = draft.embed_tokens.weight
    out = our_logits(plain, rows, inputs["aux_hidden_states"][:, :-1], inputs["input_ids"][:, 1:])
    expected = load_file(DATA / "parity" / "recorded_speculators_tiny_7steps.safetensors")["logits_0"]
    torch.testing.assert_close(out, expected[:, :47], rtol=0, atol=1e-5)
