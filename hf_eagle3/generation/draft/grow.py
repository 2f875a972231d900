"""Growing a draft tree with the EAGLE-3 draft: one algorithm, eager on shapes that grow or compiled on fixed ones.

    features of "the cat" + tokens "cat sat"  -->  level 1: on, down, .   -->  level 2: on the, on a, down on, ...

Pure functions of the draft, its keys and values, a policy and the steps' noise; nothing waits for the device unless
the policy does. Which kind of cache is handed in decides about shapes.

Shape letters: A sequences, m new entries, k nodes of a level, T levels, S slots, H hidden, F features, D draft
vocabulary.

Source: EAGLE-2's dynamic tree (arXiv 2406.16858, section 4), with EAGLE-3's feedback (arXiv 2503.01840, section 3).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...draft_layers import Rotary, at_places
from ...modeling_eagle3 import Eagle3DraftModel
from ..ops.grouped_attention import grouped_attention
from ..ops.transfer import additive
from ..tree.draft_tree import DraftTree
from ..tree.policy import TreePolicy
from ..tree.pool import Pool
from .kv import DraftCache
from .ranking import Warp, rank_children


@dataclass
class Vocabulary:
    """
    What turns tokens into inputs of the draft's layers, and their outputs into tokens.

    Attributes:
        embedding: Embedding rows of the target's vocabulary, (V, H), on any device.
        head: Rows of the draft vocabulary where the draft has no head of its own, (D, H).
        target_ids: Target id of every draft id, (D,); `None`: the same.
    """

    embedding: torch.Tensor
    head: torch.Tensor | None
    target_ids: torch.Tensor | None

    def embed(self, tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Rows of `tokens` (...,) as inputs, (..., H)."""
        return F.embedding(tokens.to(self.embedding.device), self.embedding).to(like)

    def logits(self, draft: Eagle3DraftModel, normed: torch.Tensor) -> torch.Tensor:
        """(..., D) of the draft's states (..., H) after its final norm."""
        return draft.lm_head(normed) if self.head is None else F.linear(normed, self.head)


def entry_masks(
    cache: DraftCache, valid: torch.Tensor, slots: torch.Tensor, places: torch.Tensor, dtype: torch.dtype
) -> list[torch.Tensor]:
    """
    Per layer of the draft what entries at `slots` (A, m) see of the entries `valid` (A, S), themselves included,
    additive, (A, 1, m, S); in the last layer only those at `places` (A, n) look, (A, 1, n, S).
    """
    others = len(cache.keys) - 1
    of_all = [additive(cache.seen(valid, slots), dtype)[:, None]] * others if others else []
    return [*of_all, additive(cache.seen(valid, slots.gather(1, places)), dtype)[:, None]]


def entry_pass(
    draft: Eagle3DraftModel,
    cache: DraftCache,
    embeds: torch.Tensor,
    features: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    valid: torch.Tensor,
    newest: torch.Tensor,
    width: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Make entries from true features: (fed-back state, normed state), (A, 1, H), of those at the places `newest` (A, 1).
    Of the others only keys and values are made in the last layer, which a draft mostly has alone.

    Args:
        embeds: (A, m, H). features: (A, m, F). slots, positions: (A, m).
        valid: Which entries may be attended to, (A, m) or ().
        width: Slots that are looked at; `None`: all there are.
    """
    index = cache.index(slots.shape[0])
    cache.valid[index, slots] = valid
    masks = entry_masks(cache, cache.valid[: len(index), :width], slots, newest, embeds.dtype)

    def attend(query, key, value, layer):
        keys, values = cache.write_entries(layer, index, slots, key, value)
        return grouped_attention(query, keys[:, :, :width], values[:, :, :width], masks[layer])

    places = newest if slots.shape[1] > 1 else None
    return draft.decode(embeds, draft.fuse(features), draft.rotary(positions, embeds.dtype), attend, places)


def level_pass(
    draft: Eagle3DraftModel,
    cache: DraftCache,
    vocabulary: Vocabulary,
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    rotary: Rotary,
    slots: slice | torch.Tensor,
    mask: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(fed-back states (A, k, H), logits (A, k, D)) of nodes `tokens` (A, k) below the states `hidden` (A, k, H)."""

    def attend(query, key, value, layer):
        return grouped_attention(query, *cache.write_nodes(layer, slots, key, value), mask)

    hidden, normed = draft.decode(vocabulary.embed(tokens, hidden), hidden, rotary, attend)
    return hidden, vocabulary.logits(draft, normed)


def grow(
    draft: Eagle3DraftModel,
    cache: DraftCache,
    vocabulary: Vocabulary,
    hidden: torch.Tensor,
    logits: torch.Tensor,
    roots: torch.Tensor,
    positions: torch.Tensor,
    sizes: tuple[int, int],
    policy: TreePolicy,
    gumbel: Callable[[int], torch.Tensor] | None,
    warp: Warp | None,
    run_level: Callable = level_pass,
) -> DraftTree:
    """
    A tree below each sequence's newest entry.

    Args:
        hidden, logits: Fed-back state (A, 1, H) and logits (A, 1, D) of the newest entries, from which level 1 comes.
        roots: The last committed tokens, (A,).
        positions: RoPE positions of the newest entries, (A,). Level d lies d behind.
        sizes: Levels and children per node, at most.
        policy: Decides how many of them, and how many nodes are kept.
        gumbel: Under shared noise, level - 1 -> that step's noise, (A, D).
        warp: The request's, under shared noise.
        run_level: `level_pass`, perhaps compiled or timed.
    """
    depth, top_k = sizes
    dtype, prefix = hidden.dtype, None
    moves = cache.window is not None and cache.window.is_trained
    if depth > 1:
        behind = torch.arange(1, depth, device=hidden.device)
        cos, sin = draft.rotary(positions[:, None] + behind, dtype)

    def ranked(logits: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        scores, ids = rank_children(logits, top_k, None if gumbel is None else gumbel(level), warp)
        return scores, ids if vocabulary.target_ids is None else vocabulary.target_ids[ids]

    pool = Pool(roots.shape[0], top_k, dtype, hidden.device, policy)
    pool.start(*ranked(logits, 0))
    hidden = hidden.expand(-1, top_k, -1)  # all of level 1 hang below the same entry
    for level in range(1, depth):
        width = policy.width(level, pool.frontier_scores)
        if width == 0:
            break
        if prefix is None or moves:
            prefix = additive(cache.seen_below(roots.shape[0], level), dtype)[:, None, None]
        above = pool.expand(width)
        hidden, logits = run_level(
            draft,
            cache,
            vocabulary,
            pool.frontier_tokens,
            hidden[:, :width],
            (cos[:, :, level - 1 : level], sin[:, :, level - 1 : level]),
            cache.node_slots(pool.columns - width, width),
            cache.node_mask(prefix, above),
        )
        parents = pool.extend(*ranked(logits, level))
        if top_k > 1:
            hidden = at_places(hidden, parents)
    return pool.finish(roots)
