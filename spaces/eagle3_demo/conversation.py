"""Prompts as token ids, and reuse of the keys and values of earlier turns. Does not know how text is generated."""

from dataclasses import dataclass

from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedTokenizerBase

from hf_eagle3.compat.caches import DynamicLayer
from hf_eagle3.token_ids import common_prefix_length


@dataclass
class Conversation:
    """
    Attributes:
        messages: {"role", "content"} of the turns so far.
        ids: The same as token ids, exactly as the target read and generated them.
    """

    messages: list[dict[str, str]]
    ids: list[int]


@dataclass
class KeptCache:
    """Keys and values of the tokens `ids` after a call of `generate`."""

    cache: Cache
    ids: list[int]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str, template_kwargs: dict | None = None) -> list[int]:
    """Token ids of a prompt: as a chat turn if the tokenizer has a template, else as plain text."""
    if tokenizer.chat_template is None:
        return tokenizer(text).input_ids
    return turn_ids(tokenizer, Conversation([], []), text, template_kwargs)


def turn_ids(
    tokenizer: PreTrainedTokenizerBase, past: Conversation, text: str, template_kwargs: dict | None = None
) -> list[int]:
    """
    Token ids of the conversation with another question. Earlier turns keep their token ids, so that cached keys and
    values remain valid: generated text may be tokenised differently a second time. `template_kwargs` are extra
    arguments of the chat template.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ValueError("This target's tokenizer has no chat template; use single prompts.")
    messages = [*past.messages, {"role": "user", "content": text}]
    whole = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, **(template_kwargs or {})
    )
    before = tokenizer.decode(past.ids, skip_special_tokens=False)
    if past.ids and whole.startswith(before):
        return past.ids + tokenizer(whole[len(before) :], add_special_tokens=False).input_ids
    return tokenizer(whole, add_special_tokens=False).input_ids


def fitted_cache(kept: KeptCache | None, ids: list[int], config: PreTrainedConfig) -> Cache:
    """
    A cache for the prompt `ids`: the kept one, cropped to the common prefix, or an empty one. At least one token stays
    uncached, because its logits are needed.
    """
    if kept is None:
        return DynamicCache(config=config)
    length = min(kept.cache.get_seq_length(), len(kept.ids))
    usable = common_prefix_length(kept.ids[:length], ids[:-1])
    if usable == kept.cache.get_seq_length():
        return kept.cache
    if usable == 0 or any(type(layer) is not DynamicLayer for layer in kept.cache.layers):
        return DynamicCache(config=config)  # sliding windows and recurrent states cannot be cropped
    kept.cache.crop(usable - kept.cache.get_seq_length())  # a negative argument removes tokens
    return kept.cache
