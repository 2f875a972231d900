"""Batches: samples padded on the right, or packed into rows, with the document each token belongs to.

Does not know models. Shape letters: B rows, L columns.
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
    Samples ({"input_ids", "loss_mask"[, "target_features", "last_hidden_states"]}) to a batch.

    Args:
        pad_token_id: Fills up; never read.
        max_length: Longer samples are cut. With `packing`, the length of a row.
        packing: Put samples one after the other into as few rows of `max_length` as first fit, longest first, gives.
        vocab_size: Tokens that the target knows. `None`: not checked.

    Raises:
        ValueError: a token that the target does not know.

    Returns:
        `input_ids`, `loss_mask`, `document_ids` (0, 1, ... in a row; -1 at padding) and `position_ids` (from 0 in each
        document), (B, L) int64 each; with offline samples also their features, (B, L, F) and (B, L, H).
    """

    pad_token_id: int = 0
    max_length: int | None = None
    packing: bool = False
    vocab_size: int | None = None

    def __call__(self, samples: list[dict]) -> dict[str, Tensor]:
        """A batch of samples; see the class."""
        samples = [
            {name: self._column(name, sample[name]) for name in (*TOKEN_COLUMNS, *OFFLINE_COLUMNS) if name in sample}
            for sample in samples
        ]
        for sample in samples:
            ids = sample["input_ids"]
            sample.setdefault("loss_mask", torch.ones_like(ids))
            if self.vocab_size is not None and len(unknown := ids[(ids < 0) | (ids >= self.vocab_size)]):
                raise ValueError(
                    f"A sample holds token {int(unknown[0])}, the target knows 0 to {self.vocab_size - 1}: another "
                    "tokenizer's. Tokenise with the target's."
                )
        rows = self._pack(samples) if self.packing else [[sample] for sample in samples]
        batch = {
            "input_ids": self._fill(rows, "input_ids", self.pad_token_id),
            "loss_mask": self._fill(rows, "loss_mask", 0),
            "document_ids": pad_sequence(
                [torch.cat([torch.full_like(s["input_ids"], i) for i, s in enumerate(row)]) for row in rows],
                batch_first=True,
                padding_value=-1,
            ),
            "position_ids": pad_sequence(
                [torch.cat([torch.arange(len(s["input_ids"])) for s in row]) for row in rows], batch_first=True
            ),
        }
        for name in OFFLINE_COLUMNS:
            if name in samples[0]:
                batch[name] = self._fill(rows, name, 0)
        return batch

    def _column(self, name: str, value) -> Tensor:
        tensor = value if isinstance(value, Tensor) else torch.tensor(value)
        return tensor[: self.max_length] if name in OFFLINE_COLUMNS else tensor[: self.max_length].long()

    def _pack(self, samples: list[dict]) -> list[list[dict]]:
        rows: list[list[dict]] = []
        free: list[int] = []
        width = self.max_length or max(len(sample["input_ids"]) for sample in samples)
        for sample in sorted(samples, key=lambda s: len(s["input_ids"]), reverse=True):
            length = len(sample["input_ids"])
            row = next((i for i, space in enumerate(free) if space >= length), None)
            if row is None:
                row = len(rows)
                rows.append([])
                free.append(width)
            rows[row].append(sample)
            free[row] -= length
        return rows

    @staticmethod
    def _fill(rows: list[list[dict]], name: str, value: int) -> Tensor:
        joined = [torch.cat([sample[name] for sample in row]) for row in rows]
        return pad_sequence(joined, batch_first=True, padding_value=value)
