"""Lists of token ids: common prefixes, left padding, and decoding one token at a time. Does not know models.

Shape letters: B sequences, P positions of the longest one.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase


INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # ends a text whose last character lacks bytes


class Decoder(Protocol):
    """The part of a tokenizer that turns token ids into text."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        """Text of token ids."""


def common_prefix_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of leading tokens that both sequences share: the index of the first difference, if there is one."""
    pairs = zip(left, right, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def padding_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's padding token; without one, EOS or 0: the attention mask hides it in any case."""
    return next(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)


def left_padded(sequences: Sequence[list[int]], pad_token_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, (B, P) int64, of sequences padded on the left."""
    width = max(map(len, sequences))
    ids = [[pad_token_id] * (width - len(sequence)) + sequence for sequence in sequences]
    mask = [[0] * (width - len(sequence)) + [1] * len(sequence) for sequence in sequences]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


class IncrementalDecoder:
    """
    Text of a growing list of tokens, one token at a time, at a cost that does not grow with the list.

    A character that spans several tokens belongs to the token that completes it. Each piece is decoded together with
    the one before it, because some tokenizers drop a leading space.

    Args:
        tokenizer: Special tokens are skipped.
    """

    def __init__(self, tokenizer: Decoder):
        self.tokenizer = tokenizer
        self.previous: list[int] = []  # tokens of the last complete piece
        self.pending: list[int] = []  # tokens since then

    def add(self, token: int) -> str:
        """The text that this token completes; empty while a character lacks bytes."""
        self.pending.append(token)
        before = self.tokenizer.decode(self.previous, skip_special_tokens=True)
        text = self.tokenizer.decode(self.previous + self.pending, skip_special_tokens=True)
        if text.endswith(INCOMPLETE):
            return ""
        self.previous, self.pending = self.pending, []
        return text[len(before) :]
