"""Export: bit-identical weights whichever way a draft travels, and no engine is handed what it would serve wrongly.

plain midlayer.* -> speculators layers.0.* + embed_tokens -> plain midlayer.*
"""

import json
import shutil

import pytest
import torch
from conftest import DATA
from models import left_padded, tiny_draft, tiny_target
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaConfig

from hf_eagle3 import Eagle3Config, Eagle3DraftModel, TreeConfig, embedded, record
from hf_eagle3.cli import main
from hf_eagle3.cli.inputs import encode
from hf_eagle3.hub import engines
from hf_eagle3.hub.engines import Case, TargetFacts, findings
from hf_eagle3.hub.export import ExportTarget, export, speculators_config
from hf_eagle3.hub.formats import EAGLE3, LLAMA_CPP, ORIGINAL, PLAIN, SGLANG, SPECULATORS, VLLM


TARGET = ["--target", str(embedded.TARGET), "--target-name", "org/target"]
SHAPE = {"vocab_size": 128, "draft_vocab_size": 64, "hidden_size": 64, "intermediate_size": 96}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "target_layer_ids": [1, 15, 28]}
FACTS = TargetFacts("org/target", None, ("LlamaForCausalLM",), 32, 2048)


def tensors(folder):
    return load_file(folder / "model.safetensors")


def assert_same(one: dict, other: dict):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def written(pair, draft_folder) -> tuple[list[list[int]], float]:
    target, _, tokenizer = pair
    draft = Eagle3DraftModel.from_pretrained(draft_folder, dtype=torch.float32)
    texts = []
    with record() as stats:
        for row in embedded.prompts()[:2]:
            inputs = encode(tokenizer, row["prompt"], False, target.device)
            texts.append(target.generate(**inputs, max_new_tokens=32, do_sample=False, assistant_model=draft).tolist())
    return texts, stats.acceptance_length


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The embedded draft with a tree of its own, which drafts the same whatever it costs here."""
    folder = tmp_path_factory.mktemp("draft")
    draft = Eagle3DraftModel.from_pretrained(embedded.DRAFT, dtype=torch.bfloat16)
    draft.with_tree("static", num_draft_tokens=8, tree_depth=4, tree_top_k=3).save_pretrained(folder)
    return folder


def test_plain_to_speculators_and_back(tmp_path, source):
    """Weights bit for bit, the same text, the same tau."""
    there, back = tmp_path / "speculators", tmp_path / "plain"
    assert main(["convert", str(source), str(there), "--to", "speculators", *TARGET]) == 0
    assert main(["convert", str(there), str(back)]) == 0
    before, between, after = tensors(source), tensors(there), tensors(back)
    assert_same(before, after)
    renamed = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in before.items()}
    rows = load_file(embedded.TARGET / "model.safetensors")["model.embed_tokens.weight"]
    assert_same(between, renamed | {"embed_tokens.weight": rows})
    pair = embedded.load_pair()
    original = written(pair, source)
    assert original == written(pair, there) == written(pair, back)
    assert original[1] > 2
    raw, again = (json.loads((folder / "config.json").read_text()) for folder in (source, back))
    assert again == raw | {"target_name_or_path": "org/target"}
    trees = [Eagle3DraftModel.from_pretrained(folder).tree_config for folder in (source, there, back)]
    assert trees[0] == trees[1] == trees[2] != TreeConfig()


def test_bin_to_safetensors(tmp_path, source):
    shutil.copytree(source, tmp_path / "bin")
    before = tensors(tmp_path / "bin")
    torch.save({name.replace("midlayer.", "layers.0."): t for name, t in before.items()}, tmp_path / "bin" / "x")
    (tmp_path / "bin" / "x").rename(tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    assert main(["convert", str(tmp_path / "bin"), str(tmp_path / "out")]) == 0
    assert_same(tensors(tmp_path / "out"), before)
    pair = embedded.load_pair()
    assert written(pair, tmp_path / "bin") == written(pair, tmp_path / "out")


def test_adapter_to_merged_draft(tmp_path):
    pytest.importorskip("peft", reason="needs the extra `train`")
    from peft import LoraConfig, get_peft_model

    target = tiny_target()
    draft = tiny_draft(target)
    folder = tmp_path / "adapter"
    draft.save_pretrained(folder / "base")
    torch.manual_seed(0)
    adapted = get_peft_model(draft, LoraConfig(r=4, target_modules=["fc", "q_proj"], init_lora_weights=False))
    adapted.save_pretrained(folder)
    assert main(["convert", str(folder), str(tmp_path / "merged")]) == 0
    assert_same(dict(adapted.merge_and_unload().state_dict()), tensors(tmp_path / "merged"))
    assert not torch.equal(tensors(tmp_path / "merged")["fc.weight"], tensors(folder / "base")["fc.weight"])
    texts = []
    for source in (adapted.base_model.model, Eagle3DraftModel.from_pretrained(tmp_path / "merged")):
        with record() as stats:
            out = target.generate(**left_padded([9]), max_new_tokens=30, do_sample=False, assistant_model=source)
        texts.append((out.tolist(), stats.acceptance_length))
    assert texts[0] == texts[1]


def test_the_precision_is_the_files_whatever_its_configuration_says(tmp_path):
    shutil.copytree(embedded.DRAFT, tmp_path / "draft")
    raw = json.loads((tmp_path / "draft" / "config.json").read_text())
    (tmp_path / "draft" / "config.json").write_text(json.dumps(raw | {"dtype": "float16"}))
    assert main(["convert", str(tmp_path / "draft"), str(tmp_path / "out")]) == 0
    assert_same(tensors(tmp_path / "out"), tensors(embedded.DRAFT))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["speculators_tiny", "speculators_fullvocab"])
def test_speculators_own_files_come_back(tmp_path, name):
    """Files that speculators 0.9.0 wrote -> plain -> its configuration again, key for key."""
    folder = DATA / "parity" / name
    draft = Eagle3DraftModel.from_pretrained(folder)
    facts = TargetFacts("example-org/tiny-llama-target", None, ("LlamaForCausalLM",))
    theirs = json.loads((folder / "config.json").read_text())
    ours = speculators_config(draft.config, facts)
    layer, own = theirs.pop("transformer_layer_config"), ours.pop("transformer_layer_config")
    ignored = {"transformers_version", "architectures", "dtype"}
    assert {k: v for k, v in ours.items() if k not in ignored} == {
        k: v for k, v in theirs.items() if k not in ignored and v is not None
    }
    known = {k: v for k, v in layer.items() if v is not None and k in own}
    assert {name: own[name] for name in known} == known
    assert set(own) - set(layer) <= {"dtype"}


def test_what_the_target_tells_is_written_out(tmp_path):
    """Layers that the file left open, and the length it serves."""
    draft = Eagle3DraftModel.from_pretrained(embedded.DRAFT, target_layer_ids=None)
    draft.config.target_layer_ids, draft.config.max_position_embeddings = None, 64
    with pytest.raises(ValueError, match=r"tapped-layers-unknown.*pass --target"):
        export(draft, tmp_path)
    export(draft, tmp_path, target=ExportTarget.load(str(embedded.TARGET), "org/target"), only=[VLLM, SGLANG])
    config = Eagle3Config.from_pretrained(tmp_path)
    assert config.target_layer_ids == [1, 11, 20]
    assert config.max_position_embeddings == 1024
    assert draft.config.target_layer_ids is None


def test_a_random_embedding_does_not_travel(tmp_path):
    """vLLM and the original code would believe it; a trained one, and one of another width, go along."""
    target = tiny_target()
    for changes, kept in (
        ({}, False),
        ({"embed_trained": True}, True),
        ({"hidden_size": 16, "head_dim": 4, "target_hidden_size": 32}, True),
    ):
        draft = tiny_draft(target, has_embed_tokens=True, **changes)
        export(draft, tmp_path, allow=[f.rule.name for f in findings(Case(draft.config, PLAIN, TargetFacts()))])
        assert ("embed_tokens.weight" in tensors(tmp_path)) is kept


def test_the_targets_head_can_be_stored(tmp_path):
    target = tiny_target()
    target.save_pretrained(tmp_path / "target")
    draft = tiny_draft(target, has_lm_head=False)
    where = ExportTarget.load(str(tmp_path / "target"))
    with pytest.raises(ValueError, match=r"no-lm-head.*--store-head"):
        export(draft, tmp_path / "draft", target=where, only=[SGLANG, VLLM])
    export(draft, tmp_path / "draft", target=where, only=[SGLANG, VLLM], store_head=True)
    loaded = Eagle3DraftModel.from_pretrained(tmp_path / "draft")
    assert torch.equal(loaded.lm_head.weight, target.lm_head.weight[draft.target_token_ids])
    texts = [
        target.generate(**left_padded([9]), max_new_tokens=30, do_sample=False, assistant_model=d).tolist()
        for d in (draft, loaded)
    ]
    assert texts[0] == texts[1]


# What each engine makes of a draft: silently wrong (!), refuses by itself (x), or nothing.
RULES = {
    "tapped-layers-unknown": ({"target_layer_ids": None}, {VLLM: "!", SGLANG: "!"}),
    "tapped-layers-order": ({"target_layer_ids": [15, 1, 28]}, {VLLM: "!", SGLANG: "!"}),
    "tapped-layers-fixed": ({"target_layer_ids": [2, 15, 28]}, {ORIGINAL: "!"}),
    "tapped-last-layer": ({"target_layer_ids": [23, 27, 31]}, {SGLANG: "x"}),
    "fusion-skipped": ({"target_layer_ids": [15]}, {SGLANG: "!", ORIGINAL: "!"}),
    "norm-before-residual": ({"norm_before_residual": True}, {SGLANG: "!", ORIGINAL: "!"}),
    "qk-norm": ({"use_qk_norm": True}, {SGLANG: "!", ORIGINAL: "!"}),
    "qk-norm-dialect": ({"use_qk_norm": True}, {VLLM: "x"}),
    "qk-norm-bias": ({"use_qk_norm": True, "mlp_bias": True}, {VLLM: "!"}),
    "attention-bias": ({"attention_bias": True}, {SGLANG: "!", ORIGINAL: "!"}),
    "mlp-bias": ({"mlp_bias": True}, {SGLANG: "!", ORIGINAL: "!"}),
    "several-layers": ({"num_hidden_layers": 2}, {SGLANG: "!", ORIGINAL: "!"}),
    "embed-trained": ({"embed_trained": True, "has_embed_tokens": True}, {SGLANG: "!"}),
    "no-lm-head": ({"has_lm_head": False}, {SGLANG: "!", ORIGINAL: "!"}),
    "no-lm-head-mapping": ({"has_lm_head": False}, {VLLM: "!"}),
    "norms-of-later-drafts": ({"fc_norm": True}, {ORIGINAL: "!"}),
    "number-of-tapped-layers": ({"target_layer_ids": [1, 2, 3, 4]}, {ORIGINAL: "x"}),
    "head-dim": ({"head_dim": 32}, {ORIGINAL: "x"}),
    "scaled-rope": ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, {ORIGINAL: "x"}),
    "sliding-window": ({"sliding_window": 64}, {SGLANG: "!", ORIGINAL: "!"}),
    "hidden-act": ({"hidden_act": "gelu"}, {VLLM: "x", SGLANG: "x"}),
    "max-position-embeddings": ({"max_position_embeddings": 100}, {SGLANG: "x"}),
}


def found_by(case: Case, rule: str) -> dict[str, str]:
    return {f.engine: "!" if f.rule.silent else "x" for f in findings(case) if f.rule.name == rule}


def test_a_usual_draft_serves_everywhere():
    assert findings(Case(Eagle3Config(**SHAPE), PLAIN, FACTS)) == []
    assert findings(Case(Eagle3Config(**SHAPE), SPECULATORS, FACTS)) == []


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_of_every_engine(tmp_path, rule):
    changes, expected = RULES[rule]
    config = Eagle3Config(**SHAPE | changes)
    assert found_by(Case(config, PLAIN, FACTS), rule) == expected
    assert found_by(Case(Eagle3Config(**SHAPE), PLAIN, FACTS), rule) == {}
    for engine, kind in expected.items():
        with pytest.raises(ValueError, match=rf"`{rule}`\); .*"):
            engines.check_export(Case(config, PLAIN, FACTS), [engine])
        others = {f.rule.name for f in findings(Case(config, PLAIN, FACTS))} - {rule}
        found = engines.check_export(Case(config, PLAIN, FACTS), [engine], [rule, *others])
        assert rule in {f.rule.name for f in found}
        if kind == "!":  # refused also where no engine was named
            with pytest.raises(ValueError, match=rf"`{rule}`"):
                engines.check_export(Case(config, PLAIN, FACTS), allow=others)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"norm_before_residual": True, "norm_before_fc": True, "head_dim": 32}, {}),
        ({"target_layer_ids": [15, 1, 28]}, {}),
        ({"target_layer_ids": None}, {"tapped-layers-unknown": True}),
        ({"use_qk_norm": True}, {"llama-cpp-tensors": False}),
        ({"mlp_bias": True}, {"llama-cpp-tensors": False}),
        ({"fc_norm": True}, {"llama-cpp-tensors": False}),
        ({"num_hidden_layers": 2}, {"llama-cpp-tensors": False}),
        ({"target_layer_ids": [1, 2, 3, 4]}, {"llama-cpp-tensors": False}),
        ({"has_lm_head": False}, {"llama-cpp-tensors": False}),
        ({"has_lm_head": False, "draft_vocab_size": 128}, {}),
        ({"norm_output": True}, {"llama-cpp-flags": True}),
        ({"sliding_window": 64}, {"llama-cpp-flags": True}),
    ],
    ids=str,
)
def test_what_llama_cpp_makes_of_a_plain_file(changes, expected):
    """It reads what its converter makes, so that its rules count only where it is named."""
    case = Case(Eagle3Config(**SHAPE | changes), PLAIN, FACTS)
    assert {f.rule.name: f.rule.silent for f in findings(case, [LLAMA_CPP])} == expected
    assert not {f.rule.name for f in findings(case)} & {"llama-cpp-tensors", "llama-cpp-flags"}


def test_llama_cpp_converts_plain_files_only():
    with pytest.raises(ValueError, match=r"llama\.cpp does not read the speculators dialect; use --to plain"):
        findings(Case(Eagle3Config(**SHAPE), SPECULATORS, FACTS), [LLAMA_CPP])


def test_the_rules_are_all_tested():
    of_llama_cpp = {"llama-cpp-tensors", "llama-cpp-flags"}
    of_eagle3 = {rule.name for rule in engines.RULES if EAGLE3 in rule.kinds}
    assert set(RULES) | {"tapped-layers-unchecked"} | of_llama_cpp == of_eagle3
    case = Case(Eagle3Config(**SHAPE), PLAIN, TargetFacts())
    assert found_by(case, "tapped-layers-unchecked") == {ORIGINAL: "x"}


def test_dialects_differ():
    """Qwen3-shaped drafts and flags are vLLM's by speculators' files, not by plain ones."""
    config = Eagle3Config(**SHAPE, use_qk_norm=True, norm_before_residual=True)
    case = Case(config, SPECULATORS, FACTS)
    assert engines.check_export(case, [VLLM]) == []
    with pytest.raises(ValueError, match="SGLang does not read the speculators dialect"):
        engines.check_export(case, [SGLANG])
    written = speculators_config(config, FACTS)
    assert written["transformer_layer_config"]["model_type"] == "qwen3"
    assert written["norm_before_residual"] is True
    assert speculators_config(Eagle3Config(**SHAPE), FACTS)["norm_before_residual"] is False  # vLLM assumes true


def test_speculators_files_hold_every_key_of_the_dialect(tmp_path):
    config = Eagle3Config(**SHAPE | {"target_layer_ids": [1, 5, 15, 28]}, sliding_window=64)
    written = speculators_config(config, FACTS)
    assert "model_type" not in written
    assert written["eagle_aux_hidden_state_layer_ids"] == [2, 6, 16, 29]
    layer = written["transformer_layer_config"]
    assert layer["num_aux_hidden_states"] == 4
    assert (layer["sliding_window"], layer["layer_types"]) == (64, ["sliding_attention"])
    assert None not in [*written.values(), *layer.values()]
    again = Eagle3Config.from_dict(json.loads(json.dumps(written)))
    own = {"_name_or_path": None, "target_name_or_path": None}
    assert again.to_dict() | own == config.to_dict() | own


@pytest.mark.parametrize("mutation", ["gap", "other"])
def test_a_round_trip_that_changes_a_weight_is_seen(tmp_path, mutation):
    """The comparison of the tests above can fail."""
    before = tensors(embedded.DRAFT)
    after = dict(before)
    if mutation == "gap":
        after.pop("fc.weight")
    else:
        after["fc.weight"] = after["fc.weight"].clone()
        after["fc.weight"][0, 0] += 2**-8
    save_file(after, tmp_path / "model.safetensors")
    with pytest.raises(AssertionError):
        assert_same(before, tensors(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{pair}/draft", "{out}", "--to", "speculators"], "pass --target"),
        (["{pair}/draft", "{out}", "--to", "speculators", "--target", "{pair}/target"], "--target-name ID"),
        (["{pair}/draft", "{out}", "--allow", "everything"], "`--allow everything` is not a rule; known are"),
        (["{pair}/draft", "{out}", "--engine", "original"], "`head-dim`"),
        (["{pair}/draft", "{pair}/target"], "is not empty"),
        (["{pair}/draft", "{pair}/README.md"], "is a file"),
        (["{pair}/draft", "{out}", "--base", "{pair}/draft"], "is not an adapter"),
        (["{pair}/target", "{out}"], "not an EAGLE-3 draft"),
        (["/nowhere/at/all", "{out}"], "nowhere"),
        (["{pair}/draft", "{out}", "--target", "/nowhere/at/all"], "nowhere"),
        (["{pair}/draft", "{out}", "--target", "{pair}/draft"], "this draft belongs to another target"),
    ],
    ids=str,
)
def test_mistakes_of_convert_end_in_one_line(tmp_path, capsys, arguments, message):
    arguments = [a.format(pair=embedded.FOLDER, out=tmp_path / "out") for a in arguments]
    assert main(["convert", *arguments]) == 2
    error = capsys.readouterr().err
    assert "hf-eagle3 convert: " in error
    assert message in error
    assert not (tmp_path / "out").exists()


def test_facts_of_a_target():
    facts = TargetFacts("org/target", "main", ("LlamaForCausalLM",), 24, 1024)
    assert ExportTarget.load(str(embedded.TARGET), "org/target", "main").facts == facts


def test_what_engines_read_of_the_plain_file(tmp_path):
    """Through transformers' LlamaConfig, as vLLM and SGLang load it, by the attributes that their code asks for."""
    draft = Eagle3DraftModel.from_pretrained(embedded.DRAFT)
    export(draft, tmp_path, only=[VLLM, SGLANG])
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is LlamaConfig
    assert config.architectures == ["LlamaForCausalLMEagle3"]
    assert config.eagle_aux_hidden_state_layer_ids == [2, 12, 21]  # vLLM: hidden_states
    assert config.eagle_config["eagle_aux_hidden_state_layer_ids"] == [1, 11, 20]  # SGLang: layers
    assert config.eagle_config["use_aux_hidden_state"] is True
    assert (config.vocab_size, config.draft_vocab_size) == (1024, 896)
    assert config.tie_word_embeddings is False  # SGLang would put the embedding in the head's place
    assert config.rope_parameters["rope_theta"] == 10000.0
    # Both ask `hasattr(config, "target_hidden_size")`, and take what they find for set.
    for name in ("target_hidden_size", "num_aux_hidden_states", "norm_before_residual", "fc_norm", "norm_output"):
        assert not hasattr(config, name), name
