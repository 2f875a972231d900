"""Slot caches: the target's keys and values while trees are verified.

A sequence's tokens lie at their own slots (left padding included), the same for every layer. A verification writes its
nodes behind the longest sequence; committing gathers the accepted ones down next to each sequence's prefix:

    sequence 0   the cat sat  .   .  | on  off  a        accepted: on, a  ->  the cat sat on  a
    sequence 1   .   a   dog ran fast| and .  ,          accepted: and    ->  .   a   dog ran fast and

Storage is taken over from transformers' cache after prefill and given back as an ordinary cache at the end. Sliding
layers keep their window only. Does not know trees beyond their ancestor relation, or tokens.

Shape letters: B sequences, A active ones (the first A of the storage), S slots, N drafted nodes, h kv heads, d head
size.
"""

from dataclasses import dataclass, field

import torch
from transformers import Cache

from ...compat import caches
from ..ops.transfer import kept_entries


GROWTH = 256  # slots added at least, when storage is full
# Layers of one shape share storage, so that committing is one gather for all of them; but never more than this at
# once, since taking over and growing hold two copies.
GROUP_BYTES = 2**28


@dataclass
class Span:
    """
    The slots of the layers of one window: their storage begins at token `start`, the next pass writes at `write`.
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
        """Write a pass's nodes (A, h, n, d) behind the longest sequence; returns all slots up to their end."""
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
        """(width, first token) of the mask of a pass."""
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
    length: int | None = None  # tokens taken over; `None`: not yet


class SlotCache(Cache):
    """
    Transformers' cache after prefill, as slots.

    Args:
        cache: The cache that holds the prompt. Its tensors are taken over; `give_back` restores it.
        num_sequences: B.
        length: Tokens it holds.
        room: Most nodes of a pass, root included.
        limit: Tokens that a call can reach; storage never grows past it plus `room`.
    """

    def __init__(self, cache: Cache, num_sequences: int, length: int, room: int, limit: int):
        self.source, self.room, self.limit = cache, room, limit
        self.num_sequences = self.num_active = num_sequences
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
        batch, heads, used, width = like.shape
        shape = (len(group.entries), batch, heads, max(self._capacity(group.span), used + self.room), width)
        group.storage = _new_storage(like, shape)
        group.storage[:, :, :, used:] = 0  # unused slots are masked, and NaN times zero is NaN
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
        Make room for `num_nodes` nodes at slot `write`.

        Args:
            write: Tokens cached of the longest active sequence.
            shortest: Tokens cached of the shortest sequence that is kept; its window must stay.
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
        """Drop tokens before `start` when storage would overflow, so that sliding layers do not grow."""
        groups = [group for group in self.groups if group.span is span]
        if start == span.start or all(span.offset + num_nodes <= g.storage.shape[3] for g in groups):
            return
        shift = start - span.start
        for group in groups:  # to the end: sequences that are not active may be longer than those that are
            group.storage[:, :, :, :-shift] = group.storage[:, :, :, shift:].clone()
        span.start = start

    def keep(self, write: int, lengths: torch.Tensor, nodes: torch.Tensor) -> None:
        """
        Commit: move each sequence's accepted nodes down to its own slots.

        Args:
            write: Where the pass wrote.
            lengths: Tokens cached of each sequence, where the first node of its path (the root) goes, (A,).
            nodes: Node of each path place, (A, T + 1); places past a path move slots that stay masked.
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
            index = torch.arange(nodes.shape[0], device=source.device)[:, None]
            src = (write - group.span.start + nodes).to(source.device)
            dst = (lengths[:, None] + steps - group.span.start).to(source.device)
            source[:, index, :, dst] = source[:, index, :, src]

    def clear_behind(self, lengths: list[int]) -> None:
        """Zero the slots behind each active sequence's cached tokens, so many."""
        for group in self.groups:
            for place, length in enumerate(lengths):
                group.storage[:, place, :, length - group.span.start :] = 0

    def select(self, order: list[int], drop: bool) -> None:
        """
        Make the sequences `order` of the storage the active ones.

        Args:
            drop: Forget the others; else they stay in storage, behind, in ascending order.
        """
        self.num_active = len(order)
        others = [] if drop else [place for place in range(self.num_sequences) if place not in order]
        for group in self.groups:
            group.storage = kept_entries(group.storage, order + others, dim=1)
            self._view(group)

    def give_back(self, length: int, order: list[int] | None) -> None:
        """
        Restore the cache as an ordinary one of `length` tokens.

        Args:
            order: Original number of each sequence of the storage; `None` if some were dropped, which leaves the cache
                empty.
        """
        for group in self.groups:
            if order is not None:
                back = torch.tensor(_inverse(order), device=group.storage.device)
                for place, (index, name) in enumerate(group.entries):
                    caches.put_part(self.source.layers[index], name, self._ordinary(group, place, length, back))
            group.storage = None
        for index, layer in enumerate(self.layers):
            if not isinstance(layer, SlotLayer):
                continue
            layer.keys = layer.values = layer.indexer_keys = None
            if order is None:
                caches.make_empty(self.source.layers[index])
            else:
                caches.set_length(self.source.layers[index], length)

    def _ordinary(self, group: _Group, place: int, length: int, order: torch.Tensor) -> torch.Tensor:
        """(B, h, tokens, d) as plain generate leaves it: all tokens, or a sliding layer's last window - 1."""
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
    """`part[order]` in its own memory, with one more sequence at a time."""
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
    for place, number in enumerate(order):
        out[number] = place
    return out
