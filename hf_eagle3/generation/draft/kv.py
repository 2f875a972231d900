"""The draft's own key/value cache, slot for slot beside the target's.

Slot c pairs the feature of the target's slot c with the token of slot c + 1. Entries made from true features stay; the
keys of tree nodes are written behind them and forgotten. A slot without an entry (padding, a prefix that another model
run filled) is invalid and never attended to. Does not know trees.

Shape letters: B sequences, A active ones (the first A of the storage), S slots, K kv heads, d head size.
"""

import weakref
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...configuration_eagle3 import Eagle3Config
from ...modeling_eagle3 import Eagle3DraftModel
from ..ops.storage import fixed
from ..ops.transfer import kept_entries


GROWTH = 256  # slots


@dataclass
class DraftState:
    """
    What a draft remembers between calls, riding along on the user's cache.

    Args:
        keys, values: Per draft layer, (B, K, S, d).
        valid: (B, S), slots with an entry.
        ids: Tokens of the target's cached slots and the root, (B, slots + 1); a later call must agree with them.
        pending: Features (B, m, F) of the last m slots of the target's cache, not yet fed.
        dtype: Of the draft's weights.
        owner: The draft's `fc` weight, weakly; `None` after pickling, and the state is not reused then.
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
    """
    Keys and values of the draft's layers for a batch.

    Attributes:
        filled: Slots up to the last that holds an entry; nodes are written from there on.
    """

    def __init__(self, config: Eagle3Config, num_sequences: int, dtype: torch.dtype, device: torch.device):
        shape = (num_sequences, config.num_key_value_heads, 0, config.head_dim)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.valid = torch.zeros(num_sequences, 0, dtype=torch.bool, device=device)
        self.filled = 0

    def reserve(self, slots: int) -> None:
        """Room for at least `slots` slots."""
        missing = slots - self.valid.shape[1]
        if missing <= 0:
            return
        missing = max(missing, GROWTH, self.valid.shape[1] // 8)
        pad = (0, 0, 0, missing)
        self.keys, self.values = ([F.pad(held, pad) for held in parts] for parts in (self.keys, self.values))
        self.valid = F.pad(self.valid, (0, missing))

    # -- entries ------------------------------------------------------------------------------------------------------

    def index(self, num_sequences: int) -> torch.Tensor:
        """Numbers of the active sequences' storage, (A, 1), to index beside slots (A, m)."""
        return torch.arange(num_sequences, device=self.valid.device)[:, None]

    def entries(self, num_sequences: int) -> torch.Tensor:
        """Which slots hold entries, (A, slots that nodes see)."""
        return self.valid[:num_sequences, : self.filled]

    def write_entries(
        self, layer: int, index: torch.Tensor, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Entries of a pass, key and value (A, K, m, d), at `slots` (A, m); returns all of those sequences' slots."""
        self.keys[layer][index, :, slots] = key.transpose(1, 2)
        self.values[layer][index, :, slots] = value.transpose(1, 2)
        return self.keys[layer][: len(index)], self.values[layer][: len(index)]

    # -- nodes --------------------------------------------------------------------------------------------------------

    def begin_nodes(self, count: int) -> None:
        """Room for `count` nodes behind the entries."""
        self.reserve(self.filled + count)

    def node_slots(self, first: int, count: int) -> slice | torch.Tensor:
        """Slots of `count` nodes of a level, behind `first` nodes of levels before."""
        return slice(self.filled + first, self.filled + first + count)

    def node_mask(self, prefix: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
        """
        What nodes see of all slots that `write_nodes` returns, additive, from what they see of the entries (A, 1, 1,
        S) and of the nodes written so far, their own level included (A, 1, k, n).
        """
        return torch.cat((prefix.expand(-1, -1, above.shape[2], -1), above), dim=-1)

    def write_nodes(
        self, layer: int, slots: slice | torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of tree nodes (A, K, n, d) at `slots`; returns all slots up to theirs."""
        count = key.shape[0]
        self.keys[layer][:count, :, slots] = key
        self.values[layer][:count, :, slots] = value
        return self.keys[layer][:count, :, : slots.stop], self.values[layer][:count, :, : slots.stop]

    # -- sequences ----------------------------------------------------------------------------------------------------

    def select(self, order: list[int]) -> None:
        """Keep the storage of the sequences `order`, in that order."""
        self.keys = [kept_entries(k, order, dim=0) for k in self.keys]
        self.values = [kept_entries(v, order, dim=0) for v in self.values]
        self.valid = kept_entries(self.valid, order, dim=0)

    def restore(self, state: DraftState) -> None:
        """Take over the entries of an earlier call."""
        self.keys = [k.clone() for k in state.keys]
        self.values = [v.clone() for v in state.values]
        self.valid = state.valid.clone()
        self.filled = state.valid.shape[1]


class StaticDraftCache(DraftCache):
    """A draft cache whose slots are all there from the start, at addresses that stay: every pass sees all of them."""

    def __init__(self, config: Eagle3Config, num_sequences: int, dtype: torch.dtype, device: torch.device, slots: int):
        super().__init__(config, num_sequences, dtype, device)
        self.kind = (num_sequences, dtype, device)
        super().reserve(slots)
        self.keys, self.values = [fixed(key) for key in self.keys], [fixed(value) for value in self.values]
        self.valid = fixed(self.valid)
        self.numbers = fixed(torch.arange(num_sequences, device=device)[:, None])
        self.start = fixed(torch.zeros((), dtype=torch.long, device=device))  # slot of the first node
        self.columns = fixed(torch.arange(self.valid.shape[1], device=device))

    def reserve(self, slots: int) -> None:
        """
        Raises:
            RuntimeError: there are fewer slots.
        """
        if slots > self.valid.shape[1]:
            raise RuntimeError(f"{slots} slots were asked of a static draft cache of {self.valid.shape[1]}.")

    def clear(self) -> None:
        """Forget all entries."""
        for held in (*self.keys, *self.values, self.valid):
            held.zero_()
        self.filled = 0

    def index(self, num_sequences: int) -> torch.Tensor:
        """As in [`DraftCache`]."""
        return self.numbers[:num_sequences]

    def entries(self, num_sequences: int) -> torch.Tensor:
        """As in [`DraftCache`]."""
        return self.valid

    def begin_nodes(self, count: int) -> None:
        """As in [`DraftCache`]."""
        super().begin_nodes(count)
        self.start.fill_(self.filled)

    def node_slots(self, first: int, count: int) -> torch.Tensor:
        """As in [`DraftCache`]; a tensor, since numbers would be compiled in."""
        return self.start + self.columns[first : first + count]

    def node_mask(self, prefix: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
        """As in [`DraftCache`]."""
        mask = prefix.expand(-1, -1, above.shape[2], -1).clone()
        mask[:, :, :, self.node_slots(0, above.shape[3])] = above
        return mask

    def write_nodes(
        self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As in [`DraftCache`]."""
        self.keys[layer][:, :, slots] = key
        self.values[layer][:, :, slots] = value
        return self.keys[layer], self.values[layer]
