"""The draft's own key/value cache, slot for slot beside the target's.

Slot c pairs the feature of the target's slot c with the token of slot c + 1. Entries made from true features stay; the
keys of tree nodes are written behind them and forgotten. A slot without an entry (padding, a prefix that another model
run filled) is invalid and never attended to. Under a window the entries in front of it are dropped, the first ones
of each sequence excepted; slot c then lies in column c - `dropped`. Does not know trees.

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
# First tokens that stay visible in front of a draft window: attention rests on them where it finds nothing else
# (StreamingLLM, arXiv 2309.17453, section 3).
NUM_SINKS = 4


@dataclass(frozen=True)
class Window:
    """
    Which entries are attended to: the last `size`, and the first `num_sinks` of each sequence.

    Attributes:
        is_trained: Part of the draft's architecture: it moves on with every level of the tree. Otherwise it ends at
            the newest entry, so that all levels see the same entries.
    """

    size: int
    num_sinks: int = 0
    is_trained: bool = False

    @classmethod
    def of(cls, config: Eagle3Config, draft_window: int | None) -> "Window | None":
        """The narrower of the draft's own window and `draft_window` (`None`: the configuration's; 0: none)."""
        trained = config.sliding_window
        size = config.draft_window if draft_window is None else draft_window
        if trained is not None and (not size or trained <= size):
            return cls(trained, is_trained=True)
        return cls(size, NUM_SINKS) if size else None

    @property
    def slack(self) -> int:
        """Entries that are out of sight before they are dropped, many at a time."""
        return max(64, self.size // 4)

    @property
    def most_entries(self) -> int:
        """Of one sequence that is read in parts of at most `size`."""
        return self.num_sinks + 2 * self.size + self.slack


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
        dropped: As in [`DraftCache`].
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    valid: torch.Tensor
    ids: torch.Tensor
    pending: torch.Tensor
    dtype: torch.dtype
    owner: weakref.ref | None
    dropped: int = 0

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
        filled: Columns up to the last that holds an entry; nodes are written from there on.
        dropped: Slots that have no column any more, between the first entries and the window.
    """

    def __init__(
        self,
        config: Eagle3Config,
        num_sequences: int,
        dtype: torch.dtype,
        device: torch.device,
        window: Window | None = None,
    ):
        shape = (num_sequences, config.num_key_value_heads, 0, config.head_dim)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.valid = torch.zeros(num_sequences, 0, dtype=torch.bool, device=device)
        self.filled = self.dropped = 0
        self.window = window

    def reserve(self, columns: int) -> None:
        """Room for at least so many columns."""
        missing = columns - self.valid.shape[1]
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

    def seen(self, valid: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Which of the columns `valid` (A, S) the columns `slots` (A, m) see, themselves included, (A, m, S)."""
        index, newest = torch.arange(valid.shape[1], device=valid.device), slots[:, :, None]
        seen = valid[:, None] & (index <= newest)
        if self.window is None:
            return seen
        return seen & ((index > newest - self.window.size) | self._sinks(valid)[:, None])

    def seen_below(self, num_sequences: int, level: int) -> torch.Tensor:
        """Which entries a node `level` levels below each sequence's newest entry sees, (A, columns)."""
        valid = self.entries(num_sequences)
        if self.window is None:
            return valid
        index = torch.arange(valid.shape[1], device=valid.device)
        newest = (index * valid).amax(dim=1, keepdim=True) + (level if self.window.is_trained else 0)
        return valid & ((index > newest - self.window.size) | self._sinks(valid))

    def _sinks(self, valid: torch.Tensor) -> torch.Tensor:
        """Which columns hold the first entries of their sequence, (A, S); left padding holds none."""
        return valid & (valid.cumsum(dim=1) <= self.window.num_sinks)

    def drop_before(self, slot: int) -> None:
        """Drop the entries that nothing from `slot` on sees, once they are many."""
        if self.window is None:
            return
        sinks = self.window.num_sinks
        first = slot - self.window.size + 1 - self.dropped
        if first - sinks < self.window.slack:
            return
        self.reserve(sinks)
        # Where a sequence begins inside the window, its first entries are there and not in front of it as well.
        held_first = self._sinks(self.valid)
        places = held_first.byte().argsort(dim=1, descending=True, stable=True)[:, :sinks]
        is_sink = held_first.gather(1, places) & (places < first)
        end = sinks + max(0, self.filled - first)  # in front of a prefix that another model ran, nothing is filled
        for held in (*self.keys, *self.values):
            rows = places[:, None, :, None].expand(-1, held.shape[1], -1, held.shape[3])
            held[:, :, :end] = torch.cat((held.gather(2, rows), held[:, :, first : self.filled]), dim=2)
        self.valid[:, :end] = torch.cat((is_sink, self.valid[:, first : self.filled]), dim=1)
        self.valid[:, end:] = False
        self.filled, self.dropped = end, self.dropped + first - sinks

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
        self.filled, self.dropped = state.valid.shape[1], state.dropped


class StaticDraftCache(DraftCache):
    """A draft cache whose slots are all there from the start, at addresses that stay: every pass sees all of them."""

    def __init__(
        self,
        config: Eagle3Config,
        num_sequences: int,
        dtype: torch.dtype,
        device: torch.device,
        window: Window | None,
        columns: int,
    ):
        super().__init__(config, num_sequences, dtype, device, window)
        self.kind = (num_sequences, dtype, device, window)
        super().reserve(columns)
        self.keys, self.values = [fixed(key) for key in self.keys], [fixed(value) for value in self.values]
        self.valid = fixed(self.valid)
        self.numbers = fixed(torch.arange(num_sequences, device=device)[:, None])
        self.start = fixed(torch.zeros((), dtype=torch.long, device=device))  # slot of the first node
        self.columns = fixed(torch.arange(self.valid.shape[1], device=device))

    def reserve(self, columns: int) -> None:
        """
        Raises:
            RuntimeError: there are fewer columns.
        """
        if columns > self.valid.shape[1]:
            raise RuntimeError(f"{columns} slots were asked of a static draft cache of {self.valid.shape[1]}.")

    def clear(self) -> None:
        """Forget all entries."""
        for held in (*self.keys, *self.values, self.valid):
            held.zero_()
        self.filled = self.dropped = 0

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
