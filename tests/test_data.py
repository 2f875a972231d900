"""From samples of every shape to tokens, loss masks and batches.

The tokenizer of these tests has one token per word, and a template that writes `<user> ... <assistant> ... <end>`.
"""

import json

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_eagle3.data.collator import Eagle3DataCollator
from hf_eagle3.data.conversations import TemplateMismatch, messages_of, tokenise
from hf_eagle3.data.loading import PRESETS, load, tokenised
from hf_eagle3.training.objective import Positions, shifted
from hf_eagle3.training.target_reader import grouped_by_length, segments_of


WORDS = ["<pad>", "<user>", "<assistant>", "<system>", "<end>", "<think>", "why", "so", "yes", "no", "be", "kind"]
PLAIN = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + ' <end>' }}{% endgeneration %}{{ ' ' }}"
    "{% else %}{{ m['content'] + ' <end> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
# Drops what earlier turns thought, as templates of reasoning models do.
FORGETFUL = PLAIN.replace("m['content']", "(m['content'] if loop.last else m['content'].replace('<think> ', ''))")
# Says something else when an answer is to come.
TWO_FACED = "{% if add_generation_prompt %}be {% endif %}" + PLAIN
CHAT = [
    {"role": "user", "content": "why so"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "so"},
    {"role": "assistant", "content": "no no"},
]
#        <user> why so <end> <assistant> yes <end> <user> so <end> <assistant> no no <end>
MASK = [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1]


def word_tokenizer(template: str | None = PLAIN) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = template
    return tokenizer


def words(ids: list[int]) -> str:
    return " ".join(WORDS[i] for i in ids)


@pytest.mark.parametrize(
    "sample",
    [
        {"messages": CHAT},
        {
            "conversations": [
                {"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in CHAT
            ]
        },
        {"prompt": CHAT[:3], "completion": CHAT[3:]},
    ],
    ids=["messages", "sharegpt", "prompt"],
)
def test_shapes_of_conversations(sample):
    assert messages_of(sample) == CHAT


def test_prompt_and_completion_as_strings():
    assert messages_of({"prompt": "why", "completion": "so"}) == [
        {"role": "user", "content": "why"},
        {"role": "assistant", "content": "so"},
    ]


def test_a_sharegpt_chat_that_begins_in_the_middle():
    sample = {"conversations": [{"from": "gpt", "value": "no"}, {"from": "human", "value": "why"}]}
    assert messages_of(sample) == [{"role": "user", "content": "why"}]


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["by prefix", "by generation mask"])
def test_the_loss_is_on_every_assistant_turn(template):
    out = tokenise({"messages": CHAT}, word_tokenizer(template))
    assert words(out.input_ids) == (
        "<user> why so <end> <assistant> yes <end> <user> so <end> <assistant> no no <end>"
    )
    assert out.loss_mask == MASK
    assert not out.partial


def test_a_template_that_rewrites_earlier_turns_teaches_the_last_only():
    chat = [CHAT[0], {"role": "assistant", "content": "<think> yes"}, *CHAT[2:]]
    out = tokenise({"messages": chat}, word_tokenizer(FORGETFUL))
    assert words(out.input_ids).count("<think>") == 0
    assert out.loss_mask == [0] * 11 + [1] * 3
    assert out.partial


def test_a_template_that_shows_nothing_is_refused():
    with pytest.raises(TemplateMismatch, match="generation"):
        tokenise({"messages": CHAT}, word_tokenizer(TWO_FACED))


def test_plain_text_and_tokens():
    assert tokenise({"text": "why so"}, word_tokenizer()).loss_mask == [1, 1]
    assert tokenise({"input_ids": [6, 7], "labels": [-100, 7]}, None).loss_mask == [0, 1]
    assert tokenise({"input_ids": [6, 7], "assistant_masks": [1, 0]}, None).loss_mask == [1, 0]
    assert tokenise({"input_ids": [6, 7]}, None, max_length=1).input_ids == [6]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"question": "why"}, "question"),
        ({"conversations": [{"from": "cat", "value": "no"}]}, "cat"),
        ({"input_ids": [1, 2], "loss_mask": [1]}, "2 tokens, its mask 1"),
    ],
    ids=["columns", "speaker", "mask"],
)
def test_samples_that_cannot_be_read_say_why(sample, message):
    with pytest.raises(ValueError, match=message):
        tokenise(sample, word_tokenizer())


def test_conversations_need_a_template_and_text_a_tokenizer():
    with pytest.raises(ValueError, match="chat template"):
        tokenise({"messages": CHAT}, word_tokenizer(None))
    with pytest.raises(ValueError, match="processing_class"):
        tokenise({"text": "why"}, None)


def test_messages_that_begin_with_an_answer_and_content_in_parts():
    parts = [{"role": "assistant", "content": "no"}, {"role": "user", "content": [{"type": "text", "text": "why"}]}]
    assert messages_of({"messages": parts}) == [{"role": "user", "content": "why"}]
    with pytest.raises(ValueError, match="not text"):
        messages_of({"messages": [{"role": "user", "content": [{"type": "image"}]}]})


def test_padding_of_whoever_made_the_tokens_is_cut():
    out = tokenise({"input_ids": [0, 6, 7, 0], "attention_mask": [0, 1, 1, 0]}, None)
    assert (out.input_ids, out.loss_mask) == ([6, 7], [1, 1])


def test_what_the_template_writes_behind_the_end_token_is_not_learnt():
    chatty = PLAIN.replace("' <end> '", "' <end> be '")
    out = tokenise({"messages": CHAT[:2]}, word_tokenizer(chatty))
    assert words(out.input_ids) == "<user> why so <end> be <assistant> yes <end> be"
    assert out.loss_mask == [0] * 6 + [1, 1, 0]


def test_one_sample_that_the_template_refuses_does_not_stop_the_rest(caplog):
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
    chats = [{"messages": CHAT}, {"messages": [{"role": "system", "content": "be kind"}, *CHAT]}]
    assert len(tokenised(Dataset.from_list(chats), word_tokenizer(strict), 64)) == 1
    assert "no system" in caplog.text


def test_samples_without_an_answer_are_counted_and_left_out(caplog):
    data = Dataset.from_list([{"messages": CHAT}, {"messages": CHAT[:1]}, {"messages": CHAT}])
    out = tokenised(data, word_tokenizer(), 64)
    assert len(out) == 2
    assert sorted(out.column_names) == ["input_ids", "loss_mask"]
    assert "1 of 3 samples are skipped: no token to train on" in caplog.text


@pytest.mark.parametrize("template", [PLAIN, TWO_FACED], ids=["empty", "unmarked"])
def test_nothing_to_learn_from_at_all_is_an_error(template):
    chat = CHAT[:1] if template is PLAIN else CHAT
    with pytest.raises(ValueError, match="none of 2 samples"):
        tokenised(Dataset.from_list([{"messages": chat}] * 2), word_tokenizer(template), 64)


def test_cut_off_before_the_answer_is_an_error():
    with pytest.raises(ValueError, match="max_length"):
        tokenised(Dataset.from_list([{"messages": CHAT}] * 2), word_tokenizer(), 5)


def test_streams_are_tokenised_on_the_way(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps({"messages": chat, "id": 1}) for chat in (CHAT, CHAT[:1], CHAT)))
    rows = list(tokenised(load(str(path), streaming=True), word_tokenizer(), 64))
    assert [row["loss_mask"] for row in rows] == [MASK, MASK]
    assert set(rows[0]) == {"input_ids", "loss_mask"}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_local_files_are_read(tmp_path, suffix):
    path = tmp_path / f"chats.{suffix}"
    data = Dataset.from_list([{"messages": CHAT}])
    (data.to_parquet if suffix == "parquet" else data.to_json)(str(path))
    assert load(str(path))[0]["messages"] == CHAT


def test_an_unknown_file_is_named(tmp_path):
    (tmp_path / "chats.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"\.csv"):
        load(str(tmp_path / "chats.csv"))


def test_presets_are_the_papers_sets():
    assert {"sharegpt", "ultrachat-200k", "openthoughts-114k-math"} == set(PRESETS)


SAMPLES = [
    {"input_ids": [5, 6, 7], "loss_mask": [0, 1, 1]},
    {"input_ids": [8, 9, 10, 11, 4], "loss_mask": [0, 0, 1, 1, 1]},
    {"input_ids": [6, 6], "loss_mask": [1, 1]},
]


def test_padding_on_the_right():
    batch = Eagle3DataCollator(pad_token_id=0)(SAMPLES[:2])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0, 0], [8, 9, 10, 11, 4]]
    assert batch["loss_mask"].tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
    assert batch["document_ids"].tolist() == [[0, 0, 0, -1, -1], [0, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]
    assert segments_of(batch["document_ids"]) is None


def test_packing_fills_rows():
    batch = Eagle3DataCollator(max_length=8, packing=True)(SAMPLES)
    assert batch["input_ids"].tolist() == [[8, 9, 10, 11, 4, 5, 6, 7], [6, 6, 0, 0, 0, 0, 0, 0]]
    assert batch["document_ids"].tolist() == [[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, -1, -1, -1, -1, -1, -1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert segments_of(batch["document_ids"]) == ((0, 0, 5), (0, 5, 8), (1, 0, 2))


def test_documents_are_read_beside_those_of_similar_length():
    segments = ((0, 0, 300), (0, 300, 310), (1, 0, 200), (1, 200, 329), (2, 0, 14))
    groups = grouped_by_length(segments)
    assert groups == [((0, 0, 300), (1, 0, 200)), ((1, 200, 329),), ((2, 0, 14), (0, 300, 310))]


def test_positions_of_the_loss():
    """Token j + 1 is predicted at j; step k reads row j - 1 - k, so early tokens have fewer steps."""
    batch = Eagle3DataCollator()(SAMPLES[:2])
    positions = Positions.from_masks(batch["loss_mask"], batch["document_ids"], batch["position_ids"], 1)
    assert positions.index.tolist() == [1, 6, 7, 8]  # x_2 of row 0; x_2, x_3, x_4 of row 1
    assert positions.draft_indices(0).tolist() == [0, 5, 6, 7]
    assert positions.has_draft_index(1).tolist() == [False, False, True, True]
    assert positions.draft_indices(1)[2:].tolist() == [5, 6]


def test_packed_documents_do_not_reach_into_each_other():
    batch = Eagle3DataCollator(max_length=8, packing=True)(SAMPLES[:2])
    positions = Positions.from_masks(batch["loss_mask"], batch["document_ids"], batch["position_ids"], 1)
    assert positions.index.tolist() == [1, 2, 3, 6]
    assert positions.depth.tolist() == [1, 2, 3, 1]
    # The last token of a document does not predict the first of the next, though that one counts
    batch = Eagle3DataCollator(max_length=8, packing=True)([SAMPLES[0], SAMPLES[2]])
    positions = Positions.from_masks(batch["loss_mask"], batch["document_ids"], batch["position_ids"], 1)
    assert positions.index.tolist() == [1]


def test_shifted_fills_with_zeros():
    x = torch.tensor([[1, 2, 3]])
    assert shifted(x, 1).tolist() == [[2, 3, 0]]
    assert shifted(x, -1).tolist() == [[0, 1, 2]]
    assert shifted(x, 0).tolist() == [[1, 2, 3]]
