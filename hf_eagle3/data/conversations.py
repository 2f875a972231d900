"""Samples of every common shape to tokens with a loss mask. Does not know datasets or models.

A sample is one row of a dataset: chat messages in any shape of `messages`, or

    {"text"}                                                    loss on everything
    {"input_ids"[, "loss_mask" | "labels" | "assistant_masks"]} tokenised already

What is wrong with a sample is a `BadRow` that says what.
"""

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..token_ids import common_prefix_length
from .messages import BadRow, Message, for_template, messages_of, plain_text, row_of, shown, template_options


class TemplateMismatch(BadRow):
    """The chat template does not say which tokens are the assistant's, and no prefix of the chat shows it."""


@dataclass
class Tokenised:
    """
    One sample as tokens.

    Attributes:
        input_ids: Tokens.
        loss_mask: 1 where the token is the assistant's (or, in plain text, everywhere).
        partial: Only the last assistant turn is marked, because the template rewrites earlier ones.
    """

    input_ids: list[int]
    loss_mask: list[int]
    partial: bool = False


def tokenise(
    sample: Mapping,
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int | None = None,
    template_kwargs: Mapping | None = None,
    vocab_size: int | None = None,
) -> Tokenised:
    """
    A sample as tokens with a loss mask, cut to `max_length`.

    The loss is on the assistant's turns: by the chat template's `{% generation %}` mask where it has one, otherwise by
    comparing the chat with and without each turn, which is checked token by token. Where there is no chat template,
    `prompt` is plain text, with the loss on `completion` if that is there.

    Args:
        sample: One row.
        tokenizer: The target's; needed unless the sample is tokens.
        max_length: In tokens.
        template_kwargs: Further arguments of the chat template; `tools` and `chat_template_kwargs` of the row join in.
        vocab_size: Tokens that the target knows; others are an error.

    Raises:
        BadRow: unknown columns, values that are not what their column holds, or messages without a chat template.
        TemplateMismatch: neither way finds the assistant's tokens.
        ValueError: text without a tokenizer.
    """
    row = row_of(sample)
    messages = messages_of(row)
    if row.get("input_ids") is not None:
        out = given_tokens(row)
    elif (text := plain_prompt(row, tokenizer)) is not None:
        out = tokenise_text(*text, needed(tokenizer))
    else:
        out = tokenise_messages(messages, tokenizer, template_options(row, template_kwargs))
    out = Tokenised(out.input_ids[:max_length], out.loss_mask[:max_length], out.partial)
    if vocab_size is not None and (unknown := [i for i in out.input_ids if not 0 <= i < vocab_size]):
        raise BadRow(
            f"It holds token {unknown[0]}, the target knows 0 to {vocab_size - 1}: another tokenizer's, or the "
            "target's embeddings were not resized."
        )
    return out


def given_tokens(row: Mapping) -> Tokenised:
    """Tokens that are there already, with their mask (ones where none comes with them), without padding."""
    ids = whole_numbers(row, "input_ids")
    mask = np.ones_like(ids)
    for name in ("loss_mask", "assistant_masks", "labels"):
        if row.get(name) is not None:
            values = whole_numbers(row, name)
            mask = values != (-100 if name == "labels" else 0)
            break
    if len(ids) != len(mask):
        raise BadRow(f"`input_ids` has {len(ids)} tokens, its mask {len(mask)}.")
    if row.get("attention_mask") is not None:  # padding of whoever made the tokens
        seen = whole_numbers(row, "attention_mask") != 0
        if len(seen) != len(ids):
            raise BadRow(f"`input_ids` has {len(ids)} tokens, `attention_mask` {len(seen)}.")
        ids, mask = ids[seen], mask[seen]
    return Tokenised(ids.tolist(), mask.astype(int).tolist())


def whole_numbers(row: Mapping, name: str) -> np.ndarray:
    """A column as whole numbers, (L,); BadRow where it holds anything else."""
    try:
        values = np.asarray(row[name])
    except ValueError:  # lists of different lengths
        values = np.asarray(None)
    is_whole = values.dtype.kind in "iub"
    if values.dtype.kind == "f":  # as tables with gaps store them; beyond 2**53, and for NaN, nothing is whole
        is_whole = bool(((np.abs(values) < 2**53) & (values == np.rint(values))).all())
    if values.ndim != 1 or not (is_whole or values.size == 0):
        raise BadRow(f"`{name}` is {shown(row[name])}; give one list of whole numbers.")
    return values.astype(np.int64)


def plain_prompt(row: Mapping, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, str] | None:
    """(text that is given, text that is to be learnt) of a row that is no chat; `None` for chats."""
    if row.get("messages") is not None or row.get("conversations") is not None:
        return None
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and (completion is not None or row.get("text") is None):
        if needed(tokenizer).chat_template is None and isinstance(completion, str | None):
            return (plain_text(prompt), plain_text(completion)) if completion else ("", plain_text(prompt))
        return None
    if row.get("text") is None:
        return None
    if not isinstance(row["text"], str):
        raise BadRow(f"`text` is {shown(row['text'])}; give a string.")
    return "", plain_text(row["text"])


def tokenise_text(given: str, learnt: str, tokenizer: PreTrainedTokenizerBase) -> Tokenised:
    """Plain text; the loss begins with the first token that `given` alone does not have."""
    ids = list(tokenizer(given + learnt)["input_ids"])
    if not given:
        return Tokenised(ids, [1] * len(ids))
    alone = list(tokenizer(given)["input_ids"])
    start = common_prefix_length(ids, alone)
    return Tokenised(ids, [0] * start + [1] * (len(ids) - start))


def needed(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The tokenizer; ValueError where text is to be read without one."""
    if tokenizer is None:
        raise ValueError("The data is text; pass the target's tokenizer (`processing_class=tokenizer`).")
    return tokenizer


def template_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template, or all of them where there are several by name; empty where there is none."""
    template = tokenizer.chat_template
    return "\n".join(template.values()) if isinstance(template, dict) else template or ""


def checked_template_kwargs(template_kwargs: Mapping | None, tokenizer: PreTrainedTokenizerBase | None) -> dict:
    """
    Further arguments of the chat template, as they were given.

    Raises:
        ValueError: the tokenizer has no chat template, the template does not read one of them, or one is an argument
            of `apply_chat_template` itself.
    """
    if not template_kwargs or tokenizer is None:  # tokens need neither
        return dict(template_kwargs or {})
    given, text = json.dumps(dict(template_kwargs)), template_text(tokenizer)
    if not text:
        raise ValueError(f"`chat_template_kwargs` is {given}, but the tokenizer has no chat template; leave it out.")
    own = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters.keys() - {"documents"}
    for name in template_kwargs:
        if name in own:
            raise ValueError(f"`chat_template_kwargs` is {given}; `{name}` is set by the program, leave it out.")
        if not re.search(rf"\b{re.escape(name)}\b", text):
            raise ValueError(
                f"`chat_template_kwargs` is {given}, but the chat template does not read `{name}`; correct the name "
                "or leave it out."
            )
    return dict(template_kwargs)


def marks_generation(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template says which part the assistant generates."""
    template = tokenizer.chat_template
    return isinstance(template, str) and "generation %}" in template.replace("-%}", " %}").replace("  ", " ")


def tokenise_messages(
    messages: list[Message], tokenizer: PreTrainedTokenizerBase | None, options: Mapping | None = None
) -> Tokenised:
    """A conversation as ids with its loss mask; BadRow without a chat template. `options`: see `rendered`."""
    tokenizer, options = needed(tokenizer), options or {}
    if tokenizer.chat_template is None:
        raise BadRow(
            "The data is conversations and the tokenizer has no chat template; set `tokenizer.chat_template` to "
            "the one the target is used with, or give `text` or `input_ids`."
        )
    if marks_generation(tokenizer):
        out = rendered(tokenizer, messages, options, return_assistant_tokens_mask=True)
        return Tokenised(list(out["input_ids"]), list(out["assistant_masks"]))
    full = chat_ids(tokenizer, messages, prompt=False, options=options)
    mask, partial = [0] * len(full), False
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for index in turns:
        start = chat_ids(tokenizer, messages[:index], prompt=True, options=options)
        end = chat_ids(tokenizer, messages[: index + 1], prompt=False, options=options)
        if full[: len(end)] == end and end[: len(start)] == start:
            stop = spoken_until(end, len(start), tokenizer.eos_token_id)
            mask[len(start) : stop] = [1] * (stop - len(start))
        elif index == turns[-1]:
            raise TemplateMismatch(
                "The chat template gives different tokens for a chat and for its beginning, so that the assistant's "
                "tokens cannot be told; add {% generation %} marks to the template, or train on what `hf-eagle3 "
                "prepare regenerate` writes, which keeps the tokens themselves."
            )
        else:  # it rewrites earlier turns, as templates do that drop their reasoning
            partial = True
    return Tokenised(full, mask, partial)


def spoken_until(ids: list[int], start: int, eos_token_id: int | None) -> int:
    """End of what the assistant says: through its end token, without what the template writes behind that."""
    ends = [i for i in range(start, len(ids)) if ids[i] == eos_token_id]
    return ends[-1] + 1 if ends else len(ids)


def chat_ids(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], prompt: bool, options: Mapping | None = None
) -> list[int]:
    """Token ids of messages by the chat template; `prompt`: up to where the assistant begins."""
    if not messages:
        return []
    return list(rendered(tokenizer, messages, options or {}, add_generation_prompt=prompt)["input_ids"])


def rendered(tokenizer: PreTrainedTokenizerBase, messages: list[Message], options: Mapping, **settings):
    """
    `apply_chat_template` as a dictionary.

    Args:
        tokenizer, messages: What is written, and by which template.
        options: What the template gets besides, as `template_options` makes it.
        settings: Of `apply_chat_template`.

    Raises:
        BadRow: the template refuses the messages.
    """
    try:
        return tokenizer.apply_chat_template(for_template(messages), return_dict=True, **settings, **options)
    except ImportError:  # jinja2 is missing
        raise
    except Exception as error:  # a template is its author's program: what it raises is about these messages
        raise BadRow(f"The chat template refuses it: {type(error).__name__}: {error}") from error
