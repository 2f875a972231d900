"""The target answers the prompts: in-process, resumable, exact tokens kept (by endpoint: test_endpoint.py).

A chat of two turns, and the file's lines where the template drops what earlier turns thought:

    <user> why so <end> <assistant> | <think> yes <end>                          part 1: loss behind the bar
    <user> why so <end> <assistant> yes <end> <user> so <end> <assistant> | no   part 2
"""

import json

import pytest
import torch
from models import tiny_draft, tiny_target
from test_data import CHAT, FORGETFUL, PLAIN, WORDS, word_tokenizer, words
from transformers import BloomConfig, LlamaConfig, MambaConfig, MptConfig

from hf_eagle3.cli import main
from hf_eagle3.data.limits import context_length
from hf_eagle3.data.loading import load, tokenised
from hf_eagle3.data.regenerate import InProcess, Job, Sampling, finished_ids, regenerate


PROMPTS = [{"messages": CHAT[:1]}, {"messages": CHAT}, {"text": "why so be kind"}, {"messages": CHAT[:1]}]


def target(name: str = "llama", context: int | None = None):
    model = tiny_target(name)
    model.generation_config.eos_token_id = 4
    if context is not None:
        model.config.max_position_embeddings = context
    return model


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def answers(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def in_process(**options) -> InProcess:
    draft, model = options.pop("draft", None), options.pop("target", None)
    sampling = Sampling(**{"max_new_tokens": 6, "temperatures": (0.0,), "prompt_tokens": 2} | options)
    return InProcess(model or target(), word_tokenizer(), sampling, draft)


class Scripted(InProcess):
    """Says what is written for it, turn by turn, to every conversation."""

    def __init__(self, template: str, *said: str):
        super().__init__(target(), word_tokenizer(template), Sampling())
        self.said = list(said)

    def _generate(self, prompts, temperature, max_new_tokens):
        tokens = ids(self.said.pop(0))
        return [tokens for _ in prompts]


def test_every_turn_is_answered_by_the_target(tmp_path):
    path = tmp_path / "out.jsonl"
    answer = in_process()
    assert regenerate(PROMPTS, path, answer, batch_size=3) == 4
    rows = {row["id"]: row for row in answers(path)}  # of several parts, the last
    assert [m["role"] for m in rows[1]["messages"]] == ["user", "assistant", "user", "assistant"]
    assert [m["content"] for m in rows[1]["messages"][::2]] == ["why so", "so"]
    # One turn: the very tokens, as generate gives them for this prompt alone
    prompt = rows[0]["input_ids"][: rows[0]["loss_mask"].index(1)]
    alone = answer.target.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0].tolist()
    assert rows[0]["input_ids"] == alone
    assert rows[2]["loss_mask"][:3] == [0, 0, 1]


def test_a_draft_changes_nothing(tmp_path):
    with_draft = in_process(temperatures=(1.0,), draft=tiny_draft(tiny_target()))
    for name, answer in (("plain", in_process(temperatures=(1.0,))), ("draft", with_draft)):
        regenerate(PROMPTS, tmp_path / name, answer, batch_size=2)
    assert (tmp_path / "plain").read_text() == (tmp_path / "draft").read_text()


def test_an_interrupted_run_goes_on_with_the_same_text(tmp_path):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    answer = in_process(temperatures=(1.0, 0.0))
    regenerate(PROMPTS, whole, answer, batch_size=2)
    lines = whole.read_text().splitlines(keepends=True)
    first = sum(row["id"] < 2 for row in answers(whole))
    cut.write_text("".join(lines[:first]) + lines[first][:15])
    assert regenerate(PROMPTS, cut, answer, batch_size=2) == 2
    assert answers(cut) == answers(whole)


# The file


@pytest.mark.parametrize(
    "content",
    [
        "my notes\nmore\n",
        "my notes",
        '{"id": 1, "question": "why"}',
        '{"id": "a", "messages": []}',
        '{"id": 1, "prompt": "wh',
        '{"id": 1, "text": "why"}\nnotes',
    ],
)
def test_another_file_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_text(content)
    for use in (finished_ids, lambda path: regenerate(PROMPTS, path, in_process(), batch_size=2)):
        with pytest.raises(ValueError, match="not a file of regenerated"):
            use(path)
        assert path.read_text() == content


@pytest.mark.parametrize(
    ("content", "done", "kept"),
    [
        ('{"id": 0, "text": "é"}', {0}, '{"id": 0, "text": "é"}\n'),  # whole, though its line has no end
        ('{"id": 0, "text": "é"}\n{"id": 1, "te', {0}, '{"id": 0, "text": "é"}\n'),
        ('{"id": 0, "part": 1, "parts": 1, "messages": [{"role": "user"}', set(), ""),
        ('{"id": 0', set(), ""),
        ('{"id": 0, "part": 1, "parts": 2, "text": "é"}\n', set(), ""),  # its second line is missing
        ("", set(), ""),
    ],
)
def test_reading_a_file_leaves_it_and_writing_cuts_what_is_half_written(tmp_path, content, done, kept):
    path = tmp_path / "out"
    path.write_text(content, encoding="utf-8")
    assert finished_ids(path) == done
    assert path.read_text(encoding="utf-8") == content
    regenerate([PROMPTS[0]] * 2, path, in_process(), batch_size=2)
    assert path.read_text(encoding="utf-8").startswith(kept + '{"id": ')
    assert finished_ids(path) == {0, 1}


def test_a_line_cut_inside_a_character_is_done_again(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(json.dumps({"id": 1, "text": "é"}, ensure_ascii=False).encode()[:-3])
    assert finished_ids(path) == set()


def test_a_run_that_answers_nothing_makes_no_file(tmp_path):
    path = tmp_path / "new" / "out"
    refusing = InProcess(target(), word_tokenizer("{{ raise_exception('no') }}"), Sampling())
    with pytest.raises(ValueError, match=r"None of 1 conversations was answered.*rejects it: TemplateError: no"):
        regenerate(PROMPTS[:1], path, refusing, batch_size=1)
    with pytest.raises(ValueError, match=r"Row 1: `messages` contains no question"):
        regenerate([{"messages": CHAT[1:2]}], path, refusing, batch_size=1)
    assert not path.parent.exists()


def test_samples_that_cannot_be_read_are_left_out_and_counted(tmp_path, caplog):
    samples = [{"question": "why"}, {"messages": CHAT[:1]}, {"text": "why \ud83d"}, {"messages": CHAT[1:2]}]
    assert regenerate(samples, tmp_path / "out", in_process(), batch_size=2) == 1
    assert "Row 1 is not answered: A sample has the columns ['question']" in caplog.text
    assert "Row 3 is not answered: `text` contains a lone surrogate" in caplog.text
    assert "Row 4 is not answered: `messages` contains no question" in caplog.text
    assert "3 conversations were not answered. Row 1: " in caplog.text
    # What can never be answered does not make a later run fail
    assert regenerate(samples, tmp_path / "out", in_process(), batch_size=2) == 0


def test_the_data_is_not_the_output(tmp_path, capsys):
    path = tmp_path / "chats.jsonl"
    path.write_text('{"id": 7, "messages": [{"role": "user", "content": "why"}]}')
    before = path.read_text()
    assert main(["prepare", "regenerate", "--data", str(path), "--output", str(path), "--target", "none"]) == 2
    assert "is the data itself" in capsys.readouterr().err
    assert path.read_text() == before


# Tokens


def test_tokens_cannot_be_regenerated():
    with pytest.raises(ValueError, match="conversations or `text`"):
        Job.from_sample(0, {"input_ids": [1, 2]})


def test_one_answer_after_a_system_message_keeps_its_tokens(tmp_path):
    path = tmp_path / "out.jsonl"
    regenerate([{"messages": [{"role": "system", "content": "be kind"}, CHAT[0]]}], path, in_process(), batch_size=1)
    assert "input_ids" in answers(path)[0]


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        (
            PLAIN,
            ["<user> why so <end> <assistant> <think> yes <end> <user> so <end> <assistant> <think> no <end>"],
        ),
        (
            FORGETFUL,
            [
                "<user> why so <end> <assistant> <think> yes <end>",
                "<user> why so <end> <assistant> yes <end> <user> so <end> <assistant> <think> no <end>",
            ],
        ),
    ],
    ids=["keeps", "forgets"],
)
def test_every_turn_can_be_trained_on_whatever_the_template_rewrites(tmp_path, template, parts):
    path = tmp_path / "out.jsonl"
    answer = Scripted(template, "<think> yes <end>", "<think> no <end>")
    assert regenerate([{"messages": CHAT}], path, answer, batch_size=1) == 1
    rows = answers(path)
    assert [words(row["input_ids"]) for row in rows] == parts
    assert [(row["part"], row["parts"]) for row in rows] == [(i + 1, len(parts)) for i in range(len(parts))]
    assert [len(row["messages"]) for row in rows] == [2, 4][-len(parts) :]
    learned = [t for row in rows for t, m in zip(row["input_ids"], row["loss_mask"], strict=True) if m]
    assert words(learned) == "<think> yes <end> <think> no <end>"
    data = tokenised(load(str(path)), answer.tokenizer, max_length=64)
    assert data["loss_mask"][:] == [row["loss_mask"] for row in rows]


def test_an_answer_without_tokens_leaves_text_alone():
    job = Job.from_sample(0, {"messages": CHAT})
    for asked, token in ((job.asked[0], [5]), (job.asked[1], None)):
        job.messages.append(asked)
        job.add_answer("yes", [1, 2] if token else None, token)
    job.messages.append(CHAT[0])
    job.end_early("the context is full")  # what was answered stays, a question without an answer does not
    assert job.records() == [{"id": 0, "part": 1, "parts": 1, "messages": job.messages[:4]}]


# The context


@pytest.mark.parametrize("draft", [False, True], ids=["plain", "draft"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_answer_goes_past_the_context(tmp_path, caplog, temperature, draft):
    """Prompts of 4 and 5 tokens and a text of 2 in a context of 10; each is answered as if it were alone."""
    model = target(context=10)
    model.generation_config.eos_token_id = None
    options = {"target": model, "max_new_tokens": 50, "temperatures": (temperature,)}
    answer = in_process(**options, draft=tiny_draft(model) if draft else None)
    prompts = [{"prompt": "so"}, {"prompt": "why so"}, {"text": "be kind"}]
    regenerate(prompts, tmp_path / "out", answer, batch_size=3)
    rows = sorted(answers(tmp_path / "out"), key=lambda row: row["id"])
    assert [row["loss_mask"] for row in rows] == [[0] * 4 + [1] * 6, [0] * 5 + [1] * 5, [0] * 2 + [1] * 8]
    assert "3 conversations end early: the target's context of 10 tokens is full" in caplog.text
    if temperature == 0:
        for row in rows:
            prompt = row["input_ids"][: row["loss_mask"].index(1)]
            alone = model.generate(torch.tensor([prompt]), max_new_tokens=10 - len(prompt), do_sample=False)
            assert row["input_ids"] == alone[0].tolist()


def test_a_target_with_learned_positions_writes_to_its_last_one(tmp_path):
    model = target("gpt2")
    model.generation_config.eos_token_id = None
    answer = in_process(target=model, max_new_tokens=500)
    regenerate([{"prompt": "so"}, {"prompt": "why so"}], tmp_path / "out", answer, batch_size=2)
    assert [len(row["input_ids"]) for row in answers(tmp_path / "out")] == [96, 96]


def test_turns_before_the_context_is_full_are_kept(tmp_path, caplog):
    model = target(context=12)
    chat = [{"role": "user", "content": "why so"}] * 3  # 5 tokens and 3 of an answer, then no room for 5 more
    answer = in_process(target=model, max_new_tokens=3)
    regenerate([{"messages": chat}, {"prompt": "why " * 20}], tmp_path / "out", answer, batch_size=2)
    (row,) = answers(tmp_path / "out")
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
    assert row["loss_mask"] == [0] * 5 + [1] * 3
    assert "1 conversations end early" in caplog.text
    assert "Row 2: the target's context of 12 tokens is full" in caplog.text


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (LlamaConfig(max_position_embeddings=64), 64),
        (MptConfig(max_seq_len=32), 32),
        (
            LlamaConfig(
                max_position_embeddings=64,
                rope_parameters={
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
            ),
            256,
        ),
    ],
    ids=["llama", "mpt", "yarn"],
)
def test_context_lengths(config, length):
    assert context_length(config) == length


def test_models_without_positions_have_no_limit():
    assert context_length(BloomConfig()) is None
    assert context_length(MambaConfig()) is None
