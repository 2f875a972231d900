"""The draft's own key/value cache, column for column beside the target's.

Column c pairs the feature of the target's column c with the token of column c + 1. Entries made from true features
stay; the keys of tree nodes are written behind them and forgotten. A column without an entry (padding, a prefix that
another model run filled) is invalid and never attended to. Does not know trees.

Shape letters: B rows, A active rows (the first A of the storage), S columns, K kv heads, d head size.
"""

import weakref
from dataclasses import dataclass

import torch

from ...configuration_eagle3 import Eagle3Config
from ...modeling_eagle3 import Eagle3DraftModel
from ..ops.transfer import kept_rows


GROWTH = 256  # columns


@dataclass
class DraftState:
    """
    What a draft remembers between calls, riding along on the user's cache.

    Args:
        keys, values: Per draft layer, (B, K, S, d).
        valid: (B, S), columns with an entry.
        ids: Tokens of the target's cached columns and the root, (B, columns + 1); a later call must agree with them.
        pending: Features (B, m, F) of the last m columns of the target's cache, not yet fed.
        dtype: Of the draft's weights.
        owner: The draft's `fc` weight, weakly; `None` after pickling, and then never believed.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    valid: torch.Tensor
    ids: torch.Tensor
    pending: torch.Tensor
    dtype: torch.dtype
    owner: weakref.ref | None

    def __getstate__(self) -> dict:
        return vars(self) | {"owner": None}

    def belongs_to(self, draft: Eagle3DraftModel) -> bool:
        """Whether `draft` made this, and still has its dtype and device."""
        weight = draft.fc.weight
        same = self.owner is not None and self.owner() is weight
        return same and self.keys[0].device == weight.device and self.dtype == weight.dtype


class DraftCache:
    """Keys and values of the draft's layers for a batch of `num_rows`."""

    def __init__(self, config: Eagle3Config, num_rows: int, dtype: torch.dtype, device: torch.device):
        shape = (num_rows, config.num_key_value_heads, 0, config.head_dim)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.valid = torch.zeros(num_rows, 0, dtype=torch.bool, device=device)

    def reserve(self, columns: int) -> None:
        """Room for at least `columns` columns."""
        missing = columns - self.valid.shape[1]
        if missing <= 0:
            return
        missing = max(missing, GROWTH, self.valid.shape[1] // 8)
        pad = (0, 0, 0, missing)
        self.keys = [torch.nn.functional.pad(k, pad) for k in self.keys]
        self.values = [torch.nn.functional.pad(v, pad) for v in self.values]
        self.valid = torch.nn.functional.pad(self.valid, (0, missing))

    def write_entries(
        self, layer: int, rows: torch.Tensor, columns: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ):
        """Entries of a pass, key and value (A, K, m, d), at `columns` (A, m) of `rows` (A, 1)."""
        self.keys[layer][rows, :, columns] = key.transpose(1, 2)
        self.values[layer][rows, :, columns] = value.transpose(1, 2)

    def write_nodes(
        self, layer: int, start: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Temporary keys of tree nodes (A, K, n, d) from column `start`; returns all columns up to their end."""
        rows, end = key.shape[0], start + key.shape[2]
        self.keys[layer][:rows, :, start:end] = key
        self.values[layer][:rows, :, start:end] = value
        return self.keys[layer][:rows, :, :end], self.values[layer][:rows, :, :end]

    def select_rows(self, order: list[int]) -> None:
        """Keep the storage rows `order`, in that order."""
        self.keys = [kept_rows(k, order, dim=0) for k in self.keys]
        self.values = [kept_rows(v, order, dim=0) for v in self.values]
        self.valid = kept_rows(self.valid, order, dim=0)

    def restore(self, state: DraftState) -> None:
        """Take over the entries of an earlier call."""
        self.keys = [k.clone() for k in state.keys]
        self.values = [v.clone() for v in state.values]
        self.valid = state.valid.clone()
