"""Training batches: samples padded on the right, or packed, with the document that each token belongs to.

Does not know models. Shape letters: B sequences, L tokens, F width of the tapped features, H hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


TOKEN_COLUMNS = ("input_ids", "loss_mask")
OFFLINE_COLUMNS = ("target_features", "last_hidden_states")


@dataclass
class Eagle3DataCollator:
    """
    Collates samples ({"input_ids", "loss_mask"[, "target_features", "last_hidden_states"]}).

    Args:
        pad_token_id: Padding token; masked everywhere.
        max_length: Longer samples are truncated. With `packing`, the length of a sequence.
        packing: Concatenate samples into sequences of `max_length`, by first fit in order of decreasing length.
        vocab_size: Vocabulary size of the target. `None`: token ids are not checked.

    Raises:
        ValueError: a token id outside the target's vocabulary.

    Returns:
        `input_ids`, `loss_mask`, `document_ids` (0, 1, ... within a sequence; -1 at padding) and `position_ids` (from
        0 in each document), (B, L) int64 each; for offline samples also the features, (B, L, F) and (B, L, H).
    """

    pad_token_id: int = 0
    max_length: int | None = None
    packing: bool = False
    vocab_size: int | None = None

    def __call__(self, samples: list[dict]) -> dict[str, Tensor]:
        """Collate `samples`; see the class."""
        samples = [
            {name: self._column(name, sample[name]) for name in (*TOKEN_COLUMNS, *OFFLINE_COLUMNS) if name in sample}
            for sample in samples
        ]
        for sample in samples:
            ids = sample["input_ids"]
            sample.setdefault("loss_mask", torch.ones_like(ids))
            if self.vocab_size is not None and len(unknown := ids[(ids < 0) | (ids >= self.vocab_size)]):
                raise ValueError(
                    f"A sample contains token id {int(unknown[0])}, but the target's vocabulary ends at "
                    f"{self.vocab_size - 1}. Tokenise with the target's tokenizer."
                )
        sequences = self._pack(samples) if self.packing else [[sample] for sample in samples]
        batch = {
            "input_ids": self._concatenated(sequences, "input_ids", self.pad_token_id),
            "loss_mask": self._concatenated(sequences, "loss_mask", 0),
            "document_ids": pad_sequence(
                [
                    torch.cat([torch.full_like(s["input_ids"], i) for i, s in enumerate(packed)])
                    for packed in sequences
                ],
                batch_first=True,
                padding_value=-1,
            ),
            "position_ids": pad_sequence(
                [torch.cat([torch.arange(len(s["input_ids"])) for s in packed]) for packed in sequences],
                batch_first=True,
            ),
        }
        for name in OFFLINE_COLUMNS:
            if name in samples[0]:
                batch[name] = self._concatenated(sequences, name, 0)
        return batch

    def _column(self, name: str, value) -> Tensor:
        tensor = value if isinstance(value, Tensor) else torch.tensor(value)
        return tensor[: self.max_length] if name in OFFLINE_COLUMNS else tensor[: self.max_length].long()

    def _pack(self, samples: list[dict]) -> list[list[dict]]:
        sequences: list[list[dict]] = []
        free: list[int] = []  # tokens left in each sequence
        width = self.max_length or max(len(sample["input_ids"]) for sample in samples)
        for sample in sorted(samples, key=lambda s: len(s["input_ids"]), reverse=True):
            length = len(sample["input_ids"])
            place = next((i for i, space in enumerate(free) if space >= length), None)
            if place is None:
                place = len(sequences)
                sequences.append([])
                free.append(width)
            sequences[place].append(sample)
            free[place] -= length
        return sequences

    @staticmethod
    def _concatenated(sequences: list[list[dict]], name: str, padding_value: int) -> Tensor:
        joined = [torch.cat([sample[name] for sample in packed]) for packed in sequences]
        return pad_sequence(joined, batch_first=True, padding_value=padding_value)
