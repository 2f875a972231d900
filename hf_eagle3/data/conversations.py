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
    "bing": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "assistant",
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
        return from_the_first_question([dict(message) for message in sample["messages"]])
    if sample.get("conversations") is not None:
        turns = []
        for turn in sample["conversations"]:
            speaker = turn.get("from", turn.get("role"))
            if speaker not in SHAREGPT_ROLES:
                raise ValueError(
                    f"`conversations` has the speaker {speaker!r}; known are {', '.join(SHAREGPT_ROLES)}."
                )
            turns.append({"role": SHAREGPT_ROLES[speaker], "content": turn.get("value", turn.get("content"))})
        return from_the_first_question(turns)
    if sample.get("prompt") is not None and sample.get("completion") is not None:
        prompt, completion = sample["prompt"], sample["completion"]
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        return from_the_first_question([*prompt, *completion])
    if sample.get("text") is not None:
        return None
    raise ValueError(f"A sample has the columns {sorted(sample)}; needed are {SHAPES}.")


def from_the_first_question(messages: list[Message]) -> list[Message]:
    """Messages as plain text each, without answers before the first question (chats may begin in the middle)."""
    start = next((i for i, message in enumerate(messages) if message["role"] != "assistant"), len(messages))
    return [message | {"content": plain_text(message.get("content"))} for message in messages[start:]]


def plain_text(content) -> str:
    """
    Raises:
        ValueError: parts that are not text.
    """
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        return "".join(part["text"] for part in content)
    raise ValueError("A message holds parts that are not text; drafts are trained on text.")


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
        if sample.get("attention_mask") is not None:  # padding of whoever made the tokens
            seen = [i for i, x in enumerate(sample["attention_mask"]) if x]
            out = Tokenised([out.input_ids[i] for i in seen], [out.loss_mask[i] for i in seen])
    else:
        ids = needed(tokenizer)(sample["text"])["input_ids"]
        out = Tokenised(ids, [1] * len(ids))
    if len(out.input_ids) != len(out.loss_mask):
        raise ValueError(f"`input_ids` has {len(out.input_ids)} tokens, its mask {len(out.loss_mask)}.")
    return Tokenised(out.input_ids[:max_length], out.loss_mask[:max_length], out.partial)


def given_mask(sample: Mapping) -> list[int]:
    """The mask that comes with tokens; ones where none does."""
    mask = [1] * len(sample["input_ids"])
    for name in ("loss_mask", "assistant_masks"):
        if sample.get(name) is not None:
            mask = [int(bool(x)) for x in sample[name]]
            break
    else:
        if sample.get("labels") is not None:
            mask = [int(x != -100) for x in sample["labels"]]
    return mask


def needed(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The tokenizer; ValueError where text is to be read without one."""
    if tokenizer is None:
        raise ValueError("The data is text; pass the target's tokenizer (`processing_class=tokenizer`).")
    return tokenizer


def marks_generation(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template says which part the assistant generates."""
    template = tokenizer.chat_template
    return isinstance(template, str) and "generation %}" in template.replace("-%}", " %}").replace("  ", " ")


def tokenise_messages(messages: list[Message], tokenizer: PreTrainedTokenizerBase | None) -> Tokenised:
    """A conversation as ids with its loss mask; ValueError without a chat template."""
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


def chat_ids(tokenizer: PreTrainedTokenizerBase, messages: list[Message], prompt: bool) -> list[int]:
    """Token ids of messages by the chat template; `prompt`: up to where the assistant begins."""
    if not messages:
        return []
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=True)["input_ids"])
