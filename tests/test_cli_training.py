"""`hf-eagle3 prepare` and `train` from conversations to a draft, and what they say to mistakes."""

import json
import re
import resource
import shutil

import pytest
import torch
import training_setup
from datasets import Dataset
from local_hub import hub  # noqa: F401
from models import tiny_target
from safetensors.torch import load_file
from test_data import CHAT, word_tokenizer
from transformers import AutoConfig

import hf_eagle3
from hf_eagle3.cli import main
from hf_eagle3.cli.train import split_off
from hf_eagle3.model_loading import load_any_draft


SIZES = ["head_dim=8", "num_attention_heads=4", "num_key_value_heads=2", "intermediate_size=48"]
QUICK = ["--use-cpu", "true", "--report-to", "none", "--disable-tqdm", "true", "--training-time-test-steps", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A target with a chat tokenizer, and chats to learn from."""
    folder = tmp_path_factory.mktemp("training")
    target = tiny_target()
    target.generation_config.eos_token_id = 4
    target.save_pretrained(folder / "target")
    word_tokenizer().save_pretrained(folder / "target")
    chats = [{"messages": CHAT[: 2 + 2 * (i % 2)]} for i in range(60)]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    return folder


def train(folder, out, *arguments: str) -> list[str]:
    options = [text for size in SIZES for text in ("--draft-option", size)]
    return [
        *("train", "--target", str(folder / "target"), "--output-dir", str(out), *QUICK, *options),
        *("--max-steps", "3", "--save-strategy", "no", *arguments),
    ]


def test_from_prompts_to_a_draft(folder, capsys):
    """regenerate, vocabulary, features, train online and offline, generate."""
    target, data = str(folder / "target"), str(folder / "answers.jsonl")
    common = ["--target", target, "--device", "cpu"]
    prepare = ["prepare", "regenerate", "--data", str(folder / "chats.jsonl"), "--output", data, *common]
    assert main([*prepare, "--max-new-tokens", "12", "--limit", "40"]) == 0
    assert "40 conversations written" in capsys.readouterr().out
    assert main([*prepare, "--max-new-tokens", "12"]) == 0
    assert "20 conversations written" in capsys.readouterr().out

    counted = str(folder / "counts.json")
    assert main(["prepare", "vocabulary", "--data", data, "--target", target, "--output", counted]) == 0
    assert "distinct" in capsys.readouterr().out
    features = ["prepare", "features", "--data", data, *common, "--output", str(folder / "features")]
    assert main([*features, "--estimate"]) == 0
    assert "GiB" in capsys.readouterr().out
    assert not (folder / "features").exists()
    assert main(features) == 0

    online, offline = folder / "online", folder / "offline"
    shared = ("--draft-vocab-size", "9", "--vocabulary", counted, "--num-generation-prompts", "1")
    assert main(train(folder, online, "--train-data", data, *shared)) == 0
    out = capsys.readouterr().out
    assert re.search(r"evaluation: loss [\d.]+  accuracy [\d.]+ to [\d.]+  tau [\d.]+$", out, re.MULTILINE)
    assert "Verdict: tau" in out
    assert "Next, measure the speedup: hf-eagle3 benchmark" in out
    assert "{" not in out, "figures for machines are in training.json"
    assert main(train(folder, offline, "--features", str(folder / "features"), *shared)) == 0
    capsys.readouterr()
    for out in (online, offline):
        draft = hf_eagle3.Eagle3DraftModel.from_pretrained(out)
        assert draft.config.draft_vocab_size == 9
        assert draft.config.intermediate_size == 48
    prompt = ["generate", "--target", target, "--draft", str(online), "--prompt", "why so", "--tree", "chain"]
    assert main([*prompt, "--device", "cpu", "--max-new-tokens", "12", "--compare", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["identical"] is True


@pytest.mark.parametrize(("size", "held_out"), [(1, 0), (2, 1), (49, 4), (100, 8), (500, 10), (12_000, 200)])
def test_a_part_is_held_out_however_few_there_are(size, held_out):
    data = Dataset.from_dict({"number": range(size)})
    kept, evaluation = split_off(data)
    found = [] if evaluation is None else evaluation["number"]
    assert len(found) == held_out
    assert sorted([*kept["number"], *found]) == list(range(size))


def test_a_config_file_with_flags_over_it(folder, tmp_path, capsys):
    config = tmp_path / "train.yaml"
    config.write_text(
        f"target: {folder / 'target'}\ntrain-data: {folder / 'chats.jsonl'}\noutput_dir: {tmp_path / 'out'}\n"
        "recipe: speculators\nmax_steps: 2\nlearning_rate: 1e-3\nuse_cpu: true\nreport_to: none\n"
        "draft_option: {head_dim: 8, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 40}\n"
        "num_generation_prompts: 0\n"
    )
    assert main(["train", "--config", str(config), "--max-steps", "1", "--training-time-test-steps", "2"]) == 0
    logged = capsys.readouterr().out
    assert "accuracy_" not in logged
    steps = json.loads((tmp_path / "out" / "training.json").read_text())["training_time_test_steps"]
    assert steps == 2
    assert hf_eagle3.Eagle3DraftModel.from_pretrained(tmp_path / "out").config.intermediate_size == 40


def test_resume_true_takes_the_last_checkpoint(folder, tmp_path, capsys):
    data = ("--train-data", str(folder / "chats.jsonl"), "--save-strategy", "steps", "--save-steps", "2")
    last = ("--num-generation-prompts", "0", "--resume-from-checkpoint", "true")
    assert main(train(folder, tmp_path, *data, *last, "--max-steps", "2")) == 0  # nothing to resume yet
    before = load_file(tmp_path / "checkpoint-2" / "model.safetensors")["fc.weight"]
    assert main(train(folder, tmp_path, *data, *last, "--max-steps", "4")) == 0
    assert not torch.equal(before, load_file(tmp_path / "model.safetensors")["fc.weight"])
    assert json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["global_step"] == 4


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_truncated_checkpoint_is_named_with_the_remedy(folder, tmp_path, name, capsys):
    data = ("--train-data", str(folder / "chats.jsonl"), "--save-strategy", "steps", "--save-steps", "1")
    last = ("--num-generation-prompts", "0", "--resume-from-checkpoint", "true")
    assert main(train(folder, tmp_path, *data, *last, "--max-steps", "2")) == 0
    cut = tmp_path / "checkpoint-2" / name
    cut.write_bytes(cut.read_bytes()[:-40])
    capsys.readouterr()
    assert main(train(folder, tmp_path, *data, *last, "--max-steps", "3")) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("hf-eagle3 train: `--resume-from-checkpoint`: ")
    assert "checkpoint-2" in line
    assert "delete it and resume from the previous checkpoint" in line
    shutil.rmtree(tmp_path / "checkpoint-2")
    assert main(train(folder, tmp_path, *data, *last, "--max-steps", "2")) == 0


def test_a_full_disk_while_features_are_computed(folder, tmp_path, capsys):
    """Under a limit on file sizes. What was written is kept, and the next run continues after it."""
    common = ["--data", str(folder / "chats.jsonl"), "--target", str(folder / "target"), "--device", "cpu"]
    features = ["prepare", "features", *common, "--output", str(tmp_path / "features")]
    assert main([*features, "--estimate"]) == 0  # the data set is in its cache now
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        assert main(features) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("hf-eagle3 prepare: writing failed because the disk is full")
    assert "Free some space" in line
    assert main(features) == 0


def test_draft_option_overrides_a_given_draft(folder, tmp_path, capsys):
    """Beside `--draft`, `--draft-option` overrides what the file says, as `from_pretrained` does."""
    data = ("--train-data", str(folder / "chats.jsonl"), "--num-generation-prompts", "0")
    assert main(train(folder, tmp_path / "first", *data)) == 0
    again = ["train", "--target", str(folder / "target"), "--output-dir", str(tmp_path / "second"), *QUICK, *data]
    again += ["--max-steps", "1", "--save-strategy", "no", "--draft", str(tmp_path / "first")]
    assert main([*again, "--draft-option", "rope_theta=500.0", "--draft-option", "norm_output=true"]) == 0
    config = hf_eagle3.Eagle3DraftModel.from_pretrained(tmp_path / "second").config
    assert config.norm_output is True
    assert config.rope_parameters["rope_theta"] == 500.0
    capsys.readouterr()
    assert main([*again, "--draft-option", "width=3"]) == 2
    assert "`--draft-option width` is not a field of Eagle3Config" in capsys.readouterr().err


@pytest.fixture(scope="module")
def adapter(folder):
    """(a draft, an adapter that was trained over it)."""
    hf_eagle3.Eagle3DraftModel(small_config(folder)).save_pretrained(folder / "first")
    arguments = ("--train-data", str(folder / "chats.jsonl"), "--lora-rank", "2", "--num-generation-prompts", "0")
    options = ("--draft", str(folder / "first"), "--learning-rate", "0.5")
    assert main(train(folder, folder / "adapter", *arguments, *options)) == 0
    return folder / "first", folder / "adapter"


def small_config(folder):
    sizes = {name: int(value) for name, value in (size.split("=") for size in SIZES)}
    target = AutoConfig.from_pretrained(folder / "target")
    return hf_eagle3.Eagle3Config.from_target(target, has_lm_head=True, **sizes)


def test_lora_saves_adapter_and_merged_draft(adapter):
    first, folder = adapter
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(first)
    assert not (folder / "base").exists()
    hf_eagle3.Eagle3DraftModel.from_pretrained(folder / "merged")


def test_an_adapter_is_a_draft_for_every_command(adapter, folder, tmp_path, capsys):
    first, source = adapter
    merged = load_file(source / "merged" / "model.safetensors")
    target = ["--target", str(folder / "target")]
    assert main(["convert", str(source), str(tmp_path / "plain")]) == 0
    assert main(["push", str(source), "user/draft", "--dry-run", str(tmp_path / "pushed"), *target]) == 0
    for out in ("plain", "pushed"):
        written = load_file(tmp_path / out / "model.safetensors")
        assert written.keys() == merged.keys()
        for name, tensor in written.items():
            torch.testing.assert_close(tensor, merged[name], msg=name)
    assert not torch.equal(merged["fc.weight"], load_file(first / "model.safetensors")["fc.weight"])
    capsys.readouterr()

    figures = []
    for draft in (source, source / "merged"):
        options = ["--device", "cpu", "--max-new-tokens", "24", "--json", "--dtype", "float32", "--tree", "static"]
        assert main(["generate", *target, "--draft", str(draft), "--prompt", "why so", *options]) == 0
        report = json.loads(capsys.readouterr().out)
        figures.append((report["num_cycles"], report["accepted_histogram"]))
    assert figures[0] == figures[1]

    assert main(["inspect", *target, "--draft", str(source), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["draft"]
    assert (report["name"], report["adapter_of"], report["fits"]) == (str(source), str(first), True)


def test_an_adapter_over_a_draft_without_a_name_keeps_it(tmp_path):
    peft = pytest.importorskip("peft")
    draft = training_setup.fresh_draft()
    before = {name: tensor.clone() for name, tensor in draft.state_dict().items()}
    options = {"peft_config": peft.LoraConfig(r=2, target_modules=["fc", "q_proj"], init_lora_weights=False)}
    run = training_setup.trainer(tmp_path, draft=draft, trainer_options=options, save_strategy="steps", save_steps=3)
    run.train()
    run.save_model()
    expected = run.accelerator.unwrap_model(run.model).merge_and_unload().state_dict()
    tmp_path.rename(tmp_path.parent / "moved")
    moved = tmp_path.parent / "moved"
    for folder in (moved, moved / "checkpoint-6"):
        found = load_any_draft(str(folder)).state_dict()
        assert found.keys() == expected.keys() == before.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], msg=name)
    assert not torch.equal(before["fc.weight"], expected["fc.weight"])


def test_an_adapter_whose_base_is_gone_says_which(adapter, tmp_path, capsys):
    shutil.copytree(adapter[1], tmp_path / "adapter")
    raw = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for named, message in (
        (f"{tmp_path}/gone", f"an adapter of `{tmp_path}/gone`"),
        (None, "not name its base draft"),
    ):
        raw["base_model_name_or_path"] = named
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(raw))
        assert main(["convert", str(tmp_path / "adapter"), str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "--base" in error
    assert main(["convert", str(tmp_path / "adapter"), str(tmp_path / "out"), "--base", str(adapter[0])]) == 0
    with pytest.raises(OSError, match=r"is a LoRA adapter, not a draft; .*hf-eagle3 convert"):
        hf_eagle3.Eagle3DraftModel.from_pretrained(adapter[1])


def test_from_training_to_generation_by_id(hub, folder, tmp_path, capsys):  # noqa: F811
    """train -> push -> generate with the id: the same tau as with the directory."""
    out = tmp_path / "trained"
    data = ("--train-data", str(folder / "chats.jsonl"), "--num-generation-prompts", "0")
    assert main(train(folder, out, *data)) == 0
    target = str(folder / "target")
    assert main(["push", str(out), "user/trained", "--target", target, "--target-name", "org/target"]) == 0
    assert "/user/trained/commit/" in capsys.readouterr().out
    reports = []
    for name in (str(out), "user/trained"):
        options = ["--device", "cpu", "--max-new-tokens", "16", "--compare", "--json", "--dtype", "float32"]
        options += ["--tree", "static"]  # the mode auto chooses by measured time
        assert main(["generate", "--target", target, "--draft", name, "--prompt", "why so", *options]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert [report["identical"] for report in reports] == [True, True]
    assert reports[0]["acceptance_length"] == reports[1]["acceptance_length"]
    assert reports[0]["accepted_histogram"] == reports[1]["accepted_histogram"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train-data", "{folder}/missing.jsonl"], "missing.jsonl"),
        ([], "--train-data"),
        (["--train-data", "{folder}/chats.jsonl", "--draft-option", "width"], "NAME=VALUE"),
        (["--train-data", "{folder}/chats.jsonl", "--draft-option", "width=3"], "width"),
        (["--train-data", "{folder}/chats.jsonl", "--max-length", "5"], "none of 60 samples"),
        (["--train-data", "{folder}/chats.jsonl", "--draft-vocab-size", "99"], "draft_vocab_size"),
        (["--train-data", "{folder}/chats.jsonl", "--step-decay", "2"], "step_decay"),
        (["--train-data", "{folder}/chats.jsonl", "--lora-rank", "2"], "set `--draft`"),
        (["--features", "{folder}/target"], "prepare features"),
        (["--features", "{folder}/target", "--eval-data", "x"], "held out instead"),
        (["--train-data", "{folder}/chats.jsonl", "--draft-option", "intermediate_size=many"], "intermediate_size"),
        (["--train-data", "{folder}/chats.jsonl", "--draft-option", "target_layer_ids=[1,"], "not valid YAML"),
        (["--train-data", "{folder}/target/config.json"], "A sample has the columns"),
        (
            ["--train-data", "{folder}/chats.jsonl", "--vocabulary", "{folder}/chats.jsonl"],
            "`--vocabulary` has no effect",
        ),
        (
            [
                *("--train-data", "{folder}/chats.jsonl", "--draft-vocab-size", "9"),
                "--vocabulary",
                "{folder}/chats.jsonl",
            ],
            "`--vocabulary` {folder}/chats.jsonl cannot be read",
        ),
        (
            [
                *("--train-data", "{folder}/chats.jsonl", "--draft-vocab-size", "9"),
                "--vocabulary",
                "{folder}/target/config.json",
            ],
            "`--vocabulary` {folder}/target/config.json contains no counts",
        ),
        (["--train-data", "{folder}/chats.jsonl", "--target", "{folder}"], "`--target` {folder} cannot be loaded"),
        (
            ["--train-data", "{folder}/chats.jsonl", "--resume-from-checkpoint", "{folder}/no"],
            "/no is not a directory",
        ),
        (
            ["--train-data", "{folder}/chats.jsonl", "--load-best-model-at-end", "true", "--eval-strategy", "steps"],
            "The training arguments cannot be used: --load_best_model_at_end requires the save and eval strategy",
        ),
        (
            ["--config", "{folder}/target/model.safetensors"],
            "`--config {folder}/target/model.safetensors` cannot be read",
        ),
    ],
    ids=str,
)
def test_mistakes_end_in_one_line(folder, tmp_path, capsys, arguments, message):
    arguments = [a.format(folder=folder) for a in arguments]
    assert main(train(folder, tmp_path, *arguments)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hf-eagle3 train:")
    assert message.format(folder=folder) in error


def test_every_field_of_the_arguments_has_its_help(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in ("Peak learning rate", "--training-time-test-steps", "Original code: 7", "--config", "--packing"):
        assert words in text
