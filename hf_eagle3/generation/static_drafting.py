"""Drafting over static shapes: entries and levels in passes of one shape each, compiled as the target's pass is.

One pass absorbs up to P entries per row and is filled up to P; one expands k nodes. Both read all columns under a
mask, and every row of the batch runs, also those that ended. The prompt is absorbed as ever. Does not know how nodes
are ranked, nor why a pass is compiled.

Shape letters: B rows, A active rows, P places of a path, k nodes per level, S columns, H hidden, F features.
"""

import torch

from ..configuration_eagle3 import Eagle3Config
from ..modeling_eagle3 import Eagle3DraftModel, Rotary, grouped_attention
from .cache import additive
from .draft_cache import DraftCache
from .drafting import Drafter, Entries
from .settings import Settings
from .static_cache import Shelf, fixed, rounded
from .static_pass import StaticShapes
from .transfer import on_device


KEPT_COLUMNS = Shelf()  # by a module that all views of a draft share


class StaticDraftCache(DraftCache):
    """A draft cache whose columns are all there from the start, at addresses that stay."""

    def __init__(
        self, config: Eagle3Config, num_rows: int, dtype: torch.dtype, device: torch.device, num_columns: int
    ):
        super().__init__(config, num_rows, dtype, device)
        self.kind = (num_rows, dtype, device)
        super().reserve(num_columns)
        self.keys, self.values = [fixed(key) for key in self.keys], [fixed(value) for value in self.values]
        self.valid = fixed(self.valid)
        self.rows = fixed(torch.arange(num_rows, device=device)[:, None])
        self.columns = fixed(torch.arange(self.valid.shape[1], device=device))

    def reserve(self, columns: int) -> None:
        """
        Raises:
            RuntimeError: there are fewer columns.
        """
        if columns > self.valid.shape[1]:
            raise RuntimeError(f"{columns} columns were asked of a static draft cache of {self.valid.shape[1]}.")

    def clear(self) -> None:
        """Forget all entries."""
        for held in (*self.keys, *self.values, self.valid):
            held.zero_()


def entry_pass(
    draft: Eagle3DraftModel,
    cache: StaticDraftCache,
    embeds: torch.Tensor,
    features: torch.Tensor,
    columns: torch.Tensor,
    positions: torch.Tensor,
    valid: torch.Tensor,
    last: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Absorb entries: (fed-back state, normed state), (B, 1, H), of each row's entry at the place `last` (B,).

    Args: as in [`Entries`], all rows and P places.
    """
    cache.valid[cache.rows, columns] = valid
    window = draft.config.sliding_window
    newest = columns[:, :, None]
    seen = cache.valid[:, None] & (cache.columns <= newest)
    if window is not None:
        seen = seen & (cache.columns > newest - window)
    mask = additive(seen, embeds.dtype)[:, None]

    def attend(query, key, value, layer):
        cache.write_entries(layer, cache.rows, columns, key, value)
        return grouped_attention(query, cache.keys[layer], cache.values[layer], mask)

    states = draft.decode(embeds, draft.fuse(features), draft.rotary(positions, embeds.dtype), attend)
    hidden, normed = (state[cache.rows[:, 0], last][:, None] for state in states)
    return hidden, normed


def level_pass(
    draft: Eagle3DraftModel,
    cache: StaticDraftCache,
    embeds: torch.Tensor,
    hidden: torch.Tensor,
    rotary: Rotary,
    write: torch.Tensor,
    mask: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(fed-back states, normed states), (B, k, H), of nodes whose keys go to columns `write` (k,)."""

    def attend(query, key, value, layer):
        keys, values = cache.keys[layer], cache.values[layer]
        keys[:, :, write] = key
        values[:, :, write] = value
        return grouped_attention(query, keys, values, mask)

    return draft.decode(embeds, hidden, rotary, attend)


class StaticDrafter(Drafter):
    """
    A [`Drafter`] whose passes have two shapes.

    Args:
        shapes: Of the call.
        settings: The call's.
        columns: Most columns that entries can reach.
        given: As for [`Drafter`].
    """

    def __init__(self, shapes: StaticShapes, settings: Settings, columns: int, *given):
        super().__init__(*given)
        sizes, self.shapes = settings.sizes, shapes
        num_rows = self.cache.valid.shape[0]
        self.num_places = sizes.tree_depth + 1
        # Behind the entries stand padding, then the nodes that were expanded.
        needed = rounded(columns + max(self.num_places, sizes.tree_depth * sizes.tree_top_k))
        kept = KEPT_COLUMNS.take(self.draft.midlayer) if shapes.compiles else None
        kind = (num_rows, self.dtype, self.device)
        if kept is not None and kept.kind == kind and kept.valid.shape[1] >= needed:
            kept.clear()
            self.cache = kept
        else:
            self.cache = StaticDraftCache(self.config, *kind, needed)
        self.rows = list(range(num_rows))  # original rows of the active ones
        self.stand_ins: torch.Tensor | None = None  # place among the active rows that runs in each row's place, (B,)
        self._entry_pass, self._level_pass = shapes.compiled(entry_pass), shapes.compiled(level_pass)

    def select_rows(self, order: list[int]) -> None:
        """Only the active rows at `order` go on; the others' places stay."""
        self.rows = [self.rows[place] for place in order]
        self._order = [self.rows.index(row) if row in self.rows else 0 for row in range(self.cache.valid.shape[0])]
        self.stand_ins = on_device(self._order, self.device)
        self._index = on_device(self.rows, self.device)
        self._hidden = self._normed = None  # of this cycle, perhaps in a CUDA graph's memory; the next absorbs first

    def _everybody(self, tensor: torch.Tensor) -> torch.Tensor:
        """(B, ...) from (A, ...), a copy: strides of a view would be compiled in."""
        whole = tensor if self.stand_ins is None else tensor[self.stand_ins]
        return whole.clone(memory_format=torch.contiguous_format)

    def _active(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.stand_ins is None else tensor[self._index]

    def absorb(self, entries: Entries) -> None:
        """As `Drafter.absorb`."""
        length = entries.features.shape[1]
        if self.stand_ins is not None:
            entries = entries.select_rows(self._order)
        if length > self.num_places or entries.embeds is not None or entries.valid is not None:
            super().absorb(entries)  # the prompt, or what many plain steps left
        else:
            self._absorb_few(entries, self.num_places - length)
        self._hidden, self._normed = self._active(self._hidden), self._active(self._normed)

    def _absorb_few(self, entries: Entries, missing: int) -> None:
        counts = on_device(entries.counts, self.device)
        places = self.cache.columns[: self.num_places]
        beyond = places[:missing] + 1

        def filled(numbers: torch.Tensor) -> torch.Tensor:  # rising, so that no column is written twice
            numbers = numbers.to(self.device)
            return torch.cat((numbers, numbers[:, -1:] + beyond), dim=1)

        pad = torch.nn.functional.pad
        tokens = pad(entries.tokens, (0, missing))
        self.shapes.new_cycle()
        states = self._entry_pass(
            self.draft,
            self.cache,
            self._embed(tokens),
            pad(entries.features.to(self.device, self.dtype), (0, 0, 0, missing)),
            filled(entries.columns),
            filled(entries.positions),
            places < counts[:, None],
            counts - 1,
        )
        self._hidden, self._normed = states
        self._width = max(self._width, entries.last_column + 1)

    def _run_level(self, tokens, hidden, rotary, start: int, mask) -> tuple[torch.Tensor, torch.Tensor]:
        least, width = torch.finfo(self.dtype).min, self.cache.valid.shape[1]
        mask = torch.nn.functional.pad(mask, (0, width - mask.shape[3]), value=least)
        hidden, normed = self._level_pass(
            self.draft,
            self.cache,
            self._embed(self._everybody(tokens)),
            self._everybody(hidden),
            tuple(self._everybody(part) for part in rotary),
            self.cache.columns[start : start + tokens.shape[1]].clone(),
            self._everybody(mask),
        )
        return self._active(hidden), self._logits(self._active(normed))

    def _prefix_mask(self, active: int, level: int) -> torch.Tensor:
        return self._active(super()._prefix_mask(self.cache.valid.shape[0], level))

    def close(self) -> None:
        """Leave the storage for the next call with this draft."""
        if self.shapes.compiles:
            KEPT_COLUMNS.put(self.draft.midlayer, self.cache)
