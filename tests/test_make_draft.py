"""`make-draft`: from prompts to a measured draft in one command, stage by stage; what it chooses, and what it refuses.

prompts.jsonl -> regenerate -> answers.jsonl -> vocabulary -> train -> draft/ -> benchmark -> card
                                  (killed here: the next run continues with train's last checkpoint)
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
from models import tiny_target
from test_data import word_tokenizer

from hf_eagle3 import Eagle3DraftModel, embedded
from hf_eagle3.cli import main
from hf_eagle3.cli.options import make_draft as options
from hf_eagle3.cli.parsing import parser
from hf_eagle3.cli.verdict import verdict_of_benchmark, verdict_of_tau
from hf_eagle3.training_plan import Amount, plan, vocabulary_size


pytest.importorskip("datasets")
pytest.importorskip("accelerate")
ROOT = Path(__file__).parents[1]
SHORT = ("--max-new-tokens", "12", "--epochs", "2", "--device", "cpu")


def save_target(folder: Path, template: bool = True) -> Path:
    target = tiny_target()
    target.generation_config.eos_token_id = 4
    target.save_pretrained(folder)
    (word_tokenizer() if template else word_tokenizer(None)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a target that chats, and 20 prompts."""
    folder = tmp_path_factory.mktemp("make-draft")
    save_target(folder / "target")
    words = ("why", "so", "yes", "no", "be", "kind")
    prompts = [" ".join(three) for three in product(words, repeat=3)][::11]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    assert len(prompts) == 20
    return folder


def command(here: Path, output: Path, *changes: str) -> list[str]:
    given = ["--target", str(here / "target"), "--data", str(here / "prompts.jsonl"), "--output", str(output)]
    return ["make-draft", *given, *SHORT, *changes]


def make(here: Path, output: Path, *changes: str) -> int:
    return main(command(here, output, *changes))


def printed_commands(out: str) -> list[list[str]]:
    """The commands of the stages that ran."""
    return [shlex.split(line.removeprefix("+ hf-eagle3 ")) for line in out.splitlines() if line.startswith("+ ")]


@pytest.fixture(scope="module")
def made(here, tmp_path_factory):
    """(output folder, what was printed) of a whole run, in a process of its own."""
    folder = tmp_path_factory.mktemp("made") / "draft of mine"
    run = subprocess.run(
        [sys.executable, "-m", "hf_eagle3.cli", *command(here, folder)], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    return folder, run.stdout


# The whole way


def test_one_command_makes_a_measured_draft(made):
    folder, out = made
    Eagle3DraftModel.from_pretrained(folder / "draft")
    rows = json.loads((folder / "benchmark" / "benchmark.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"lookup:10", "chain:7", "tree:24,6,6", "auto"}
    assert all(row["num_prompts"] == 2 for row in rows)
    assert "18 prompts to train on, 2 held out" in out
    verdict = next(line for line in out.splitlines() if line.startswith("Verdict: tau") and "plain generate (" in line)
    assert re.search(r"tau \d\.\d\d, \d\.\d\dx plain generate \([a-z0-9:,]+\), \d\.\d\dx when sampling: ", verdict)
    assert "\nTry it:" in out.replace("  ", "")
    card = (folder / "repository" / "README.md").read_text()
    assert "## Training" in card
    assert "measured by" in card.lower()
    assert str(folder) not in card


def test_every_stage_is_a_command_of_its_own(made, tmp_path):
    """What is printed can be typed: the vocabulary command, run alone, writes the same file."""
    commands = printed_commands(made[1])
    assert [" ".join(words[:2]) if words[0] == "prepare" else words[0] for words in commands] == [
        *("prepare regenerate", "prepare vocabulary", "train", "benchmark", "push")
    ]
    alone = list(commands[1])
    alone[alone.index("--output") + 1] = str(tmp_path / "again.json")
    assert main(alone) == 0
    assert (tmp_path / "again.json").read_text() == (made[0] / "vocabulary.json").read_text()
    for words in commands:
        if words[0] != "train":  # its options come from transformers
            parser(words[0]).parse_args(words)


def test_held_out_prompts_are_not_trained_on(made):
    held_out = {json.loads(line)["prompt"] for line in (made[0] / "held-out.jsonl").read_text().splitlines()}
    asked = {
        json.loads(line)["messages"][0]["content"] for line in (made[0] / "answers.jsonl").read_text().splitlines()
    }
    assert len(held_out) == 2
    assert len(asked) == 18
    assert not held_out & asked


def test_training_json_says_what_was_trained_on(made, here):
    record = json.loads((made[0] / "draft" / "training.json").read_text())
    lines = [json.loads(line) for line in (made[0] / "answers.jsonl").read_text().splitlines()]
    held_out = record["data"].pop("held_out_samples")
    assert held_out == 1
    assert record["data"].pop("samples") == len(lines) - held_out
    answer_tokens = sum(sum(line["loss_mask"]) for line in lines)
    assert answer_tokens - 12 <= record["data"].pop("answer_tokens") < answer_tokens
    assert record["data"].pop("tokens") < sum(len(line["input_ids"]) for line in lines)
    assert record["data"] == {"names": [str(made[0] / "answers.jsonl")]}
    measured = json.loads((made[0] / "benchmark" / "benchmark.json").read_text())["settings"]
    assert record["target"]["fingerprint"] == measured["target_fingerprint"]
    assert record["target"]["name"] == str(here / "target")
    assert (record["epochs"], record["loss"], record["training_time_test_steps"]) == (2, "soft_cross_entropy", 7)
    assert record["kept_step"] in [entry["step"] for entry in record["evaluation"]["history"]]
    assert record["hardware"]["device"] == "cpu"
    assert record["seconds"] > 0
    assert record["versions"].keys() >= {"hf_eagle3", "transformers", "torch"}


def test_a_second_run_does_nothing_again(made, here, capsys):
    before = {path: path.stat().st_mtime_ns for path in made[0].rglob("*.safetensors")}
    assert make(here, made[0]) == 0
    out = capsys.readouterr().out
    assert out.count("done before, by `hf-eagle3 ") == 5
    assert printed_commands(out) == []
    assert {path: path.stat().st_mtime_ns for path in made[0].rglob("*.safetensors")} == before


def test_it_continues_after_being_killed(here, tmp_path, capsys):
    """Killed while it trains: answers are kept, and training resumes from its last checkpoint."""
    slow = ("--epochs", "40")
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_eagle3.cli", *command(here, tmp_path / "out", *slow)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    try:
        while not list((tmp_path / "out").glob("draft/checkpoint-*/trainer_state.json")):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        time.sleep(0.2)  # it is written
    finally:
        process.kill()
        process.wait()
    answers = (tmp_path / "out" / "answers.jsonl").stat().st_mtime_ns
    stages = json.loads((tmp_path / "out" / "make-draft.json").read_text())["stages"]
    assert {name: stage["finished"] for name, stage in stages.items()} == {
        "regenerate": True,
        "vocabulary": True,
        "train": False,
    }
    complete = (tmp_path / "out").glob("draft/checkpoint-*/trainer_state.json")
    last = max(int(path.parent.name.removeprefix("checkpoint-")) for path in complete)
    half = tmp_path / "out" / "draft" / f"checkpoint-{last + 4}"  # as if killed while it wrote the next one
    half.mkdir(exist_ok=True)
    (half / "model.safetensors").write_bytes(b"half")
    assert make(here, tmp_path / "out", *slow, "--skip", "benchmark", "card") == 0
    out = capsys.readouterr().out
    assert [words[0] for words in printed_commands(out)] == ["train"]
    assert (tmp_path / "out" / "answers.jsonl").stat().st_mtime_ns == answers
    steps = [int(step) for step in re.findall(r"step (\d+) of \d+  loss", out)]
    assert steps[0] > last, "it started from the beginning"
    assert "Verdict: tau" in out


def test_from_replaces_and_other_options_are_refused(here, tmp_path, capsys):
    only_train = ("--skip", "regenerate", "benchmark", "card")
    (tmp_path / "chats.jsonl").write_text(
        "".join(
            json.dumps(
                {"messages": [{"role": "user", "content": w}, {"role": "assistant", "content": "yes no so be"}]}
            )
            + "\n"
            for w in ("why", "so", "yes", "no", "be", "kind")
        )
    )
    data = ("--data", str(tmp_path / "chats.jsonl"))
    out = tmp_path / "out"
    assert make(here, out, *only_train, *data) == 0  # the answers in the data
    assert not (out / "answers.jsonl").exists()
    record = json.loads((out / "draft" / "training.json").read_text())
    assert record["data"]["names"] == [str(out / "prompts.jsonl")]
    capsys.readouterr()

    assert make(here, out, *only_train, *data, "--learning-rate", "1e-4") == 2
    error = capsys.readouterr().err
    assert "its stage train was run as `hf-eagle3 train" in error
    assert "--from train" in error
    assert make(here, out, *only_train, *data, "--learning-rate", "1e-4", "--from", "train") == 0
    assert json.loads((out / "draft" / "training.json").read_text())["learning_rate"] == 1e-4
    capsys.readouterr()

    assert make(here, out, *only_train) == 2
    assert "is not what `--output`" in capsys.readouterr().err


def test_a_lora_adapter_is_a_target(here, tmp_path):
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(
        tiny_target(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    wrapped.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(here / "target")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert make(here, tmp_path / "out", "--target", str(tmp_path / "adapter")) == 0
    record = json.loads((tmp_path / "out" / "draft" / "training.json").read_text())
    assert record["target"]["name"] == str(tmp_path / "adapter")
    measured = json.loads((tmp_path / "out" / "benchmark" / "benchmark.json").read_text())
    assert measured["settings"]["target_fingerprint"] == record["target"]["fingerprint"]
    assert all(row["identical"] for row in measured["rows"] if not row["method"].startswith("lookup"))


def test_a_base_model_continues_the_prompts(here, tmp_path):
    save_target(tmp_path / "base", template=False)
    changes = ("--target", str(tmp_path / "base"), "--base-model", "--skip", "benchmark", "card")
    assert make(here, tmp_path / "out", *changes) == 0
    assert "text" in json.loads((tmp_path / "out" / "answers.jsonl").read_text().splitlines()[0])


@pytest.mark.nightly  # a hundred seconds of one core
@pytest.mark.timeout(1800)
def test_the_embedded_target_gets_a_draft_in_two_minutes_of_one_core(tmp_path):
    """A real, if small, target: its draft accepts tokens after a minute of training."""
    rows = [json.dumps({"prompt": row["prompt"]}) + "\n" for row in embedded.prompts("math")]
    (tmp_path / "prompts.jsonl").write_text("".join(rows))
    words = ["make-draft", "--target", str(embedded.TARGET), "--data", str(tmp_path / "prompts.jsonl")]
    start = time.process_time()
    assert main([*words, "--output", str(tmp_path / "out"), "--max-new-tokens", "32", "--device", "cpu"]) == 0
    assert time.process_time() - start < 120 * (os.cpu_count() or 1)
    rows = json.loads((tmp_path / "out" / "benchmark" / "benchmark.json").read_text())["rows"]
    assert all(row["identical"] for row in rows if row["temperature"] == 0)
    tree = next(row for row in rows if row["method"] == "tree:24,6,6" and row["temperature"] == 0)
    assert tree["acceptance_length"] > 1.3


# What it chooses


@pytest.mark.parametrize(
    ("amount", "width", "expected"),
    [
        # samples, tokens, answer tokens, long sample -> epochs, rate, samples, tokens, batches per step, length
        (Amount(20, 1_500, 1_200, 90), 192, (16, 2e-3, 7, 525, 1, 256)),
        (Amount(200, 40_000, 30_000, 300), 192, (16, 2e-3, 8, 1600, 1, 512)),
        (Amount(1_536, 400_000, 257_000, 600), 576, (8, 2e-3, 31, 8073, 1, 768)),
        (Amount(11_000, 2_000_000, 1_500_000, 300), 192, (4, 1e-3, 45, 8182, 2, 512)),
        (Amount(60_000, 20_000_000, 15_000_000, 3_000), 4096, (2, 1e-4, 25, 8333, 2, 2048)),
        (Amount(500_000, 400_000_000, 300_000_000, 5_000), 4096, (2, 1e-4, 10, 8000, 2, 2048)),
    ],
)
def test_options_follow_from_the_amount_of_data(amount, width, expected):
    found = plan(amount, width)
    assert (found.epochs, found.learning_rate) == expected[:2]
    assert (found.batch_samples, found.batch_tokens, found.accumulation, found.max_length) == expected[2:]


def test_wider_drafts_learn_more_slowly_and_users_decide():
    amount = Amount(200, 40_000, 30_000, 300)
    assert plan(amount, 2048).learning_rate == 1e-3
    assert plan(amount, 192, epochs=3, learning_rate=5e-4).epochs == 3
    assert plan(amount, 4096, learning_rate=5e-4).learning_rate == 5e-4


@pytest.mark.parametrize(
    ("counts", "size"),
    [
        ([5] * 1000, 1000),  # a small tokenizer: all of it
        ([10] * 4096 + [0] * 6000, 4096),
        ([10] * 4096 + [1] * 200, 4096),  # 200 of 41,160 tokens are outside: 0.49 %
        ([10] * 4096 + [1] * 300, 4396),  # 0.73 %
        ([1] * 40_000, 40_000),
        ([100] * 8000 + [1] * 2000 + [0] * 90_000, 8192),
    ],
)
def test_the_smallest_vocabulary_that_covers_the_answers(counts, size):
    assert vocabulary_size(counts, len(counts)) == size


# What it says


def row(method: str, speedup: float | None, tau: float | None, temperature: float = 0.0, interval=None) -> dict:
    values = {"method": method, "speedup": speedup, "acceptance_length": tau, "temperature": temperature}
    return values | {"speedup_interval": interval}


@pytest.mark.parametrize(
    ("rows", "is_worth", "words"),
    [
        (
            [row("chain:5", 0.93, 1.4), row("auto", 0.9, 1.2)],
            False,
            "tau 1.40, 0.93x plain generate (chain:5): slower than plain here; try more data of the kind it is used "
            "for, or more epochs (it was trained on 9,000 answer tokens)",
        ),
        (
            [row("chain:5", 1.5, 2.9), row("auto", 1.9, 3.0, interval=[1.7, 2.0]), row("auto", 1.6, 2.5, 1.0)],
            True,
            "tau 3.00, 1.90x plain generate (auto), 1.60x when sampling: worth using here.",
        ),
        ([row("auto", 1.3, 2.0, interval=[0.9, 1.5])], False, "no faster than plain here; try more data"),
        ([row("tree:24,6,6", 0.8, 3.4), row("auto", 1.0, 2.0)], False, "too expensive on this machine"),
        (
            [row("auto", 1.2, 2.0), row("lookup:10", 1.41, 1.8)],
            True,
            "Prompt lookup, which needs no draft, reaches 1.41x",
        ),
        ([row("auto", None, 2.0)], False, "the text differs"),
    ],
)
def test_the_verdict_follows_from_the_figures(rows, is_worth, words):
    text, found = verdict_of_benchmark(rows, 9000)
    assert found is is_worth
    assert words in text


@pytest.mark.parametrize(("tau", "words"), [(1.1, "slower than plain"), (1.9, "break-even"), (3.0, "worth measuring")])
def test_a_verdict_without_a_speedup(tau, words):
    assert words in verdict_of_tau(tau, "chain:5", None)


# What it refuses


def test_mistakes_are_one_line_with_their_remedy(here, tmp_path, capsys):
    save_target(tmp_path / "base", template=False)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "three.jsonl").write_text('{"prompt": "why"}\n' * 3)
    (tmp_path / "columns.jsonl").write_text('{"question": "why"}\n' * 9)
    (tmp_path / "data.csv").write_text("why\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "make-draft.json").write_text("{")
    cases = [
        (["--data", "nowhere.jsonl"], "`--data` nowhere.jsonl does not exist; use"),
        (["--data", f"{tmp_path}/nowhere"], "/nowhere does not exist; use"),
        (["--data", f"{tmp_path}/empty.jsonl"], "empty.jsonl` is empty: it has no rows."),
        (["--data", f"{tmp_path}/three.jsonl"], "has 3 prompts in 3 rows; at least 4 are needed"),
        (["--data", f"{tmp_path}/columns.jsonl"], "has 0 prompts in 9 rows"),
        (["--data", f"{tmp_path}/data.csv"], "supported are .json"),
        (["--target", f"{tmp_path}/base"], "its tokenizer has no chat template. Save the model with"),
        (["--target", "./nowhere"], "`--target` ./nowhere does not exist; use a directory or Hub id"),
        (["--base-model"], "`--base-model` has no effect"),
        (["--output", f"{tmp_path}/other"], "holds other files (thesis.txt); choose a new or empty folder"),
        (["--output", f"{tmp_path}/empty.jsonl"], "is a file; choose a folder"),
        (["--output", f"{tmp_path}/broken"], "make-draft.json cannot be read"),
        (["--held-out", "15"], "`--held-out` 15 is more than half of 20 prompts; use fewer"),
        (["--learning-rate", "3"], "`--learning-rate` is 3; use a number between 0 and 1"),
        (["--from", "train", "--skip", "train"], "contradicts"),
        (["--served-name", "x"], "`--served-name` has no effect without `--endpoint`"),
        (["--skip", *options.STAGES[:3]], "The stage benchmark needs a draft in"),
        (["--skip", "vocabulary"], "omit `--skip vocabulary`"),
    ]
    for number, (changes, message) in enumerate(cases):
        assert make(here, tmp_path / f"out-{number}", *changes) == 2, changes
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("hf-eagle3", "Traceback"))]
        assert len(lines) == 1, lines
        assert lines[0].startswith("hf-eagle3 make-draft: ")
        assert message in lines[0]
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"
