"""Samples of every common shape to messages or text, and those to tokens with a loss mask.

Does not know datasets or models. A sample is one row of a dataset:

    {"messages": [{"role", "content"}, ...]}                    OpenAI, Hub
    {"conversations": [{"from": "human" | "gpt", "value"}]}     ShareGPT
    {"prompt", "completion"}                                    strings, or lists of messages
    {"text"}                                                    loss on everything
    {"input_ids"[, "loss_mask" | "labels" | "assistant_masks"]} tokenised already
"""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bard": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
}
SHAPES = "`messages`, `conversations`, `prompt` with `completion`, `text`, or `input_ids`"
Message = dict[str, str]


class TemplateMismatch(ValueError):
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


def messages_of(sample: Mapping) -> list[Message] | None:
    """
    The sample as chat messages; `None` if it is plain text or tokens.

    Raises:
        ValueError: no known column, or an unknown speaker.
    """
    if sample.get("input_ids") is not None:  # tokens win: they are exactly what was generated
        return None
    if sample.get("messages") is not None:
        return [dict(message) for message in sample["messages"]]
    if sample.get("conversations") is not None:
        turns = []
        for turn in sample["conversations"]:
            speaker = turn.get("from", turn.get("role"))
            if speaker not in SHAREGPT_ROLES:
                raise ValueError(
                    f"`conversations` has the speaker {speaker!r}; known are {', '.join(SHAREGPT_ROLES)}."
                )
            turns.append({"role": SHAREGPT_ROLES[speaker], "content": turn.get("value", turn.get("content"))})
        # ShareGPT's chats may begin in the middle.
        while turns and turns[0]["role"] == "assistant":
            turns.pop(0)
        return turns
    if sample.get("prompt") is not None and sample.get("completion") is not None:
        prompt, completion = sample["prompt"], sample["completion"]
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        return [*prompt, *completion]
    if sample.get("text") is not None:
        return None
    raise ValueError(f"A sample has the columns {sorted(sample)}; needed are {SHAPES}.")


def tokenise(sample: Mapping, tokenizer: PreTrainedTokenizerBase | None, max_length: int | None = None) -> Tokenised:
    """
    A sample as tokens with a loss mask, cut to `max_length`.

    The loss is on the assistant's turns: by the chat template's `{% generation %}` mask where it has one, otherwise by
    comparing the chat with and without each turn, which is checked token by token.

    Raises:
        ValueError: unknown columns, or messages without a chat template.
        TemplateMismatch: neither way finds the assistant's tokens.
    """
    messages = messages_of(sample)
    if messages is not None:
        out = tokenise_messages(messages, tokenizer)
    elif sample.get("input_ids") is not None:
        out = Tokenised(list(sample["input_ids"]), given_mask(sample))
    else:
        ids = needed(tokenizer)(sample["text"])["input_ids"]
        out = Tokenised(ids, [1] * len(ids))
    if len(out.input_ids) != len(out.loss_mask):
        raise ValueError(f"`input_ids` has {len(out.input_ids)} tokens, its mask {len(out.loss_mask)}.")
    return Tokenised(out.input_ids[:max_length], out.loss_mask[:max_length], out.partial)


def given_mask(sample: Mapping) -> list[int]:
    """The mask that comes with tokens; ones where none does."""
    for name in ("loss_mask", "assistant_masks"):
        if sample.get(name) is not None:
            return [int(bool(x)) for x in sample[name]]
    if sample.get("labels") is not None:
        return [int(x != -100) for x in sample["labels"]]
    return [1] * len(sample["input_ids"])


def needed(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        raise ValueError("The data is text; pass the target's tokenizer (`processing_class=tokenizer`).")
    return tokenizer


def marks_generation(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template says which part the assistant generates."""
    template = tokenizer.chat_template
    return isinstance(template, str) and "generation %}" in template.replace("-%}", " %}").replace("  ", " ")


def tokenise_messages(messages: list[Message], tokenizer: PreTrainedTokenizerBase | None) -> Tokenised:
    tokenizer = needed(tokenizer)
    if tokenizer.chat_template is None:
        raise ValueError(
            "The data is conversations and the tokenizer has no chat template; set `tokenizer.chat_template` to "
            "the one the target is used with, or give `text` or `input_ids`."
        )
    if marks_generation(tokenizer):
        out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        return Tokenised(list(out["input_ids"]), list(out["assistant_masks"]))
    full = chat_ids(tokenizer, messages, prompt=False)
    mask, partial = [0] * len(full), False
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for index in turns:
        start = chat_ids(tokenizer, messages[:index], prompt=True)
        end = chat_ids(tokenizer, messages[: index + 1], prompt=False)
        if full[: len(end)] == end and end[: len(start)] == start:
            mask[len(start) : len(end)] = [1] * (len(end) - len(start))
        elif index == turns[-1]:
            raise TemplateMismatch(
                "The chat template gives different tokens for a chat and for its beginning, so that the assistant's "
                "tokens cannot be told; add {% generation %} marks to the template."
            )
        else:  # it rewrites earlier turns, as templates do that drop their reasoning
            partial = True
    return Tokenised(full, mask, partial)


def chat_ids(tokenizer: PreTrainedTokenizerBase, messages: list[Message], prompt: bool) -> list[int]:
    if not messages:
        return []
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=True)["input_ids"])
