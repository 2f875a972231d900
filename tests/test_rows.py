"""One bad row never ends a run: it is left out, counted, and reported with its number and the reason.

row 1   {"messages": [...]}                     used
row 2   {"messages": [{"content": "why"}]}      left out: `messages`[0] has no `role`
row 3   {"messages": [...]}                     used
"""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from test_data import CHAT, MASK, word_tokenizer
from training_setup import losses, trainer, written

from hf_eagle3.benchmarks.prompts import Prompt, load_task
from hf_eagle3.cli import main
from hf_eagle3.data.conversations import tokenise
from hf_eagle3.data.features import FeatureWriter
from hf_eagle3.data.loading import load, tokenised
from hf_eagle3.data.messages import messages_of
from hf_eagle3.data.regenerate import Job, regenerate


GOOD = json.dumps({"messages": CHAT})
BAD = {
    "no role": ('{"messages": [{"content": "why"}]}', "`messages`[0] has no `role` (its keys: content)"),
    "no speaker": ('{"conversations": [{"value": "why"}]}', "`conversations`[0] has no `from`"),
    "number": ('{"messages": [{"role": "user", "content": 7}]}', "`messages`[0] has the content 7"),
    "unknown speaker": ('{"conversations": [{"from": "cat", "value": "no"}]}', "the role 'cat'"),
    "strings": ('{"conversations": ["a"]}', "`conversations`[0] is 'a'"),
    "no list": ('{"messages": "why"}', "`messages` is 'why'; expected a list"),
    "image": (
        '{"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "why"}]}]}',
        "parts that are not text (image)",
    ),
    "surrogate": ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "lone surrogate"),
    "no messages": ('{"messages": []}', "`messages` contains no question (0 messages)"),
    "answers only": ('{"messages": [{"role": "assistant", "content": "so"}]}', "contains no question (1 messages)"),
    "null text": ('{"text": null}', "it needs one of `messages`"),
    "listed text": ('{"text": ["why"]}', "['why']"),
    "other columns": ('{"question": "why"}', "it needs one of `messages`"),
    "no object": ("[1, 2]", "it is [1, 2], not a JSON object"),
    "no JSON": ('{"messages": [', "line 2 is not JSON"),
    "no UTF-8": ('{"text": "\xff"}', "line 2 is not JSON ('utf-8' codec"),
}
BAD_TOKENS = {
    "nested": ('{"input_ids": [[5, 6], [7]]}', "`input_ids` is [[5, 6], [7]]; expected one list of integers"),
    "float": ('{"input_ids": [5.5, 6]}', "`input_ids` is [5.5, 6"),
    "infinite": ('{"input_ids": [5, 6, 7, Infinity]}', ", inf]; expected one list of integers"),
    "words": ('{"input_ids": ["5", "6", "7"]}', "`input_ids` is ['5', '6', '7']"),
    "no list": ('{"input_ids": 5}', "`input_ids` is 5;"),
    "too large": ('{"input_ids": [5, 6, 7, 12]}', "It contains token id 12, but the target's vocabulary ends at 11"),
    "negative": ('{"input_ids": [5, 6, 7, -1]}', "It contains token id -1, but the target's vocabulary ends at 11"),
    "short mask": ('{"input_ids": [5, 6, 7], "loss_mask": [1]}', "has 3 tokens, its mask 1"),
    "nested mask": ('{"input_ids": [5, 6, 7], "loss_mask": [[1], [1], [1]]}', "`loss_mask` is [[1], [1], [1]]"),
    "short padding": ('{"input_ids": [5, 6, 7], "attention_mask": [1]}', "3 tokens, `attention_mask` 1"),
}
UNLEARNABLE = {
    "zero mask": '{"input_ids": [5, 6, 7, 8], "loss_mask": [0, 0, 0, 0]}',
    "mask at the beginning": '{"input_ids": [5, 6, 7, 8], "loss_mask": [1, 1, 0, 0]}',
    "no label": '{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, -100, -100]}',
    "no tokens": '{"input_ids": [], "loss_mask": []}',
    "no answer": '{"messages": [{"role": "user", "content": "why"}]}',
    "prompt": '{"prompt": "why"}',
}


def named(cases: dict) -> dict:
    return {"argvalues": list(cases.values()), "ids": list(cases)}


def file_of(folder, *lines: str) -> str:
    path = folder / "rows.jsonl"
    path.write_bytes("\n".join(lines).encode("latin-1"))
    return str(path)


def learnt(path: str, streaming: bool) -> list[list[int]]:
    rows = tokenised(load(path, streaming=streaming), word_tokenizer(), 64, name="rows", vocab_size=12)
    return [row["loss_mask"] for row in rows]


@pytest.mark.parametrize("streaming", [False, True], ids=["read", "streamed"])
@pytest.mark.parametrize(("line", "reason"), **named(BAD | BAD_TOKENS))
def test_training_data(tmp_path, caplog, line, reason, streaming):
    path = file_of(tmp_path, GOOD, line, GOOD)
    assert learnt(path, streaming) == [MASK, MASK]
    assert "1 of 3 samples are skipped as unreadable. Row 2: " in caplog.text
    assert reason in caplog.text
    with pytest.raises(ValueError, match=r"none of \d samples .* \d unreadable|cannot be read as json"):
        learnt(file_of(tmp_path, line), streaming)


@pytest.mark.parametrize("line", **named(UNLEARNABLE))
def test_rows_with_nothing_to_learn(tmp_path, caplog, line):
    assert learnt(file_of(tmp_path, GOOD, GOOD, line), False) == [MASK, MASK]
    assert "1 of 3 samples are skipped: no token to train on" in caplog.text
    assert "Row 3" in caplog.text
    with pytest.raises(ValueError, match=r"none of 2 samples has a token to train on \(2 without"):
        learnt(file_of(tmp_path, line, line), False)


@pytest.mark.parametrize(("line", "reason"), **named(BAD))
def test_prompts_to_be_regenerated(tmp_path, caplog, line, reason):
    def answer(jobs: list[Job]):
        for job in jobs:
            job.messages += [*job.asked.pop(0), {"role": "assistant", "content": "so"}]
            yield job

    out = tmp_path / "out.jsonl"
    assert regenerate(load(file_of(tmp_path, GOOD, line, GOOD)), out, answer, batch_size=3) == 2
    assert [json.loads(text)["id"] for text in out.read_text().splitlines()] == [0, 2]
    assert "1 conversations were not answered. Row 2: " in caplog.text
    assert reason in caplog.text
    out.unlink()
    with pytest.raises(ValueError, match=r"None of \d conversations was answered. Row 1: |cannot be read as json"):
        regenerate(load(file_of(tmp_path, line)), out, answer, batch_size=3)


@pytest.mark.parametrize(("line", "reason"), **named(BAD))
def test_prompts_of_a_benchmark(tmp_path, caplog, line, reason):
    asked = tuple(message["content"] for message in CHAT[::2])
    task = load_task(file_of(tmp_path, GOOD, line, GOOD))
    assert task.prompts == (Prompt("1", asked), Prompt("3", asked))
    assert task.num_unreadable == 1
    if not line.startswith("[") and "JSON" not in reason:
        assert f"Line 2: {reason}" in caplog.text or reason in caplog.text
    assert "Line 2: " in caplog.text


def test_many_bad_rows_are_counted_and_the_first_are_named(tmp_path, caplog):
    learnt(file_of(tmp_path, GOOD, *['{"text": 7}'] * 9, '{"text": 8}'), False)
    assert "10 of 11 samples are skipped as unreadable. Rows 2, 3, 4, 5, 6, and 5 more: `text`" in caplog.text
    caplog.clear()
    learnt(file_of(tmp_path, GOOD, '{"text": 7}', '{"text": 8}'), False)
    assert "Row 2: `text` is 7; expected a string.; Row 3: `text` is 8; expected a string." in caplog.text


def test_a_stream_reports_rows_as_they_come(tmp_path, caplog):
    path = file_of(tmp_path, *[GOOD] * 70, "{", GOOD)
    assert len(learnt(path, True)) == 71
    assert "rows: row 71 is skipped: line 71 is not JSON" in caplog.text


def test_a_list_in_one_file_is_read_like_lines(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": CHAT}, 5, {"messages": CHAT}], indent=1))
    assert learnt(str(tmp_path / "rows.json"), False) == [MASK, MASK]


@pytest.mark.parametrize("content", ["", "\n\n", "[]"], ids=["nothing", "empty lines", "an empty list"])
def test_an_empty_file_says_so(tmp_path, capsys, content):
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    shared = ["--data", str(path), "--target", "hf_eagle3/embedded/target", "--output", str(tmp_path / "out")]
    for words in (
        ["train", "--train-data", str(path), "--target", "hf_eagle3/embedded/target", "--output-dir", str(tmp_path)],
        ["prepare", "regenerate", *shared],
        ["prepare", "vocabulary", *shared],
    ):
        assert main(words) == 2
        assert f"`{path}` is empty: it has no rows" in capsys.readouterr().err
    assert main(["benchmark", "--tasks", str(path), "--no-plots"]) == 2
    assert "has no prompts" in capsys.readouterr().err


def test_a_stream_of_nothing_says_so(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no rows"):
        list(tokenised(load(str(tmp_path / "empty.jsonl"), streaming=True), word_tokenizer(), 64))


# Shapes that are prompts alone


SYSTEM = {"role": "system", "content": "be kind"}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": [SYSTEM, CHAT[0]]}, [SYSTEM, CHAT[0]]),
        ({"prompt": [CHAT[0]], "completion": None, "text": None}, CHAT[:1]),
        ({"prompt": CHAT}, CHAT),
        ({"prompt": "why so"}, CHAT[:1]),
        ({"prompt": ["why so", "so"]}, CHAT[::2]),
        ({"turns": ["why so", "so"]}, CHAT[::2]),
    ],
    ids=["messages", "nulls", "with answers", "string", "strings", "turns"],
)
def test_prompts_are_accepted_everywhere(tmp_path, row, messages):
    assert messages_of(row) == messages
    job = Job.from_sample(0, row)
    assert [message for asked in job.asked for message in asked] == [m for m in messages if m["role"] == "user"]
    assert job.messages == [m for m in messages if m["role"] == "system"]
    (prompt,) = load_task(file_of(tmp_path, json.dumps(row))).prompts
    turns = [turn if isinstance(turn, str) else [m["content"] for m in turn] for turn in prompt.turns]
    assert turns == ([["be kind", "why so"]] if SYSTEM in messages else ["why so", "so"][: len(turns)])
    assert len(turns) == sum(m["role"] == "user" for m in messages)
    learns = any(message["role"] == "assistant" for message in messages)
    assert any(tokenise(row, word_tokenizer()).loss_mask) == learns


# Tokens that are there already


def test_tokens_come_as_lists_arrays_tensors_and_whole_floats():
    for ids in ([5, 6, 7], np.array([5, 6, 7]), torch.tensor([5, 6, 7]), [5.0, 6.0, 7.0]):
        out = tokenise({"input_ids": ids, "loss_mask": [0, 1.0, True]}, None, vocab_size=8)
        assert (out.input_ids, out.loss_mask) == ([5, 6, 7], [0, 1, 1])


def test_what_is_cut_off_is_not_looked_at():
    assert tokenise({"input_ids": [5, 6, 99]}, None, max_length=2, vocab_size=8).input_ids == [5, 6]


ZERO = [{"input_ids": row["input_ids"], "loss_mask": [0] * len(row["input_ids"])} for row in written(4)]


@pytest.mark.parametrize("data", [ZERO, Dataset.from_list(ZERO)], ids=["a list", "a dataset"])
def test_zero_masks_alone_are_refused(tmp_path, data):
    with pytest.raises(ValueError, match=r"Training data: none of 4 samples has a token to (train on|learn from)"):
        trainer(tmp_path, data=data)


def test_bad_tokens_beside_good_ones_are_left_out(tmp_path, caplog):
    good = written(6).to_list()
    outside = {"input_ids": [5, 6, 7, 24], "loss_mask": [0, 1, 1, 1]}
    bad = [ZERO[0], outside, {"input_ids": [], "loss_mask": []}]
    run = trainer(tmp_path, data=Dataset.from_list([*bad, *good]), max_steps=2)
    assert len(run.train_dataset) == 6
    assert "2 of 9 samples are skipped: no token to train on" in caplog.text
    assert "Row 2: It contains token id 24, but the target's vocabulary ends at 23" in caplog.text
    run.train()
    assert all(loss > 0 for loss in losses(run))


def test_tokens_of_a_torch_dataset_are_checked_in_its_batches(tmp_path):
    run = trainer(tmp_path, data=[{"input_ids": [5, 6, 7, 24], "loss_mask": [0, 1, 1, 1]}] * 4)
    with pytest.raises(ValueError, match="contains token id 24, but the target's vocabulary ends at 23"):
        run.train()


def test_tokenised_data_is_not_tokenised_again(tmp_path):
    data = written(6)
    assert trainer(tmp_path, data=data).train_dataset is data


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"input_ids": [5, 6, 99], "loss_mask": [0, 1, 1]}, "Sample 2 is unusable: It contains token id 99"),
        ({"input_ids": [], "loss_mask": []}, "Sample 2 is unusable: It has no tokens"),
        ({"input_ids": [5, 6, 7], "loss_mask": [1]}, "Sample 2 is unusable: .* its mask 1"),
    ],
    ids=["outside", "empty", "mask"],
)
def test_features_name_the_sample(tmp_path, sample, message):
    run = trainer(tmp_path / "run")
    writer = FeatureWriter(tmp_path / "features", run.reader.base, run.model.config)
    with pytest.raises(ValueError, match=message):
        writer.write([written(1)[0], sample])
