"""Slots of a fixed number, written at places that a tensor names, so that passes can be compiled and replayed.

As in `verify/slots.py` a row's tokens lie at their columns and a pass writes its nodes behind the longest row. Here
every tensor keeps its shape and its address for the whole call. What a cycle accepted is moved down to its row's
columns at the beginning of the *next* pass, inside it, so that committing is no work of its own:

    pass 1 writes at 3:    the cat sat | on  off  a   .       accepted: on, a
    pass 2 moves, writes:  the cat sat  on  a | mat rug .     a mask hides what is nobody's

Every layer holds all columns; windows are the masks' business. Does not know trees, models or compilers.

Shape letters: B rows, S slots, P places of a path, n nodes of a pass with the root, h kv heads, d head size.
"""

import weakref
from dataclasses import dataclass

import torch
from transformers import Cache

from ...compat.caches import KEYS_AND_VALUES, cached_columns, part, put_part
from ..verify.slots import SlotLayer, Span


ROUNDING = 128  # slots: calls of about the same length share shapes


def rounded(slots: int) -> int:
    """The next multiple of `ROUNDING`."""
    return -(-slots // ROUNDING) * ROUNDING


def fixed(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, marked: its address stays, so that a CUDA graph reads and writes it where it is."""
    torch._dynamo.mark_static_address(tensor, guard=False)
    return tensor


@dataclass
class Marks:
    """
    Where the next pass moves and writes, on one device.

    Attributes:
        rows: 0 to B - 1, (B, 1).
        write: Slots of the nodes, (n of the largest pass,).
        origin, goal: Slots of each row's accepted path and the columns it goes to, (B, P); equal: nothing to move.
        length: Slots before the nodes, ().
    """

    rows: torch.Tensor
    write: torch.Tensor
    origin: torch.Tensor
    goal: torch.Tensor
    length: torch.Tensor

    @classmethod
    def on(cls, device: torch.device, num_rows: int, path_length: int, room: int) -> "Marks":
        """Marks for `num_rows` rows, with nothing to move."""
        path = torch.arange(path_length, device=device).repeat(num_rows, 1)
        return cls(
            rows=fixed(torch.arange(num_rows, device=device)[:, None]),
            write=fixed(torch.arange(room, device=device)),
            origin=fixed(path),
            goal=fixed(path.clone()),
            length=fixed(torch.zeros((), dtype=torch.long, device=device)),
        )


class StaticSlotLayer(SlotLayer):
    """One target layer's keys and values, (B, h, S, d), and the marks that it shares with the layers of its device."""

    def __init__(self, span: Span, keys: torch.Tensor, values: torch.Tensor, marks: Marks):
        super().__init__(span)
        self.keys, self.values, self.marks = keys, values, marks

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Move what the cycle before accepted, write a pass's nodes (B, h, n, d); returns all slots."""
        self.move()
        write = self.marks.write[: keys.shape[2]]
        self.keys[:, :, write] = keys
        self.values[:, :, write] = values
        return self.keys, self.values

    def move(self) -> None:
        """Each row's accepted nodes to its own columns."""
        marks = self.marks
        for held in (self.keys, self.values):
            held[marks.rows, :, marks.goal] = held[marks.rows, :, marks.origin]

    def write_indexer(self, keys: torch.Tensor) -> torch.Tensor:
        """Raises: layers with an indexer are refused before they get here."""
        raise NotImplementedError("Static slots hold no keys of an indexer.")

    def columns_of_pass(self, num_queries: int) -> tuple[int, int]:
        """(columns, first column) of the mask of a pass."""
        return self.keys.shape[2], 0

    def columns_before(self) -> torch.Tensor:
        """Slots before the nodes of this pass, (); a tensor, since a number would be compiled in."""
        return self.marks.length


class StaticSlots(Cache):
    """
    Storage for the keys and values of a target's layers.

    Args:
        like: A cache with layers like these; how many columns it holds does not count.
        num_rows: B.
        num_slots: S.
        path_length: P, most nodes that a row commits in a cycle.
        room: Most nodes of a pass.
    """

    def __init__(self, like: Cache, num_rows: int, num_slots: int, path_length: int, room: int):
        self.num_rows, self.num_slots, self.path_length, self.room = num_rows, num_slots, path_length, room
        span = Span(None)
        self.spans: dict[int | None, Span] = {None: span}
        self.marks: dict[torch.device, Marks] = {}
        layers = []
        for layer in like.layers:
            device = layer.keys.device
            if device not in self.marks:
                self.marks[device] = Marks.on(device, num_rows, path_length, room)
            storage = [fixed(_storage(part(layer, name), num_rows, num_slots)) for name in KEYS_AND_VALUES]
            layers.append(StaticSlotLayer(span, *storage, self.marks[device]))
        super().__init__(layers=layers)

    def fits(self, like: Cache, num_rows: int, num_slots: int, path_length: int, room: int) -> bool:
        """Whether storage made with these arguments would be no larger and otherwise the same."""
        same = (self.num_rows, self.path_length, self.room) == (num_rows, path_length, room)
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
        """Take over the columns of `cache`, layer by layer; it is left empty."""
        for own, layer in zip(self.layers, cache.layers, strict=True):
            for name in KEYS_AND_VALUES:
                held, source = part(own, name), part(layer, name)
                # Zeros, not what an earlier call left: masked slots count nothing, but NaN times zero is NaN.
                held[:, :, source.shape[2] :].zero_()
                held[:, :, : source.shape[2]] = source
                put_part(layer, name, None)
        self._rest()

    def begin_pass(self, write: int, shortest: int, num_nodes: int) -> None:
        """The next pass writes its nodes from column `write` on."""
        self.spans[None].write = write
        for marks in self.marks.values():
            torch.arange(write, write + self.room, out=marks.write)
            marks.length.fill_(write)

    def keep(self, origin: torch.Tensor, goal: torch.Tensor) -> None:
        """Commit: the next pass moves each row's slots `origin` to `goal`, (B, P)."""
        for marks in self.marks.values():
            marks.origin.copy_(origin)
            marks.goal.copy_(goal)

    def clear_behind(self, columns: list[int]) -> None:
        """Zero the slots behind each row's `columns`; nothing is left to move."""
        self._rest()
        for own in self.layers:
            for row, length in enumerate(columns):
                own.keys[row, :, length:] = 0
                own.values[row, :, length:] = 0

    def _rest(self) -> None:
        for marks in self.marks.values():
            marks.origin.copy_(marks.goal)

    def give_back(self, host: Cache, length: int) -> None:
        """Fill a static cache of transformers up to `length` columns, as plain `generate` would have."""
        held = cached_columns(host, 0)
        for index, own in enumerate(self.layers):
            own.move()
            host.update(own.keys[:, :, held:length], own.values[:, :, held:length], index)
        self._rest()


def _storage(like: torch.Tensor, num_rows: int, num_slots: int) -> torch.Tensor:
    return like.new_zeros(num_rows, like.shape[1], num_slots, like.shape[3])


def _kind(tensor: torch.Tensor) -> tuple:
    return tensor.shape[1], tensor.shape[3], tensor.dtype, tensor.device


class Shelf:
    """
    Storage between calls, one piece per owner: CUDA graphs know it by its address, and would be recorded anew for
    another. It is taken out while in use, so that two threads never share it, and goes with its owner.
    """

    def __init__(self):
        self._pieces: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def take(self, owner):
        """What was put here for `owner`, or `None`."""
        return self._pieces.pop(owner, None)

    def put(self, owner, piece) -> None:
        """Keep `piece` for the next call of `owner`."""
        self._pieces[owner] = piece

    def clear(self) -> None:
        """Free all that is kept."""
        self._pieces.clear()
