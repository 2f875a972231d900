"""Drafting over static shapes: in passes of one shape each, compiled as the target's pass is.

One pass absorbs up to P entries per row and is filled up to P; one grows a whole tree, ranking and all. Where a
planner looks at every level, a pass of one level stands in for it. They read all columns under a mask, and every row
of the batch runs, also those that ended. The prompt is absorbed as ever. Does not know why a pass is compiled.

Shape letters: B rows, A active rows, P places of a path, k nodes per level, T levels, S columns, H hidden, F features,
D draft vocabulary, N drafted nodes.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ...configuration_eagle3 import Eagle3Config
from ...draft_layers import Rotary, at_places
from ...modeling_eagle3 import Eagle3DraftModel
from ...tree_config import TreeConfig
from ..draft.drafter import Drafter, Entries, entry_masks, prefix_mask
from ..draft.kv import DraftCache
from ..draft.ranking import Warp, rank_children
from ..ops.grouped_attention import grouped_attention
from ..ops.transfer import on_device
from ..settings import Settings
from ..tree.draft_tree import DraftTree
from ..tree.pool import Pool
from .slots import Shelf, fixed, rounded
from .target_pass import KEPT_SLOTS, StaticShapes


KEPT_COLUMNS = Shelf()  # by a module that all views of a draft share


def forget_storage() -> None:
    """Free the keys and values that compiled calls left with their models."""
    KEPT_SLOTS.clear()
    KEPT_COLUMNS.clear()


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
        self.start = fixed(torch.zeros((), dtype=torch.long, device=device))  # column of the first node
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
    places = last[:, None]
    masks = entry_masks(draft.config, cache.valid, columns, places, embeds.dtype)

    def attend(query, key, value, layer):
        cache.write_entries(layer, cache.rows, columns, key, value)
        return grouped_attention(query, cache.keys[layer], cache.values[layer], masks[layer])

    return draft.decode(embeds, draft.fuse(features), draft.rotary(positions, embeds.dtype), attend, places)


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


@dataclass
class Weights:
    """
    What a tree is grown with beside the draft's layers.

    Attributes:
        embedding: Rows of the target's vocabulary, (V, H).
        head: Rows of the draft vocabulary where the draft has no head of its own, (D, H).
        target_ids: Target id of every draft id, (D,); `None`: the same.
    """

    embedding: torch.Tensor
    head: torch.Tensor | None
    target_ids: torch.Tensor | None


def tree_pass(
    draft: Eagle3DraftModel,
    cache: StaticDraftCache,
    weights: Weights,
    sizes: TreeConfig,
    states: tuple[torch.Tensor, torch.Tensor],
    roots: torch.Tensor,
    positions: torch.Tensor,
    gumbel: torch.Tensor | None,
    warp: Warp | None,
) -> tuple[torch.Tensor, ...]:
    """
    What `Drafter.grow` does without a planner: tokens, parents, depths, ancestors and scores of a [`DraftTree`].

    Args:
        states: Fed-back and normed state of each row's newest entry, (B, 1, H).
        roots, positions: As in `Drafter.grow`, (B,).
        gumbel: Noise of the T coming steps, (T, B, D); `None` without shared noise.
        warp: The request's, its numbers as tensors.
    """
    top_k, depth, window = sizes.tree_top_k, sizes.tree_depth, draft.config.sliding_window
    hidden, normed = states
    dtype, device = hidden.dtype, hidden.device
    offsets = torch.arange(1, depth + 1, device=device)
    cos, sin = draft.rotary(positions[:, None] + offsets, dtype)

    def ranked(normed: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        logits = draft.lm_head(normed) if weights.head is None else F.linear(normed, weights.head)
        if gumbel is not None:
            logits = logits.float() / warp.temperature
        plain = None if warp is None else replace(warp, temperature=1.0)
        scores, ids = rank_children(logits, top_k, None if gumbel is None else gumbel[level], plain)
        return scores, ids if weights.target_ids is None else weights.target_ids[ids]

    pool = Pool(roots.shape[0], top_k, dtype, device)
    pool.start(*ranked(normed, 0))
    hidden = hidden.expand(-1, top_k, -1)
    for level in range(1, depth):
        own = pool.expand(top_k)
        columns = cache.start + torch.arange(pool.columns, device=device)
        mask = prefix_mask(cache.valid, window, level, dtype).expand(-1, -1, top_k, -1).clone()
        mask[:, :, :, columns] = own
        hidden, normed = level_pass(
            draft,
            cache,
            F.embedding(pool.frontier_tokens, weights.embedding).to(dtype),
            hidden,
            (cos[:, :, level - 1 : level], sin[:, :, level - 1 : level]),
            columns[-top_k:],
            mask,
        )
        parents = pool.extend(*ranked(normed, level))
        if top_k > 1:
            hidden = at_places(hidden, parents)
    tree = pool.finish(roots, sizes.num_draft_tokens)
    return tree.tokens, tree.parents, tree.depths, tree.ancestors, tree.scores


class StaticDrafter(Drafter):
    """
    A [`Drafter`] whose passes have few shapes.

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
        self._tree_pass, self.sizes = shapes.compiled(tree_pass), sizes
        if self.window is not None:  # as in `grow`
            self.sizes = sizes.shallower(self.window + 1)
        self._weights = self._fixed_weights()
        if self.warp is not None:  # numbers would be compiled in
            numbers = {"temperature": self.warp.temperature, "top_p": self.warp.top_p}
            given = {name: torch.tensor(value) for name, value in numbers.items() if value is not None}
            self._warp = replace(self.warp, **{name: value.to(self.device) for name, value in given.items()})

    def _fixed_weights(self) -> Weights | None:
        """`None` where the embedding stands on another device than the draft."""
        embedding = self.target.embedding_weight if self._embedding is None else self._embedding
        if embedding.device != self.device:
            return None
        # Detached, so that what is marked is ours, not the target's parameter. The others are made anew for every
        # call: a graph copies them in, where for another address it would be recorded again.
        return Weights(fixed(embedding.detach()), self._head, self.target_ids)

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

        tokens = F.pad(entries.tokens, (0, missing))
        self.shapes.new_cycle()
        states = self._entry_pass(
            self.draft,
            self.cache,
            self._embed(tokens),
            F.pad(entries.features.to(self.device, self.dtype), (0, 0, 0, missing)),
            filled(entries.columns),
            filled(entries.positions),
            places < counts[:, None],
            counts - 1,
        )
        self._hidden, self._normed = states
        self._width = max(self._width, entries.last_column + 1)

    def grow(self, root_tokens, positions, tree, steps, rows, planner=None) -> DraftTree:
        """As `Drafter.grow`; without a planner always with all levels, whatever `tree` says."""
        if planner is not None or self._weights is None:
            return super().grow(root_tokens, positions, tree, steps, rows, planner)
        depth = self.sizes.tree_depth
        with self.stats.phase("draft_forward"):
            self.cache.start.fill_(self._width)
            gumbel = None
            if self.noise is not None:
                levels = [self.noise.gumbel_at([step + level for step in steps], rows) for level in range(depth)]
                gumbel = torch.stack([self._everybody(level.to(self.device)) for level in levels])
            parts = self._tree_pass(
                self.draft,
                self.cache,
                self._weights,
                self.sizes,
                (self._everybody(self._hidden), self._everybody(self._normed)),
                self._everybody(root_tokens.to(self.device)),
                self._everybody(positions.to(self.device)),
                gumbel,
                None if gumbel is None else self._warp,
            )
            # The walk needs them after the target's pass, when a CUDA graph's memory may be another's.
            return DraftTree(*(self._active(part).clone() for part in parts), depth)

    def _run_level(self, tokens, hidden, rotary, start: int, mask) -> tuple[torch.Tensor, torch.Tensor]:
        least, width = torch.finfo(self.dtype).min, self.cache.valid.shape[1]
        mask = F.pad(mask, (0, width - mask.shape[3]), value=least)
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
