"""`hf-eagle3 inspect`: modes, sizes and fit without weights; the list of public drafts."""

import json

import pytest
import torch
from local_hub import hub  # noqa: F401
from models import CHAIN_TARGETS, TREE_TARGETS, tiny_draft, tiny_target
from replica_data import REPLICAS
from test_options import letters_tokenizer
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedConfig, T5Config

from hf_eagle3 import Eagle3Config, Eagle3DraftModel, embedded
from hf_eagle3.cli import main
from hf_eagle3.hub import registry


def report(capsys, *arguments: str) -> dict:
    assert main(["inspect", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_pair_that_fits(capsys):
    pair = ("--target", str(embedded.TARGET), "--draft", str(embedded.DRAFT))
    out = report(capsys, *pair)
    target, draft = out["target"], out["draft"]
    real_target, real_draft, _ = embedded.load_pair()
    assert (target["mode"], target["layers"], target["parameters"]) == ("tree", 24, real_target.num_parameters())
    assert target["needs"]["target_layer_ids"] == [1, 11, 20]
    assert target["known_drafts"] == []
    assert (draft["fits"], draft["parameters"]) == (True, real_draft.num_parameters())
    assert (draft["draft_vocab_size"], draft["own_embedding"], draft["own_head"]) == (896, False, True)
    assert draft["engines"]["sglang"] == "would be served as it is"
    assert main(["inspect", *pair]) == 0
    text = capsys.readouterr().out
    for words in ("tree", "attention only", "[1, 11, 20]", "fits", "none in the list of this version", "1.7 million"):
        assert words in text


def test_each_configuration_is_read_once(capsys, monkeypatch):
    """On the Hub every read is a request."""
    read, original = [], PreTrainedConfig._get_config_dict.__func__

    def counted(cls, source, **options):
        read.append(str(source))
        return original(cls, source, **options)

    monkeypatch.setattr(PreTrainedConfig, "_get_config_dict", classmethod(counted))
    report(capsys, "--target", str(embedded.TARGET))
    assert read == [str(embedded.TARGET)]


@pytest.mark.parametrize("name", [*TREE_TARGETS, *CHAIN_TARGETS])
def test_the_mode_of_a_target(tmp_path, capsys, name):
    tiny_target(name).config.save_pretrained(tmp_path)
    out = report(capsys, "--target", str(tmp_path))["target"]
    assert out["mode"] == ("tree" if name in TREE_TARGETS else "chain")
    assert out["reason"]
    assert out["needs"]["parameters"] == tiny_draft(tiny_target(name), 0, 24, **sizes_of(name)).num_parameters()


def sizes_of(name: str) -> dict:
    """What `Eagle3Config.from_target` chooses where `tiny_draft` has sizes of its own."""
    config = Eagle3Config.from_target(tiny_target(name).config)
    names = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    return {name: getattr(config, name) for name in names}


def test_the_way_it_is_loaded_counts(tmp_path, capsys):
    tiny_target().config.save_pretrained(tmp_path)
    assert report(capsys, "--target", str(tmp_path), "--attention", "eager")["target"]["mode"] == "tree"
    out = report(capsys, "--target", str(tmp_path), "--attention", "flash_attention_2")["target"]  # installed or not
    assert (out["mode"], out["attention"]) == ("tree", "flash_attention_2")
    assert "sdpa verifies trees" in out["reason"]


def test_a_target_that_is_refused(tmp_path, capsys):
    T5Config(vocab_size=24, d_model=16, num_layers=2, num_heads=2).save_pretrained(tmp_path)
    out = report(capsys, "--target", str(tmp_path))["target"]
    assert (out["mode"], "needs" in out) == ("refused", False)
    assert "encoder-decoder" in out["reason"]
    CLIPVisionConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path / "eye")
    assert main(["inspect", "--target", str(tmp_path / "eye")]) == 2
    assert "clip_vision_model model, not a language model" in capsys.readouterr().err


def test_a_target_that_also_sees(tmp_path, capsys):
    vision = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 1, "image_size": 8, "patch_size": 4}
    LlavaConfig(text_config=tiny_target().config, vision_config=vision).save_pretrained(tmp_path)
    out = report(capsys, "--target", str(tmp_path))["target"]
    assert (out["architecture"], out["layers"]) == (LlavaForConditionalGeneration.__name__, 4)


def test_a_draft_of_another_target(tmp_path, capsys):
    tiny_draft(tiny_target()).save_pretrained(tmp_path)
    out = report(capsys, "--target", str(embedded.TARGET), "--draft", str(tmp_path))["draft"]
    assert out["fits"] is False
    assert "192 wide" in out["why_not"]


def test_what_does_not_match_is_noted(tmp_path, capsys):
    """Another name, more tokens, another tokenizer: it runs, and few tokens would be accepted."""
    target = tiny_target()
    draft = tiny_draft(target, target_name_or_path="org/other")
    draft.save_pretrained(tmp_path / "draft")
    target.resize_token_embeddings(40)
    target.save_pretrained(tmp_path / "target")
    letters_tokenizer().save_pretrained(tmp_path / "target")
    pair = ("--target", str(tmp_path / "target"), "--draft", str(tmp_path / "draft"))
    out = report(capsys, *pair)["draft"]
    assert out["fits"] is True
    assert ["24 tokens, this one has 40" in note for note in out["notes"]] == [True]
    other = letters_tokenizer()
    other.save_pretrained(tmp_path / "draft")
    assert len(report(capsys, *pair)["draft"]["notes"]) == 1
    tokens = json.loads((tmp_path / "draft" / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tmp_path / "draft" / "tokenizer.json").write_text(json.dumps(tokens))
    note = report(capsys, *pair)["draft"]["notes"][1]
    assert "2 ids have different tokens" in note
    assert "'b', but 'a' for the target" in note
    assert main(["inspect", *pair]) == 0
    assert "another tokenizer" in capsys.readouterr().out


def test_a_draft_alone_and_what_engines_would_make_of_it(tmp_path, capsys):
    draft = tiny_draft(tiny_target(), norm_before_residual=True, has_lm_head=False)
    draft.config.target_name_or_path = "org/target"
    draft.save_pretrained(tmp_path)
    out = report(capsys, "--draft", str(tmp_path))["draft"]
    assert out["made_for"] == "org/target"
    assert out["flags"] == ["norm_before_residual"]
    assert out["own_head"] is False
    assert [line.split(":")[0] for line in out["engines"]["sglang"]] == ["norm-before-residual", "no-lm-head"]


def test_a_draft_on_the_hub_is_not_downloaded(hub, tmp_path, capsys):  # noqa: F811
    draft = tiny_draft(tiny_target(), num_hidden_layers=2)
    draft.save_pretrained(tmp_path / "draft")
    hub.put("user/draft", tmp_path / "draft")
    out = report(capsys, "--draft", "user/draft")["draft"]
    assert (out["decoder_layers"], out["parameters"]) == (2, draft.num_parameters())
    asked = [path for method, path in hub.log if method == "GET" and path.endswith("safetensors")]
    assert not (tmp_path / "cache" / "models--user--draft" / "blobs").exists() or not any(
        path.stat().st_size > 10_000 for path in (tmp_path / "cache").rglob("blobs/*")
    )
    assert asked  # its head was read


def test_bin_drafts_are_read_by_their_configuration(tmp_path, capsys):
    draft = tiny_draft(tiny_target())
    draft.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(draft.state_dict(), tmp_path / "pytorch_model.bin")
    assert report(capsys, "--draft", str(tmp_path))["draft"]["parameters"] == draft.num_parameters()


def test_known_drafts_are_suggested(tmp_path, capsys, hub):  # noqa: F811
    tiny_target().config.save_pretrained(tmp_path)
    hub.put("meta-llama/Llama-3.1-8B-Instruct", tmp_path)
    out = report(capsys, "--target", "meta-llama/Llama-3.1-8B-Instruct")["target"]
    assert out["known_drafts"][0]["draft"] == "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B"
    assert main(["inspect", "--target", "meta-llama/Llama-3.1-8B-Instruct"]) == 0
    assert "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B (its layout is tested; https://github.com/SafeAILab/EAGLE" in (
        capsys.readouterr().out
    )


def test_every_public_draft_has_its_source():
    drafts = registry.public_drafts()
    assert len(drafts) == len({entry.draft for entry in drafts}) > 60
    for entry in drafts:
        assert entry.source.startswith("https://")
        assert entry.draft.count("/") == entry.target.count("/") == 1
        assert entry.layers in (None, "usual")
        for defect in entry.defects:
            assert defect.source.startswith("https://")
            assert defect.published != defect.use
    found = registry.drafts_for("qwen/qwen3-8b")
    assert len(found) > 2
    assert found[0].publisher != "community"
    assert registry.drafts_for("openai/gpt-oss-20b")[-1].checked == "refused"


def test_checked_means_what_it_says():
    """A replica of a checked draft's layout loads in test_replicas.py, or is refused there."""
    loads = {replica.repository for replica in REPLICAS if replica.refused is None}
    refused = {replica.repository for replica in REPLICAS if replica.refused}
    for entry in registry.public_drafts():
        expected = "layout" if entry.draft in loads else "refused" if entry.draft in refused else False
        assert entry.checked == expected, entry.draft


def test_a_known_defect_is_replaced_and_said(hub, tmp_path, capsys, caplog):  # noqa: F811
    name = "AngelSlim/Qwen3-4B_eagle3"
    tiny_draft(tiny_target(), rope_parameters={"rope_type": "default", "rope_theta": 1e6}).save_pretrained(tmp_path)
    hub.put(name, tmp_path)
    hub.put("user/copy", tmp_path)
    assert Eagle3DraftModel.from_pretrained(name).config.rope_parameters["rope_theta"] == 10000.0
    assert "`rope_theta` 1000000.0 should be 10000.0" in caplog.text
    assert "pass rope_theta=1000000.0 to keep it" in caplog.text
    kept = Eagle3DraftModel.from_pretrained(name, rope_theta=1e6)
    assert kept.config.rope_parameters["rope_theta"] == 1e6
    assert Eagle3DraftModel.from_pretrained("user/copy").config.rope_parameters["rope_theta"] == 1e6
    out = report(capsys, "--draft", name)["draft"]
    assert out["rope"]["rope_theta"] == 10000.0
    assert ["measured there" in defect for defect in out["known_defects"]] == [True]
    assert main(["inspect", "--draft", name]) == 0
    assert "known defect, replaced" in capsys.readouterr().out
    tiny_draft(tiny_target(), rope_parameters={"rope_type": "default", "rope_theta": 5e5}).save_pretrained(tmp_path)
    hub.put(name, tmp_path)  # as if its publisher had changed the file
    caplog.clear()
    changed = Eagle3DraftModel.from_pretrained(name, force_download=True)
    assert changed.config.rope_parameters["rope_theta"] == 5e5
    assert "rope_theta" not in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Set `--target`"),
        (["--target", "/nowhere/at/all"], "nowhere"),
        (["--draft", "/nowhere/at/all"], "nowhere"),
        (["--draft", str(embedded.TARGET)], "not an EAGLE-3 draft"),
        (["--target", str(embedded.TARGET), "--attention", "magic"], "magic"),
    ],
    ids=str,
)
def test_mistakes_end_in_one_line(capsys, arguments, message):
    assert main(["inspect", *arguments]) == 2
    error = capsys.readouterr().err
    assert "hf-eagle3 inspect: " in error
    assert message in error
