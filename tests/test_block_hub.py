"""Block drafters in `convert`, `push`, `inspect` and on the model card; what engines make of their files.

z-lab's and DeepSpec's folder -> convert -> the same tensors and states, with the causal flag that engines read
"""

import json
import shutil

import pytest
import torch
from conftest import DATA
from models import left_padded, tiny_target
from safetensors.torch import load_file
from test_block import VIEWS, block_draft

import hf_eagle3
from hf_eagle3 import BlockDraftConfig, BlockDraftModel
from hf_eagle3.cli import main
from hf_eagle3.errors import UserError
from hf_eagle3.hub import engines
from hf_eagle3.hub.engines import Case, TargetFacts, check_export, findings
from hf_eagle3.hub.formats import BLOCK, PLAIN, SGLANG, VLLM
from hf_eagle3.model_loading import load_shareable_draft


PARITY = DATA / "parity" / "block"
SHAPE = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "target_layer_ids": [1, 5, 9], "block_size": 4}
SHAPE |= {"intermediate_size": 48, "num_hidden_layers": 2}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
COPIES = {"has_embed_tokens": True, "has_lm_head": True}
# What each engine makes of a block drafter: silently wrong (!), refuses by itself (x), or nothing.
RULES = {
    "tapped-layers-order": ({"target_layer_ids": [5, 1, 9]}, {VLLM: "!", SGLANG: "!"}),
    "hidden-act": ({"hidden_act": "gelu"}, {VLLM: "x", SGLANG: "x"}),
    "max-position-embeddings": ({"max_position_embeddings": 100}, {SGLANG: "x"}),
    "block-shift": ({"is_shifted": True}, {VLLM: "!", SGLANG: "!"}),
    "block-deepspec": ({"is_shifted": True, **COPIES}, {VLLM: "x", SGLANG: "x"}),
    "block-width": ({"target_hidden_size": 64, **COPIES}, {SGLANG: "x"}),
    "block-mixed-attention": (MIXED, {VLLM: "x"}),
}
FACTS = TargetFacts("org/target", None, ("LlamaForCausalLM",), 12, 2048)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(target, its folder, the draft's folder)."""
    folder, target = tmp_path_factory.mktemp("pair"), tiny_target()
    target.save_pretrained(folder / "target")
    draft = block_draft(target, is_causal=True).with_tree("static", **VIEWS["tree"][1])
    draft.save_pretrained(folder / "draft")
    return target, folder / "target", folder / "draft"


@pytest.mark.parametrize("name", ["zlab", "jetspec", "deepspec", "muse"])
def test_converted_drafts_compute_the_same_and_name_what_engines_read(name, tmp_path):
    assert main(["convert", str(PARITY / name), str(tmp_path / "out")]) == 0
    recorded = load_file(PARITY / f"{name}.safetensors")
    before, after = (BlockDraftModel.from_pretrained(path).eval() for path in (PARITY / name, tmp_path / "out"))
    with torch.no_grad():
        states = [draft(recorded["embeds"], recorded["features"]) for draft in (before, after)]
    assert torch.equal(*states)
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    if name == "deepspec":
        assert raw["architectures"] == ["Qwen3DSparkModel"]
    else:
        assert raw["is_causal"] is raw["dflash_config"]["causal"] is (name == "jetspec")


def test_a_converted_draft_names_its_target_and_gives_the_same_text(pair, tmp_path):
    target, where, draft = pair
    options = ["--target", str(where), "--target-name", "org/target"]
    assert main(["convert", str(draft), str(tmp_path / "out"), *options]) == 0
    loaded = BlockDraftModel.from_pretrained(tmp_path / "out").eval()
    assert loaded.config.target_name_or_path == "org/target"
    inputs, settings = left_padded([9]), {"max_new_tokens": 20, "do_sample": False}
    counts = []
    for assistant in (BlockDraftModel.from_pretrained(draft).eval(), loaded):
        with hf_eagle3.record() as stats:
            text = target.generate(**inputs, **settings, assistant_model=assistant)
        counts.append((text.tolist(), stats.num_cycles))
    assert counts[0] == counts[1]


def test_a_repository_with_its_card_and_code(pair, tmp_path, capsys):
    _, where, draft = pair
    out = tmp_path / "out"
    names = ["--target", str(where), "--target-name", "org/target"]
    assert main(["push", str(draft), "user/block", "--dry-run", str(out), *names]) == 0
    card = (out / "README.md").read_text()
    for line in (
        "A causal block drafter (JetSpec, [arXiv 2606.18394]",
        "| block | 5 positions, 4 predicted per pass; each sees those before it |",
        'hf_eagle3.BlockDraftModel.from_pretrained("user/block")',
        """'{"method": "dflash", "model": "user/block", "num_speculative_tokens": 4}'""",
        "--speculative-algorithm DFLASH --speculative-draft-model-path user/block",
    ):
        assert line in card, line
    assert "EAGLE" not in card
    assert "- dflash\n" in card
    code = (out / "custom_generate" / "generate.py").read_text()
    assert "hf_eagle3.BlockDraftModel.from_pretrained(repository" in code
    assert "Eagle3DraftModel" not in code
    compile(code, "generate.py", "exec")
    assert BlockDraftModel.push_to_hub is hf_eagle3.Eagle3DraftModel.push_to_hub


def test_inspect_reads_shapes_and_what_engines_would_do(pair, tmp_path, capsys):
    _, where, draft = pair
    assert main(["inspect", "--draft", str(draft), "--target", str(where), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["draft"]
    assert (report["kind"], report["block_size"], report["predictions_per_pass"]) == ("BlockDraftModel", 5, 4)
    assert report["sees_later_positions"] == [False, False]
    assert report["parameters"] == sum(p.numel() for p in BlockDraftModel.from_pretrained(draft).parameters())
    assert report["fits"] is True
    assert set(report["engines"]) == {VLLM, SGLANG}
    assert main(["inspect", "--draft", str(PARITY / "deepspec"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["draft"]
    assert (report["own_embedding"], report["own_head"], report["predictions_per_pass"]) == (True, True, 5)


def test_a_causal_flag_that_engines_do_not_read_is_reported(tmp_path, capsys):
    """JetSpec's own files have `causal_head` alone; vLLM reads `causal` beside it, SGLang `is_causal`."""
    folder = shutil.copytree(PARITY / "jetspec", tmp_path / "draft")
    raw = json.loads((folder / "config.json").read_text())
    nested = {name: value for name, value in raw["dflash_config"].items() if name != "causal"}
    found = {}
    for what, changes in {
        "causal_head": {"dflash_config": nested | {"causal_head": True}},
        "causal": {"dflash_config": nested | {"causal_head": True, "causal": True}},
        "is_causal": {"dflash_config": nested | {"causal_head": True}, "is_causal": True},
    }.items():
        (folder / "config.json").write_text(json.dumps({**raw, **changes}))
        assert main(["inspect", "--draft", str(folder), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)["draft"]
        found[what] = {engine for engine, remarks in report["engines"].items() if "bidirectional" in str(remarks)}
    assert found == {"causal_head": {VLLM, SGLANG}, "causal": {SGLANG}, "is_causal": set()}


def test_the_rules_about_block_drafters_are_all_tested():
    unread = {"block-causal-nested", "block-causal-unnamed"}
    assert set(RULES) | unread == {rule.name for rule in engines.RULES if BLOCK in rule.kinds}


def reported(case: Case) -> dict[str, dict[str, str]]:
    out: dict[str, dict[str, str]] = {}
    for finding in findings(case):
        out.setdefault(finding.rule.name, {})[finding.engine] = "!" if finding.rule.silent else "x"
    return out


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_about_block_drafters(rule):
    changes, expected = RULES[rule]
    case = Case(BlockDraftConfig(**SHAPE | changes), PLAIN, FACTS)
    assert reported(case)[rule] == expected
    assert reported(Case(BlockDraftConfig(**SHAPE), PLAIN, FACTS)) == {}
    for engine in expected:
        with pytest.raises(ValueError, match=f"`{rule}`"):
            check_export(case, [engine])


def test_other_kinds_of_drafts_are_not_shared(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(BlockDraftConfig, "model_type", "another")
    with pytest.raises(UserError, match="only EAGLE-3 drafts and block drafters can be converted"):
        load_shareable_draft(str(pair[2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "speculators"], "speculators' format of block drafters is not written"),
        (["--engine", "original"], "the original EAGLE code does not read block drafters"),
        (["--target", "TARGET", "--store-head"], "a block drafter's head is always the target's"),
        (["--target", "TARGET", "--verify", "vllm"], "`--verify` compares EAGLE-3 drafts"),
    ],
)
def test_what_makes_no_sense_of_a_block_drafter_ends_in_one_line(pair, options, message, tmp_path, capsys):
    _, where, draft = pair
    options = [str(where) if option == "TARGET" else option for option in options]
    assert main(["convert", str(draft), str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
