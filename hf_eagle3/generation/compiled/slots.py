"""Slots of a fixed number, written at places that a tensor names, so that passes can be compiled and replayed.

As in `verify/slots.py` a sequence's tokens lie at their own slots and a pass writes its nodes behind the longest one.
Here every tensor keeps its shape and its address for the whole call. What a cycle accepted is moved down at the
beginning of the *next* pass, inside it, so that committing is no work of its own:

    pass 1 writes at 3:    the cat sat | on  off  a   .       accepted: on, a
    pass 2 moves, writes:  the cat sat  on  a | mat rug .     unused slots are masked

Every layer holds all tokens; windows are the masks' business. Does not know trees, models or compilers.

Shape letters: B sequences, S slots, P places of a path, n nodes of a pass with the root, h kv heads, d head size.
"""

from dataclasses import dataclass

import torch
from transformers import Cache

from ...compat.caches import KEYS_AND_VALUES, cached_columns, part, put_part
from ..ops.storage import fixed
from ..verify.slots import SlotLayer, Span


@dataclass
class CommitIndices:
    """
    Where the next pass moves and writes, on one device.

    Attributes:
        numbers: 0 to B - 1, (B, 1).
        write: Slots of the nodes, (n of the largest pass,).
        src, dst: Slots of each sequence's accepted path, and where it goes, (B, P); equal: nothing to move.
        length: Slots before the nodes, ().
    """

    numbers: torch.Tensor
    write: torch.Tensor
    src: torch.Tensor
    dst: torch.Tensor
    length: torch.Tensor

    @classmethod
    def on(cls, device: torch.device, num_sequences: int, path_length: int, room: int) -> "CommitIndices":
        """With nothing to move."""
        path = torch.arange(path_length, device=device).repeat(num_sequences, 1)
        return cls(
            numbers=fixed(torch.arange(num_sequences, device=device)[:, None]),
            write=fixed(torch.arange(room, device=device)),
            src=fixed(path),
            dst=fixed(path.clone()),
            length=fixed(torch.zeros((), dtype=torch.long, device=device)),
        )


class StaticSlotLayer(SlotLayer):
    """One target layer's keys and values, (B, h, S, d), and the indices that its device's layers share."""

    def __init__(self, span: Span, keys: torch.Tensor, values: torch.Tensor, indices: CommitIndices):
        super().__init__(span)
        self.keys, self.values, self.indices = keys, values, indices

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Move what the cycle before accepted, write a pass's nodes (B, h, n, d); returns all slots."""
        self.move()
        write = self.indices.write[: keys.shape[2]]
        self.keys[:, :, write] = keys
        self.values[:, :, write] = values
        return self.keys, self.values

    def move(self) -> None:
        """Each sequence's accepted nodes to its own slots."""
        indices = self.indices
        for held in (self.keys, self.values):
            held[indices.numbers, :, indices.dst] = held[indices.numbers, :, indices.src]

    def write_indexer(self, keys: torch.Tensor) -> torch.Tensor:
        """Raises: layers with an indexer are refused before they get here."""
        raise NotImplementedError("Static slots hold no keys of an indexer.")

    def columns_of_pass(self, num_queries: int) -> tuple[int, int]:
        """(width, first token) of the mask of a pass."""
        return self.keys.shape[2], 0

    def columns_before(self) -> torch.Tensor:
        """Slots before the nodes of this pass, (); a tensor, since a number would be compiled in."""
        return self.indices.length


class StaticSlots(Cache):
    """
    Storage for the keys and values of a target's layers.

    Args:
        like: A cache with layers like these; how many tokens it holds does not count.
        num_sequences: B.
        num_slots: S.
        path_length: P, most nodes that a sequence commits in a cycle.
        room: Most nodes of a pass.
    """

    def __init__(self, like: Cache, num_sequences: int, num_slots: int, path_length: int, room: int):
        self.num_sequences, self.num_slots, self.path_length, self.room = num_sequences, num_slots, path_length, room
        span = Span(None)
        self.spans: dict[int | None, Span] = {None: span}
        self.indices: dict[torch.device, CommitIndices] = {}
        layers = []
        for layer in like.layers:
            device = layer.keys.device
            if device not in self.indices:
                self.indices[device] = CommitIndices.on(device, num_sequences, path_length, room)
            storage = [fixed(_storage(part(layer, name), num_sequences, num_slots)) for name in KEYS_AND_VALUES]
            layers.append(StaticSlotLayer(span, *storage, self.indices[device]))
        super().__init__(layers=layers)

    def fits(self, like: Cache, num_sequences: int, num_slots: int, path_length: int, room: int) -> bool:
        """Whether storage made with these arguments would be no larger and otherwise the same."""
        same = (self.num_sequences, self.path_length, self.room) == (num_sequences, path_length, room)
        return (
            same
            and self.num_slots >= num_slots
            and len(self.layers) == len(like.layers)
            and all(
                _kind(part(own, name)) == _kind(part(layer, name))
                for own, layer in zip(self.layers, like.layers, strict=True)
                for name in KEYS_AND_VALUES
            )
        )

    def fill(self, cache: Cache) -> None:
        """Take over the tokens of `cache`, layer by layer; it is left empty."""
        for own, layer in zip(self.layers, cache.layers, strict=True):
            for name in KEYS_AND_VALUES:
                held, source = part(own, name), part(layer, name)
                # Zeros, not what an earlier call left: a masked slot weighs nothing, but NaN times zero is NaN.
                held[:, :, source.shape[2] :].zero_()
                held[:, :, : source.shape[2]] = source
                put_part(layer, name, None)
        self._clear_pending_commit()

    def begin_pass(self, write: int, shortest: int, num_nodes: int) -> None:
        """The next pass writes its nodes from slot `write` on."""
        self.spans[None].write = write
        for indices in self.indices.values():
            torch.arange(write, write + self.room, out=indices.write)
            indices.length.fill_(write)

    def keep(self, src: torch.Tensor, dst: torch.Tensor) -> None:
        """Commit: the next pass moves each sequence's slots `src` to `dst`, (B, P)."""
        for indices in self.indices.values():
            indices.src.copy_(src)
            indices.dst.copy_(dst)

    def clear_behind(self, lengths: list[int]) -> None:
        """Zero the slots behind each sequence's cached tokens, so many; nothing is left to move."""
        self._clear_pending_commit()
        for own in self.layers:
            for number, length in enumerate(lengths):
                own.keys[number, :, length:] = 0
                own.values[number, :, length:] = 0

    def _clear_pending_commit(self) -> None:
        for indices in self.indices.values():
            indices.src.copy_(indices.dst)

    def give_back(self, cache: Cache, length: int) -> None:
        """Fill a static cache of transformers up to `length` tokens, as plain `generate` would have."""
        held = cached_columns(cache, 0)
        for index, own in enumerate(self.layers):
            own.move()
            cache.update(own.keys[:, :, held:length], own.values[:, :, held:length], index)
        self._clear_pending_commit()


def _storage(like: torch.Tensor, num_sequences: int, num_slots: int) -> torch.Tensor:
    return like.new_zeros(num_sequences, like.shape[1], num_slots, like.shape[3])


def _kind(tensor: torch.Tensor) -> tuple:
    return tensor.shape[1], tensor.shape[3], tensor.dtype, tensor.device
