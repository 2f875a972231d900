"""Growing a draft tree: EAGLE-2's dynamic tree over the draft's cumulative scores, or a chain.

Per cycle one pass over the tokens committed last (with true features) that also yields level 1, then one pass per
further level. Everything stays on the draft's device: no host synchronisation. Does not know the target's cache, the
walk, or which rows are finished.

    features of "the cat" + tokens "cat sat"  -->  level 1: on, down, .   -->  level 2: on the, on a, down on, ...

Shape letters: A active rows, m new entries, k children and nodes per level, D draft vocabulary, H hidden, F features.
"""

from dataclasses import dataclass, replace
from itertools import groupby

import torch
import torch.nn.functional as F
from transformers.utils import logging

from ...configuration_eagle3 import Eagle3Config
from ...draft_layers import at_places
from ...modeling_eagle3 import Eagle3DraftModel
from ...target.target import Target
from ...tree_config import TreeConfig
from ..auto.planner import AutoPlanner
from ..ops.grouped_attention import grouped_attention
from ..ops.transfer import on_device
from ..sampling.noise import StepNoise
from ..stats import SpeculationStats
from ..tree import draft_tree as trees
from ..tree.pool import Pool
from ..verify.slots import additive
from .kv import DraftCache, DraftState
from .ranking import Warp, rank_children, truncated


logger = logging.get_logger(__name__)

# Elements of the largest tensor while reading a long prompt.
MOST_ELEMENTS = 2**23


@dataclass
class Entries:
    """
    Entries to be made from true features, m per active row.

    Args:
        tokens: Token of the *next* column of each entry, (A, m); or `embeds`, its embedding rows (A, m, H).
        features: (A, m, F).
        columns, positions: Column in the cache and RoPE position of each entry, (A, m).
        counts: How many of each row's entries count; those after are padding.
        last_column: The largest of `columns` (known without asking the device).
        valid: (A, m), False at entries that must never be attended to, for padding on the left.
    """

    tokens: torch.Tensor | None
    features: torch.Tensor
    columns: torch.Tensor
    positions: torch.Tensor
    counts: list[int]
    last_column: int
    valid: torch.Tensor | None = None
    embeds: torch.Tensor | None = None

    @property
    def is_even(self) -> bool:
        """Whether every row has all m of them."""
        return self.valid is None and self.embeds is None and min(self.counts) == self.features.shape[1]

    def select_rows(self, kept: list[int]) -> "Entries":
        """Those of the rows at the places `kept`."""
        names = ("tokens", "features", "columns", "positions", "valid", "embeds")
        held = {name: value for name in names if (value := getattr(self, name)) is not None}
        picked = {name: value[on_device(kept, value.device)] for name, value in held.items()}
        return replace(self, counts=[self.counts[place] for place in kept], **picked)


def joined(pending: list[Entries]) -> list[Entries]:
    """Neighbours in one where all rows have equally many entries, as after plain steps: one pass for all of them."""
    out: list[Entries] = []
    for is_even, group in groupby(pending, key=lambda entries: entries.is_even):
        parts = list(group)
        if not is_even or len(parts) == 1:
            out += parts
            continue
        whole = {
            name: torch.cat([getattr(part, name) for part in parts], dim=1)
            for name in ("tokens", "features", "columns", "positions")
        }
        counts = [sum(column) for column in zip(*(part.counts for part in parts), strict=True)]
        out.append(Entries(**whole, counts=counts, last_column=parts[-1].last_column))
    return out


def entry_masks(
    config: Eagle3Config, valid: torch.Tensor, columns: torch.Tensor, places: torch.Tensor, dtype: torch.dtype
) -> list[torch.Tensor]:
    """
    Per layer of the draft what entries at `columns` (A, m) see of the entries `valid` (A, S), themselves included,
    additive, (A, 1, m, S); in the last layer only those at `places` (A, n) look, (A, 1, n, S).
    """
    index, window = torch.arange(valid.shape[1], device=valid.device), config.sliding_window

    def seen_by(columns: torch.Tensor) -> torch.Tensor:
        newest = columns[:, :, None]
        seen = valid[:, None] & (index <= newest)
        if window is not None:
            seen = seen & (index > newest - window)
        return additive(seen, dtype)[:, None]

    others = config.num_hidden_layers - 1
    return ([seen_by(columns)] * others if others else []) + [seen_by(columns.gather(1, places))]


def prefix_mask(valid: torch.Tensor, window: int | None, level: int, dtype: torch.dtype) -> torch.Tensor:
    """What a query `level` positions below the newest entry of `valid` (A, S) sees of them, additive, (A, 1, 1, S)."""
    if window is not None:
        index = torch.arange(valid.shape[1], device=valid.device)
        newest = (index * valid).amax(dim=1, keepdim=True)
        valid = valid & (index > newest + level - window)
    return additive(valid, dtype)[:, None, None]


class Drafter:
    """
    The draft model within one generation call.

    Args:
        draft: The draft.
        target: Where embedding rows come from.
        num_rows: Rows of the batch.
        stats: Phases are timed there.
        noise: Steps' noise, for ranking under shared noise; `None` ranks by log q.
        warp: See [`Warp`].
    """

    def __init__(
        self,
        draft: Eagle3DraftModel,
        target: Target,
        num_rows: int,
        stats: SpeculationStats,
        noise: StepNoise | None = None,
        warp: Warp | None = None,
    ):
        self.draft, self.target, self.stats, self.noise, self.warp = draft, target, stats, noise, warp
        self.config = draft.config
        weight = draft.fc.weight
        self.device = weight.device
        self.dtype = weight.dtype if weight.is_floating_point() else draft.norm.weight.dtype
        self.cache = DraftCache(self.config, num_rows, self.dtype, self.device)
        self.window = self.config.sliding_window
        self.target_ids = draft.target_token_ids
        self._embedding = draft.embed_tokens.weight if self._uses_own_embedding() else None
        self._head = (
            None if draft.lm_head is not None else target.head_rows(self.target_ids).to(self.device, self.dtype)
        )
        self._hidden = self._normed = None  # (A, 1, H) of each row's newest entry
        self._width = 0  # columns that hold entries

    def _uses_own_embedding(self) -> bool:
        """Whether rows come from the checkpoint. Published drafts exist whose stored embedding is random."""
        own = self.draft.embed_tokens
        if own is None:
            return False
        if self.config.embed_trained or self.config.hidden_size != self.config.target_hidden_size:
            return True
        some = torch.arange(0, self.config.vocab_size, max(1, self.config.vocab_size // 64))
        rows = self.target.embedding_rows(some).float().cpu()
        if (own.weight[some.to(own.weight.device)].float().cpu() - rows).abs().max() > 1e-2 * rows.abs().max():
            logger.warning_once(
                "The draft's stored `embed_tokens` differs from the target's embedding; the target's is used. If the "
                "draft was trained with its own, load it with `embed_trained=True`."
            )
        return False

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        if self._embedding is not None:
            return F.embedding(tokens.to(self.device), self._embedding)
        return self.target.embedding_rows(tokens).to(self.device, self.dtype)

    def _logits(self, normed: torch.Tensor) -> torch.Tensor:
        return self.draft.lm_head(normed) if self._head is None else F.linear(normed, self._head)

    def absorb(self, entries: Entries) -> None:
        """
        Feed entries made from true features; the newest of each row is where the next tree hangs. Of the others only
        keys and values are made in the last layer, which a draft mostly has alone.
        """
        e, counts, valid = entries, entries.counts, entries.valid
        rows, length = e.features.shape[:2]
        width = e.last_column + 1
        self.cache.reserve(width)
        newest = on_device(counts, self.device).sub(1)[:, None]
        if valid is None and min(counts) < length:
            valid = torch.arange(length, device=self.device) <= newest
        widest = width if self.config.num_hidden_layers > 1 else 2 * self.config.hidden_size
        chunk = max(64, MOST_ELEMENTS // (widest * rows))
        for start in range(0, length, chunk):
            part = slice(start, start + chunk)
            embeds = self._embed(e.tokens[:, part]) if e.embeds is None else e.embeds[:, part]
            states = self._absorb_chunk(
                embeds.to(self.device, self.dtype),
                e.features[:, part].to(self.device, self.dtype),
                e.columns[:, part].to(self.device),
                e.positions[:, part].to(self.device),
                None if valid is None else valid[:, part].to(self.device),
                width,
                newest - start,
            )
            if start:  # rows whose newest entry stood before this chunk have their states
                is_here = (newest >= start)[:, :, None]
                states = [
                    new.where(is_here, old) for new, old in zip(states, (self._hidden, self._normed), strict=True)
                ]
            self._hidden, self._normed = states
        self._width = max(self._width, width)

    def _absorb_chunk(self, embeds, features, columns, positions, valid, width, newest):
        """(fed-back states, normed states), (A, 1, H), at the places `newest` (A, 1) or the nearest that there is."""
        rows = torch.arange(columns.shape[0], device=self.device)[:, None]
        self.cache.valid[rows, columns] = True if valid is None else valid
        newest = newest.clamp(0, columns.shape[1] - 1)
        masks = entry_masks(self.config, self.cache.valid[: len(rows), :width], columns, newest, self.dtype)

        def attend(query, key, value, layer):
            self.cache.write_entries(layer, rows, columns, key, value)
            keys, values = (
                self.cache.keys[layer][: len(rows), :, :width],
                self.cache.values[layer][: len(rows), :, :width],
            )
            return grouped_attention(query, keys, values, masks[layer])

        rotary = self.draft.rotary(positions, self.dtype)
        places = newest if columns.shape[1] > 1 else None
        return self.draft.decode(embeds, self.draft.fuse(features), rotary, attend, places)

    def grow(
        self,
        root_tokens: torch.Tensor,
        positions: torch.Tensor,
        tree: TreeConfig,
        steps: list[int],
        rows: list[int],
        planner: AutoPlanner | None = None,
    ) -> trees.DraftTree:
        """
        A tree below each row's newest entry.

        Args:
            root_tokens: The last committed tokens, (A,).
            positions: RoPE position of the newest entry, (A,). Level d lies d further.
            tree: Sizes, the largest allowed with a planner.
            steps: The step that level 1's tokens belong to, per row; for shared noise.
            rows: Original row numbers; for shared noise.
            planner: Chooses depth, width and number of nodes as it goes.
        """
        if self.window is not None:  # no node is so deep that it would not see all its ancestors
            tree = tree.shallower(self.window + 1)
        top_k, depth, active = tree.tree_top_k, tree.tree_depth, root_tokens.shape[0]
        root_tokens = root_tokens.to(self.device)
        base = self._width
        self.cache.reserve(base + depth * top_k)
        with self.stats.phase("draft_forward"):
            if depth > 1:
                offsets = torch.arange(1, depth, device=self.device)
                cos, sin = self.draft.rotary(positions.to(self.device)[:, None] + offsets, self.dtype)
            prefix = self._prefix_mask(active, 1)
            logits = self._logits(self._normed)
        with self.stats.phase("tree"):
            pool = Pool(active, top_k, self.dtype, self.device, planner)
            pool.start(*self._ranked(logits, top_k, steps, rows, 0))
            hidden = self._hidden.expand(-1, top_k, -1)
        for level in range(1, depth):
            width = top_k if planner is None else planner.width(level, pool.frontier_scores)
            if width == 0:
                break
            with self.stats.phase("draft_forward"):
                if self.window is not None and level > 1:
                    prefix = self._prefix_mask(active, level)
                start = base + pool.columns
                mask = torch.cat((prefix.expand(-1, -1, width, -1), pool.expand(width)), dim=-1)
                rotary = cos[:, :, level - 1 : level], sin[:, :, level - 1 : level]
                hidden, logits = self._run_level(pool.frontier_tokens, hidden[:, :width], rotary, start, mask)
            with self.stats.phase("tree"):
                parents = pool.extend(*self._ranked(logits, top_k, steps, rows, level))
                if top_k > 1:
                    hidden = at_places(hidden, parents)
        with self.stats.phase("tree"):
            return pool.finish(root_tokens, tree.num_draft_tokens)

    def _run_level(self, tokens, hidden, rotary, start: int, mask) -> tuple[torch.Tensor, torch.Tensor]:
        """(fed-back states, logits) of nodes (A, k) below states (A, k, H); their keys go to columns `start` on."""

        def attend(query, key, value, layer):
            return grouped_attention(query, *self.cache.write_nodes(layer, start, key, value), mask)

        hidden, normed = self.draft.decode(self._embed(tokens), hidden, rotary, attend)
        return hidden, self._logits(normed)

    def _prefix_mask(self, active: int, level: int) -> torch.Tensor:
        """What a query `level` positions below each row's newest entry sees of the entries, additive, (A, 1, 1, S)."""
        return prefix_mask(self.cache.valid[:active, : self._width], self.window, level, self.dtype)

    def draw_chain(self, position: int, length: int, do_sample: bool, warp: Warp) -> tuple[torch.Tensor, torch.Tensor]:
        """
        One row's chain below the newest entry at RoPE `position`, drawn from the draft's warped distribution or
        greedy.

        Returns:
            Tokens (1, length) and scores over the target's vocabulary (1, length, V), -inf outside the draft's.
        """
        hidden, normed, base = self._hidden, self._normed, self._width
        self.cache.reserve(base + length)
        tokens, scores = [], []
        for level in range(length):
            logits = self._logits(normed)[:, 0].float() / warp.temperature
            logits = self._spread(truncated(logits, warp) if do_sample else logits)
            probabilities = logits.softmax(dim=-1)
            token = torch.multinomial(probabilities, 1) if do_sample else logits.argmax(dim=-1, keepdim=True)
            tokens.append(token)
            scores.append(logits)
            if level + 1 == length:
                break

            def attend(query, key, value, layer, start=base + level):
                keys, values = self.cache.write_nodes(layer, start, key, value)
                if self.window is not None:
                    keys, values = (x[:, :, -self.window :] for x in (keys, values))
                return grouped_attention(query, keys, values, None)

            here = torch.tensor([[position + level + 1]], device=self.device)
            hidden, normed = self.draft.decode(self._embed(token), hidden, self.draft.rotary(here, self.dtype), attend)
        return torch.cat(tokens, dim=1), torch.stack(scores, dim=1)

    def _spread(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores over the draft vocabulary (1, D) placed in the target's (1, V)."""
        if self.target_ids is None:
            return logits
        out = logits.new_full((1, self.config.vocab_size), -torch.inf)
        out[:, self.target_ids] = logits
        return out

    def _ranked(self, logits, top_k, steps, rows, level):
        gumbel = None
        if self.noise is not None:
            gumbel = self.noise.gumbel_at([step + level for step in steps], rows).to(self.device)
        scores, ids = rank_children(logits, top_k, gumbel, self.warp)
        return scores, ids if self.target_ids is None else self.target_ids[ids]

    @property
    def filled(self) -> int:
        """Columns up to the last that holds an entry."""
        return self._width

    @property
    def reads_plain_embeddings(self) -> bool:
        """Whether a prompt given as embeddings can stand for the rows the draft reads."""
        is_plain = type(self.target.model.get_input_embeddings()) is torch.nn.Embedding
        return is_plain and self._embedding is None

    def restore(self, state: DraftState) -> None:
        """Take over an earlier call's entries."""
        self.cache.restore(state)
        self._width = state.valid.shape[1]

    def select_rows(self, order: list[int]) -> None:
        """Keep the active rows at `order`."""
        self.cache.select_rows(order)
        index = on_device(order, self.device)
        if self._hidden is not None:
            self._hidden, self._normed = self._hidden[index], self._normed[index]
