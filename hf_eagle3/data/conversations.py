"""Tokenisation of samples with a loss mask. Does not know datasets or models.

A sample is one row of a dataset: chat messages in any format of `messages`, or

    {"text"}                                                    loss on all tokens
    {"input_ids"[, "loss_mask" | "labels" | "assistant_masks"]} already tokenised

An unusable sample raises `BadRow` with the reason.
"""

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..token_ids import common_prefix_length
from .messages import BadRow, Message, for_template, messages_of, plain_text, row_of, short_repr, template_options


class TemplateMismatch(BadRow):
    """The assistant's tokens are neither marked by the chat template nor found by comparing prefixes of the chat."""


@dataclass
class Tokenised:
    """
    One tokenised sample.

    Attributes:
        input_ids: Token ids.
        loss_mask: 1 at tokens of the assistant (in plain text at all tokens).
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
    Tokenise a sample with a loss mask, truncated to `max_length`.

    The loss is on the assistant's turns. The chat template's `{% generation %}` mask marks them; without such a mask
    they are found by comparing the tokens of the chat with and without each turn. Without a chat template, `prompt`
    is plain text, with the loss on `completion` if present.

    Args:
        sample: One row of a dataset.
        tokenizer: The target's tokenizer; required unless the sample is already tokenised.
        max_length: Maximum number of tokens.
        template_kwargs: Extra arguments of the chat template, combined with the sample's own.
        vocab_size: Vocabulary size of the target, to check token ids. `None`: not checked.

    Raises:
        BadRow: unknown columns, values of the wrong type, or messages without a chat template.
        TemplateMismatch: the assistant's tokens cannot be identified.
        ValueError: text without a tokenizer.
    """
    row = row_of(sample)
    messages = messages_of(row)
    if row.get("input_ids") is not None:
        out = given_tokens(row)
    elif (text := plain_prompt(row, tokenizer)) is not None:
        out = tokenise_text(*text, required(tokenizer))
    else:
        out = tokenise_messages(messages, tokenizer, template_options(row, template_kwargs))
    out = Tokenised(out.input_ids[:max_length], out.loss_mask[:max_length], out.partial)
    if vocab_size is not None and (unknown := [i for i in out.input_ids if not 0 <= i < vocab_size]):
        raise BadRow(
            f"It contains token id {unknown[0]}, but the target's vocabulary ends at {vocab_size - 1}: it comes from "
            "another tokenizer, or the target's embeddings were not resized."
        )
    return out


def given_tokens(row: Mapping) -> Tokenised:
    """The given token ids and mask (ones by default), without padding."""
    ids = integers(row, "input_ids")
    mask = np.ones_like(ids)
    for name in ("loss_mask", "assistant_masks", "labels"):
        if row.get(name) is not None:
            values = integers(row, name)
            mask = values != (-100 if name == "labels" else 0)
            break
    if len(ids) != len(mask):
        raise BadRow(f"`input_ids` has {len(ids)} tokens, its mask {len(mask)}.")
    if row.get("attention_mask") is not None:  # the sample was padded
        seen = integers(row, "attention_mask") != 0
        if len(seen) != len(ids):
            raise BadRow(f"`input_ids` has {len(ids)} tokens, `attention_mask` {len(seen)}.")
        ids, mask = ids[seen], mask[seen]
    return Tokenised(ids.tolist(), mask.astype(int).tolist())


def integers(row: Mapping, name: str) -> np.ndarray:
    """A column as integers, (L,) int64; BadRow if it holds anything else."""
    try:
        values = np.asarray(row[name])
    except ValueError:  # lists of different lengths
        values = np.asarray(None)
    is_integer = values.dtype.kind in "iub"
    if values.dtype.kind == "f":  # tables with missing values store floats; beyond 2**53 they are inexact
        is_integer = bool(((np.abs(values) < 2**53) & (values == np.rint(values))).all())
    if values.ndim != 1 or not (is_integer or values.size == 0):
        raise BadRow(f"`{name}` is {short_repr(row[name])}; expected one list of integers.")
    return values.astype(np.int64)


def plain_prompt(row: Mapping, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, str] | None:
    """(context, text with loss) of a plain-text sample; `None` for chats."""
    if row.get("messages") is not None or row.get("conversations") is not None:
        return None
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and (completion is not None or row.get("text") is None):
        if required(tokenizer).chat_template is None and isinstance(completion, str | None):
            return (plain_text(prompt), plain_text(completion)) if completion else ("", plain_text(prompt))
        return None
    if row.get("text") is None:
        return None
    if not isinstance(row["text"], str):
        raise BadRow(f"`text` is {short_repr(row['text'])}; expected a string.")
    return "", plain_text(row["text"])


def tokenise_text(context: str, learnt: str, tokenizer: PreTrainedTokenizerBase) -> Tokenised:
    """Tokenise plain text; the loss starts at the first token that differs from those of `context` alone."""
    ids = list(tokenizer(context + learnt)["input_ids"])
    if not context:
        return Tokenised(ids, [1] * len(ids))
    start = common_prefix_length(ids, tokenizer(context)["input_ids"])
    return Tokenised(ids, [0] * start + [1] * (len(ids) - start))


def required(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The tokenizer; ValueError if there is none."""
    if tokenizer is None:
        raise ValueError("The data is text; pass the target's tokenizer (`processing_class=tokenizer`).")
    return tokenizer


def template_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template, all templates if there are several by name, or an empty string."""
    template = tokenizer.chat_template
    return "\n".join(template.values()) if isinstance(template, dict) else template or ""


def checked_template_kwargs(template_kwargs: Mapping | None, tokenizer: PreTrainedTokenizerBase | None) -> dict:
    """
    Validate extra arguments of the chat template.

    Raises:
        ValueError: the tokenizer has no chat template, the template does not use one of the arguments, or one is an
            argument of `apply_chat_template` itself.
    """
    if not template_kwargs or tokenizer is None:  # tokenised data needs neither
        return dict(template_kwargs or {})
    given, text = json.dumps(dict(template_kwargs)), template_text(tokenizer)
    if not text:
        raise ValueError(f"`chat_template_kwargs` is {given}, but the tokenizer has no chat template; remove it.")
    own = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters.keys() - {"documents"}
    for name in template_kwargs:
        if name in own:
            raise ValueError(f"`chat_template_kwargs` is {given}; `{name}` is set internally; remove it.")
        if not re.search(rf"\b{re.escape(name)}\b", text):
            raise ValueError(
                f"`chat_template_kwargs` is {given}, but the chat template does not use `{name}`; correct the name or "
                "remove it."
            )
    return dict(template_kwargs)


def marks_generation(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template marks generated tokens with `{% generation %}`."""
    template = tokenizer.chat_template
    return isinstance(template, str) and "generation %}" in template.replace("-%}", " %}").replace("  ", " ")


def tokenise_messages(
    messages: list[Message], tokenizer: PreTrainedTokenizerBase | None, options: Mapping | None = None
) -> Tokenised:
    """Tokenise a conversation with its loss mask; BadRow without a chat template. `options`: see `rendered`."""
    tokenizer, options = required(tokenizer), options or {}
    if tokenizer.chat_template is None:
        raise BadRow(
            "The data contains conversations, but the tokenizer has no chat template; set `tokenizer.chat_template` "
            "to the target's, or provide `text` or `input_ids`."
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
            stop = end_of_answer(end, len(start), tokenizer.eos_token_id)
            mask[len(start) : stop] = [1] * (stop - len(start))
        elif index == turns[-1]:
            raise TemplateMismatch(
                "The chat template renders a chat and its prefix differently, so that the assistant's tokens cannot "
                "be identified; add {% generation %} marks to the template, or train on the output of `hf-eagle3 "
                "prepare regenerate`, which contains token ids."
            )
        else:  # the template rewrites earlier turns, for instance to drop reasoning
            partial = True
    return Tokenised(full, mask, partial)


def end_of_answer(ids: list[int], start: int, eos_token_id: int | None) -> int:
    """End of the assistant's turn: after its end token, without what the template appends."""
    ends = [i for i in range(start, len(ids)) if ids[i] == eos_token_id]
    return ends[-1] + 1 if ends else len(ids)


def chat_ids(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], prompt: bool, options: Mapping | None = None
) -> list[int]:
    """Token ids of messages by the chat template; `prompt`: with the generation prompt."""
    if not messages:
        return []
    return list(rendered(tokenizer, messages, options or {}, add_generation_prompt=prompt)["input_ids"])


def rendered(tokenizer: PreTrainedTokenizerBase, messages: list[Message], options: Mapping, **settings):
    """
    `apply_chat_template` with a dictionary as result.

    Args:
        tokenizer: Its chat template is applied.
        messages: The conversation.
        options: Extra arguments of the template, from `template_options`.
        settings: Arguments of `apply_chat_template`.

    Raises:
        BadRow: the template rejects the messages.
    """
    try:
        return tokenizer.apply_chat_template(for_template(messages), return_dict=True, **settings, **options)
    except ImportError:  # jinja2 is missing
        raise
    except Exception as error:  # a template may raise anything about the messages
        raise BadRow(f"The chat template rejects it: {type(error).__name__}: {error}") from error
