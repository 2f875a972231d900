"""Slot caches: the target's keys and values while trees are verified, and the masks that go with them.

A row's tokens lie at their columns (left padding included), the same for every layer. A verification pass writes its
nodes behind the longest row; committing gathers the accepted ones down next to each row's prefix:

    row 0   the cat sat  .   .  | on  off  a        accepted: on, a  ->  the cat sat on  a
    row 1   .   a   dog ran  fast| and .  ,          accepted: and    ->  .   a   dog ran fast and

Storage is taken over from the host's cache after prefill and given back as an ordinary cache at the end. Sliding
layers keep their window only. Does not know trees beyond their ancestor relation, or tokens.

Shape letters: B rows, A active rows (the first A of the storage), S slots, N drafted nodes, h kv heads, d head size.
"""

from dataclasses import dataclass, field

import torch
from transformers import Cache

from ...compat import caches
from ...target.layer_inputs import Reach
from ..ops.transfer import kept_rows


GROWTH = 256  # slots added at least, when storage is full
# Layers of one shape share storage, so that committing is one gather for all of them; but never more than this at
# once, since taking over and growing hold two copies.
GROUP_BYTES = 2**28


@dataclass
class Span:
    """
    Where the layers of one window stand: their storage begins at column `start`, the next pass writes at `write`.
    """

    window: int | None
    start: int = 0
    write: int = 0

    @property
    def offset(self) -> int:
        """Slots from the first that is read to the first that is written."""
        return self.write - self.start


class SlotLayer(caches.OwnLayer):
    """One target layer's keys and values, and its indexer's keys: views into a group's storage."""

    def __init__(self, span: Span):
        super().__init__()
        self.span = span
        self.is_sliding = span.window is not None
        self.indexer_keys: torch.Tensor | None = None

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a pass's nodes (A, h, n, d) behind the longest row; returns all slots up to their end."""
        start = self.span.offset
        end = start + keys.shape[2]
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]

    def write_indexer(self, keys: torch.Tensor) -> torch.Tensor:
        """The same for the keys (A, n, d) of a layer's indexer, which stand in their own slots (A, 1, S, d)."""
        start = self.span.offset
        end = start + keys.shape[1]
        self.indexer_keys[:, 0, start:end] = keys
        return self.indexer_keys[:, 0, :end]

    def columns_of_pass(self, num_queries: int) -> tuple[int, int]:
        """(columns, first column) of the mask of a pass."""
        return self.span.offset + num_queries, self.span.start

    def columns_before(self) -> int:
        """Slots before the nodes of this pass."""
        return self.span.write


@dataclass
class _Group:
    """Entries (layer, "keys", "values" or "indexer_keys") of one shape and span in a tensor (entries, B, h, S, d)."""

    span: Span
    entries: list[tuple[int, str]] = field(default_factory=list)
    storage: torch.Tensor | None = None
    length: int | None = None  # columns taken over; `None`: not yet


class SlotCache(Cache):
    """
    The host's cache after prefill, as slots.

    Args:
        cache: The host's cache, holding the prompt. Its tensors are taken over; `give_back` restores it.
        num_rows: B.
        length: Columns it holds.
        room: Most nodes of a pass, root included.
        limit: Columns that a call can reach; storage never grows past it plus `room`.
    """

    def __init__(self, cache: Cache, num_rows: int, length: int, room: int, limit: int):
        self.host, self.room, self.limit = cache, room, limit
        self.num_rows = self.num_active = num_rows
        self.spans: dict[int | None, Span] = {}
        self.groups: list[_Group] = []
        layers, sources = [], {}
        for index, layer in enumerate(cache.layers):
            if not caches.holds_columns(layer):
                layers.append(layer)
                continue
            window = caches.window_of(layer)
            span = self.spans.setdefault(window, Span(window, length - layer.keys.shape[2], length))
            layers.append(SlotLayer(span))
            for name in caches.part_names(layer):
                self._join_group(span, index, name, caches.part(layer, name))
                sources[index, name] = layer
        super().__init__(layers=layers)
        try:
            for group in self.groups:
                self._allocate(group, [caches.part(sources[entry], entry[1]) for entry in group.entries], sources)
        except BaseException:  # out of memory: what was taken over goes back, in our storage
            for group in self.groups:
                for place, entry in enumerate(group.entries if group.length is not None else ()):
                    caches.put_part(sources[entry], entry[1], group.storage[place, :, :, : group.length])
            raise

    def _join_group(self, span: Span, index: int, name: str, tensor: torch.Tensor) -> None:
        for group in reversed(self.groups):
            other = group.storage
            if (
                group.span is span
                and other.shape == tensor.shape
                and other.dtype == tensor.dtype
                and other.device == tensor.device
                and (len(group.entries) + 1) * tensor.nbytes <= GROUP_BYTES
            ):
                group.entries.append((index, name))
                return
        self.groups.append(_Group(span, [(index, name)], tensor))

    def _capacity(self, span: Span) -> int:
        if span.window is None:
            return min(span.write + GROWTH, self.limit) + self.room
        return min(span.window + GROWTH, max(self.limit - span.start, span.offset)) + self.room

    def _allocate(self, group: _Group, sources: list[torch.Tensor], layers: dict) -> None:
        like = sources[0]
        rows, heads, used, width = like.shape
        shape = (len(group.entries), rows, heads, max(self._capacity(group.span), used + self.room), width)
        group.storage = _new_storage(like, shape)
        group.storage[:, :, :, used:] = 0  # slots that no row has filled are masked, and NaN times zero is NaN
        for place, source in enumerate(sources):
            group.storage[place, :, :, :used] = source
        group.length = used
        for entry in group.entries:
            caches.put_part(layers[entry], entry[1], None)  # free the copy that was taken over
        self._view(group)

    def _view(self, group: _Group) -> None:
        for place, (index, name) in enumerate(group.entries):
            setattr(self.layers[index], name, group.storage[place, : self.num_active])

    def begin_pass(self, write: int, shortest: int, num_nodes: int) -> None:
        """
        Make room for `num_nodes` nodes at column `write`.

        Args:
            write: Columns of the longest active row.
            shortest: Columns of the shortest row that is kept; its window must stay.
        """
        for span in self.spans.values():
            span.write = write
            if span.window is not None:
                self._slide(span, max(span.start, shortest - span.window + 1), num_nodes)
        for group in self.groups:
            missing = group.span.offset + num_nodes - group.storage.shape[3]
            if missing > 0:
                self.room = max(self.room, num_nodes)
                missing = max(missing, self._capacity(group.span) - group.storage.shape[3], GROWTH)
                group.storage = torch.nn.functional.pad(group.storage, (0, 0, 0, missing))
                self._view(group)

    def _slide(self, span: Span, start: int, num_nodes: int) -> None:
        """Drop columns before `start` when storage would overflow, so that sliding layers do not grow."""
        groups = [group for group in self.groups if group.span is span]
        if start == span.start or all(span.offset + num_nodes <= g.storage.shape[3] for g in groups):
            return
        shift = start - span.start
        for group in groups:  # to the end: sequences that are not active may be longer than those that are
            group.storage[:, :, :, :-shift] = group.storage[:, :, :, shift:].clone()
        span.start = start

    def keep(self, write: int, columns: torch.Tensor, nodes: torch.Tensor) -> None:
        """
        Commit: move each row's accepted nodes down to its own columns.

        Args:
            write: Where the pass wrote.
            columns: Column of each row's first node of the path (the root's), (A,).
            nodes: Node of each path place, (A, T + 1); places past a row's path move slots that stay masked.
        """
        steps = torch.arange(nodes.shape[1], device=nodes.device)
        if nodes.shape[0] == 1:
            for group in self.groups:
                source = group.storage[:, : self.num_active]
                first = write - group.span.start
                at = first + nodes[0].to(source.device)
                source[:, :, :, first : first + nodes.shape[1]] = source.index_select(3, at)
            return
        for group in self.groups:
            source = group.storage[:, : self.num_active]
            rows = torch.arange(nodes.shape[0], device=source.device)[:, None]
            origin = (write - group.span.start + nodes).to(source.device)
            goal = (columns[:, None] + steps - group.span.start).to(source.device)
            source[:, rows, :, goal] = source[:, rows, :, origin]

    def clear_behind(self, columns: list[int]) -> None:
        """Zero the slots behind each active row's `columns`."""
        for group in self.groups:
            for row, length in enumerate(columns):
                group.storage[:, row, :, length - group.span.start :] = 0

    def select_rows(self, order: list[int], drop: bool) -> None:
        """
        Make the storage rows `order` the active ones.

        Args:
            drop: Forget the others; else they stay in storage, behind, in ascending order.
        """
        self.num_active = len(order)
        others = [] if drop else [row for row in range(self.num_rows) if row not in order]
        for group in self.groups:
            group.storage = kept_rows(group.storage, order + others, dim=1)
            self._view(group)

    def give_back(self, length: int, row_of_slot: list[int] | None) -> None:
        """
        Restore the host's cache as an ordinary one of `length` columns.

        Args:
            row_of_slot: Original row of each storage row; `None` if rows were dropped, which leaves the host's cache
                empty (nobody asked for it).
        """
        for group in self.groups:
            if row_of_slot is not None:
                order = torch.tensor(_inverse(row_of_slot), device=group.storage.device)
                for place, (index, name) in enumerate(group.entries):
                    caches.put_part(self.host.layers[index], name, self._ordinary(group, place, length, order))
            group.storage = None
        for index, layer in enumerate(self.layers):
            if not isinstance(layer, SlotLayer):
                continue
            layer.keys = layer.values = layer.indexer_keys = None
            if row_of_slot is None:
                caches.make_empty(self.host.layers[index])
            else:
                caches.set_length(self.host.layers[index], length)

    def _ordinary(self, group: _Group, place: int, length: int, order: torch.Tensor) -> torch.Tensor:
        """(B, h, columns, d) as plain generate leaves it: all columns, or a sliding layer's last window - 1."""
        window = group.span.window
        first = group.span.start if window is None else max(group.span.start, length - window + 1)
        part = group.storage[place, :, :, first - group.span.start : length - group.span.start]
        try:
            return part[order] if order.numel() > 1 else part.clone()
        except torch.OutOfMemoryError:  # then the storage itself, with the room behind it
            return _reordered(part, order.tolist())


def _new_storage(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return like.new_empty(shape)


def _reordered(part: torch.Tensor, order: list[int]) -> torch.Tensor:
    """`part[order]` in its own memory, with one more row at a time."""
    for first in range(len(order)):
        if order[first] == first:
            continue
        kept, place = part[first].clone(), first
        while order[place] != first:
            part[place].copy_(part[order[place]])
            order[place], place = place, order[place]
        part[place].copy_(kept)
        order[place] = place
    return part


def _inverse(order: list[int]) -> list[int]:
    out = [0] * len(order)
    for place, row in enumerate(order):
        out[row] = place
    return out


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where `allowed`, the most negative finite number elsewhere: never -inf, never bool (eager attention)."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, torch.finfo(dtype).min
    )


def verification_masks(
    kinds: dict[str, tuple[Span, Reach]],
    lengths: torch.Tensor,
    visible: torch.Tensor | None,
    depths: torch.Tensor,
    ancestors: torch.Tensor,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """
    Additive masks per kind of attention, each (A, 1, N + 1, slots + N + 1).

    Args:
        kinds: Of each kind of attention, where its layers stand and how far back it attends.
        lengths: Columns each row has, (A,). A node stands for column length + depth.
        visible: Which columns are no padding, (A, at least the longest length); `None`: all.
        depths: (A, N + 1).
        ancestors: (A, N + 1, N + 1).

    Windows and chunks are by token position, not by slot: columns of one row differ as their positions do, and chunks
    are counted behind the left padding.
    """
    masks = {}
    here = lengths[:, None] + depths  # (A, N + 1), as columns
    for kind, (span, reach) in kinds.items():
        columns = torch.arange(span.start, span.write, device=lengths.device)
        prefix = columns < lengths[:, None]  # (A, slots)
        if visible is not None:
            prefix = prefix & visible[:, span.start : span.write]
        prefix = prefix[:, None].expand(-1, depths.shape[1], -1)
        nodes = ancestors
        if reach.window is not None:
            prefix = prefix & (here[:, :, None] - columns < reach.window)
            nodes = nodes & (depths[:, :, None] - depths[:, None] < reach.window)
        if reach.chunk is not None:
            padding = 0 if visible is None else (visible.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)  # (A, 1)
            chunk = (here - padding) // reach.chunk
            prefix = prefix & (chunk[:, :, None] == ((columns - padding) // reach.chunk)[..., None, :])
            nodes = nodes & (chunk[:, :, None] == chunk[:, None])
        masks[kind] = additive(torch.cat((prefix, nodes), dim=2)[:, None], dtype)
    return masks


def slot_positions(write: int, visible: torch.Tensor | None, node_columns: torch.Tensor) -> torch.Tensor:
    """Token positions of all slots, left padding not counted, (A, write + N + 1), for nodes at `node_columns`."""
    columns = torch.arange(write, device=node_columns.device).expand(node_columns.shape[0], -1)
    columns = torch.cat((columns, node_columns), dim=1)
    return columns if visible is None else (visible.cumsum(dim=1).gather(1, columns) - 1).clamp(min=0)
