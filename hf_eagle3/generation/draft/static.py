"""The EAGLE-3 drafter over static shapes: passes of few shapes, compiled as the target's pass is.

Up to P entries per sequence are read in one pass, filled up to P; a whole tree is grown in another, or, where the
policy looks at every level, a level. They see all slots under a mask, and run every sequence of the batch: in the
places of sequences that ended the first active one runs again. The prompt is read eagerly. The algorithm is `grow.py`.

Shape letters: B sequences, A active ones, P places of a path, T levels, S slots, H hidden, D draft vocabulary.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from transformers import Cache

from ..batch import stand_ins
from ..compiled.shapes import KEPT_SLOTS
from ..ops.storage import Shelf, fixed, rounded
from ..ops.transfer import on_device
from ..settings import Settings
from ..tree.draft_tree import DraftTree
from ..tree.policy import Outlook, TreePolicy
from .eagle3 import Eagle3Drafter
from .grow import entry_pass, grow, level_pass
from .interface import DraftInputs, Roots
from .kv import StaticDraftCache


KEPT_CACHES = Shelf()  # by a module that all views of a draft share


def forget_storage() -> None:
    """Free the keys and values that compiled calls left with their models."""
    KEPT_SLOTS.clear()
    KEPT_CACHES.clear()


def tree_pass(draft, cache, vocabulary, hidden, normed, roots, positions, sizes, policy, gumbel, warp):
    """Tokens, parents, depths, ancestors and scores of what `grow` makes, with noise `gumbel` (T, B, D) or `None`."""
    noise = None if gumbel is None else lambda level: gumbel[level]
    logits = vocabulary.logits(draft, normed)
    tree = grow(draft, cache, vocabulary, hidden, logits, roots, positions, sizes, policy, noise, warp)
    return tree.tokens, tree.parents, tree.depths, tree.ancestors, tree.scores


class _ActiveOnly(TreePolicy):
    """`policy` for trees of the whole batch: it sees the active sequences, at the places `index`."""

    def __init__(self, policy: TreePolicy, index: torch.Tensor):
        super().__init__(policy.top_k)
        self.policy, self.index, self.is_adaptive = policy, index, policy.is_adaptive

    def begin(self, outlook: Outlook) -> int:
        return self.policy.begin(outlook)

    def chances(self, log_probs: torch.Tensor) -> torch.Tensor:
        return self.policy.chances(log_probs)

    def width(self, level: int, scores: torch.Tensor) -> int:
        return self.policy.width(level, scores[self.index])

    def num_nodes(self, scores: torch.Tensor, levels: int) -> int:
        return self.policy.num_nodes(scores[self.index], levels)


class StaticDrafter(Eagle3Drafter):
    """
    Args:
        settings: The call's.
        num_slots: Most slots that entries can reach.
        given: As for [`Eagle3Drafter`].
    """

    def __init__(self, settings: Settings, num_slots: int, *given):
        wanted = settings.sizes
        self.shapes, self.depth, self.num_places = settings.static, wanted.tree_depth, wanted.tree_depth + 1
        # Behind the entries stand padding, then the nodes that were expanded.
        self._most_entries, self._behind = num_slots, max(self.num_places, wanted.tree_depth * wanted.tree_top_k)
        super().__init__(*given)
        self.num_sequences = self.cache.valid.shape[0]
        self.sequences = list(range(self.num_sequences))  # original numbers of the active ones
        self._places: list[int] | None = None  # active place that runs in each sequence's place, (B,); `None`: its own
        self._index: torch.Tensor | None = None  # places of the active ones among all
        is_here = self.vocabulary.embedding.device == self.device  # else lookups cross devices, uncompiled
        compiled = self.shapes.compiled if is_here else lambda function: function
        self._entry_pass, self._level_pass, self._tree_pass = map(compiled, (entry_pass, level_pass, tree_pass))
        if is_here:  # detached, so that what is marked is ours, not the target's parameter
            self.vocabulary = replace(self.vocabulary, embedding=fixed(self.vocabulary.embedding))
        if self.warp is not None:  # numbers would be compiled in
            numbers = {"temperature": self.warp.temperature, "top_p": self.warp.top_p}
            tensors = {name: torch.tensor(value) for name, value in numbers.items() if value is not None}
            self.warp = replace(self.warp, **{name: value.to(self.device) for name, value in tensors.items()})

    def _new_cache(self, num_sequences: int) -> StaticDraftCache:
        kept = KEPT_CACHES.take(self.draft.midlayer) if self.shapes.compiles else None
        kind, most = (num_sequences, self.dtype, self.device, self.window), self._most_entries
        if num_sequences == 1 and self.window is not None:  # of several, one may run ahead by any number of tokens
            most = min(most, self.window.most_entries)
        columns = rounded(most + self._behind)
        if kept is not None and kept.kind == kind and kept.valid.shape[1] >= columns:
            kept.clear()
            return kept
        return StaticDraftCache(self.config, *kind, columns)

    def select(self, kept: list[int]) -> None:
        """As in [`Drafter`]; the places of the others stay."""
        self.sequences = [self.sequences[place] for place in kept]
        self._places = stand_ins(self.sequences, self.num_sequences)
        self._index = on_device(self.sequences, self.device)
        self.pending = [inputs.select(kept) for inputs in self.pending]
        if self.pending:  # read before the next tree; the states, of all sequences, may lie in a CUDA graph's memory
            self.hidden = self.normed = None

    def _expand_to_batch(self, roots: Roots) -> Roots:
        if self._places is None:
            return roots
        lists = (roots.positions, roots.steps, roots.sequences)
        tokens = roots.tokens[on_device(self._places, roots.tokens.device)]
        return Roots(tokens, *([each[place] for place in self._places] for each in lists))

    def read(self, inputs: DraftInputs) -> None:
        """As in [`Eagle3Drafter`]."""
        if self._places is not None:
            inputs = inputs.select(self._places)
        missing = self.num_places - inputs.features.shape[1]
        if missing < 0 or inputs.embeds is not None or inputs.valid is not None:
            super().read(inputs)  # the prompt, or what many plain steps left
            return
        self.cache.drop_before(inputs.first_slot)
        counts = on_device(inputs.counts, self.device)
        places = self.cache.columns[: self.num_places]

        def filled(numbers: torch.Tensor) -> torch.Tensor:  # rising, so that no slot is written twice
            numbers = numbers.to(self.device)
            return torch.cat((numbers, numbers[:, -1:] + places[:missing] + 1), dim=1)

        features = F.pad(inputs.features.to(self.device, self.dtype), (0, 0, 0, missing))
        self.shapes.new_cycle()
        self.hidden, self.normed = self._entry_pass(
            self.draft,
            self.cache,
            self.vocabulary.embed(F.pad(inputs.tokens, (0, missing)), features),
            features,
            filled(inputs.slots) - self.cache.dropped,
            filled(inputs.positions),
            places < counts[:, None],
            counts[:, None] - 1,
        )
        self.cache.filled = max(self.cache.filled, inputs.last_slot + 1 - self.cache.dropped)

    def _grown(self, roots: Roots, depth: int, policy: TreePolicy) -> DraftTree:
        roots = self._expand_to_batch(roots)
        if policy.is_adaptive:
            seen = policy if self._index is None else _ActiveOnly(policy, self._index)
            tree = super()._grown(roots, depth, seen, self._level)
            return tree if self._index is None else tree.select(self._index)
        sizes = self.sizes(self.depth, policy.top_k)  # always all levels, whatever is left to draft
        self.cache.begin_nodes(sizes[0] * sizes[1])
        noise = self._gumbel(roots)
        with self.timer.phase("draft_forward"):
            parts = self._tree_pass(
                self.draft,
                self.cache,
                self.vocabulary,
                _own(self.hidden),
                _own(self.normed),
                _own(roots.tokens.to(self.device)),
                on_device(roots.positions, self.device),
                sizes,
                policy,
                None if noise is None else torch.stack([noise(level) for level in range(sizes[0])]),
                self.warp,
            )
            # The walk needs them after the target's pass, when a CUDA graph's memory may be another's.
            parts = (part.clone() if self._index is None else part[self._index] for part in parts)
            return DraftTree(*parts, sizes[0])

    def _level(self, draft, cache, vocabulary, tokens, hidden, rotary, slots, mask):
        rotary = tuple(map(_own, rotary))
        return self._level_pass(draft, cache, vocabulary, _own(tokens), _own(hidden), rotary, slots, mask)

    def close(self, cache: Cache | None) -> None:
        """Leave the storage for the next call with this draft."""
        if self.shapes.compiles:
            KEPT_CACHES.put(self.draft.midlayer, self.cache)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy: strides of a view would be compiled in, and a CUDA graph's memory be overwritten."""
    return tensor.clone(memory_format=torch.contiguous_format)
