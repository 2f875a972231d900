"""Verifying trees: inputs, masks and cache of one pass of the target over any tree, in slots.

Sequences have lengths of their own. Does not know how trees are made or tokens chosen.

Shape letters: B sequences of the batch, A active ones, N drafted nodes, V vocabulary, F features.
"""

import torch
from transformers import Cache
from transformers.utils import logging

from ...compat.calls import BOOKKEEPING, cache_of, pass_inputs, put_cache
from ...compat.models import attention_name
from ...target.layer_inputs import PassInputs, mask_argument, mask_kinds
from ...target.mode import TREE_ATTENTION
from ...target.target import Target
from ..batch import Batch
from ..ops.transfer import on_device
from ..tree.draft_tree import DraftTree, chain
from .attention import share_mask, take_tree_masks
from .masks import slot_positions, verification_masks
from .slots import SlotCache


logger = logging.get_logger(__name__)

PADDING_CHUNK = 256  # tokens of a pass of padding, for sequences that ended before others
# What the prompt gives per token, and whether generated tokens repeat its last value or have zeros.
_PER_TOKEN = {
    "token_type_ids": True,
    "mm_token_type_ids": False,
    "moe_mm_token_type_ids": False,
    "image_attention_mask": True,  # of the first Idefics
}
# Kept by this module, or meant for the prompt only.
_NOT_PASSED_ON = {*BOOKKEEPING, *_PER_TOKEN}


class TreePass:
    """
    Args:
        target: The target.
        batch: Lengths and padding; read, never changed.
        model_kwargs: Of `generate`, after prefill.
        room: Most nodes of a pass, root included.
        max_length: Tokens that a sequence can reach.
    """

    def __init__(self, target: Target, batch: Batch, model_kwargs: dict, room: int, max_length: int):
        self.target, self.batch, self.dtype = target, batch, target.model.dtype
        attention = attention_name(target.config)
        if attention not in TREE_ATTENTION:
            logger.warning_once(
                f"{attention} takes no tree mask: it reads the prompt, and sdpa verifies the draft's trees. "
                '`attn_implementation="sdpa"` does both.'
            )
        if attention != "eager":
            take_tree_masks(attention)
        self.target_cache: Cache = cache_of(model_kwargs)
        self.cache = self._slots(room, batch.prompt_length + batch.cache_shift, max_length + batch.cache_shift)
        # Layers of a sliding kind may stand in a cache without windows (a plain `DynamicCache()` of the user's).
        spans, any_span = self.cache.spans, next(iter(self.cache.spans.values()))
        self.kinds = {
            kind: (spans.get(reach.kept, spans.get(None, any_span)), reach)
            for kind, reach in mask_kinds(target.config).items()
        }
        self.order = list(range(batch.num_sequences))  # original number of each sequence in storage
        self.keeps_all = True
        self.extra = {name: value for name, value in model_kwargs.items() if name not in _NOT_PASSED_ON}
        self.per_token = {
            name: model_kwargs[name][:, -1:] if repeats else torch.zeros_like(model_kwargs[name][:, -1:])
            for name, repeats in _PER_TOKEN.items()
            if model_kwargs.get(name) is not None
        }
        positions = model_kwargs.get("position_ids")
        if positions is None:
            positions = torch.tensor(batch.num_visible, device=batch.ids.device)[:, None] - 1
        if positions.shape[-2] == 1 and batch.num_sequences > 1:
            positions = positions.expand(*positions.shape[:-2], batch.num_sequences, -1)
        self.last_position = positions[..., -1:]  # (..., B, 1): of the prompt
        # Nodes past a sequence's limit are never committed, but learned positions must exist.
        self.most_steps = max_length - batch.prompt_length - 1

    def _slots(self, room: int, length: int, limit: int) -> SlotCache:
        """The prompt's `length` tokens as slots, for passes of `room` nodes that end before slot `limit`."""
        return SlotCache(self.target_cache, self.batch.num_sequences, length, room, limit)

    def verify(self, tree: DraftTree):
        """The target's outputs for every node: logits (A, N + 1, V), features (A, N + 1, F), and the raw outputs."""
        inputs, given = self._inputs(tree, self.batch)
        with self.target.capturing(), self.target.layer_inputs.replaced(given):
            outputs = self.target.model(**inputs, return_dict=True)
        return outputs.logits, self.target.features(outputs), outputs

    def _inputs(self, tree: DraftTree, batch: Batch) -> tuple[dict, PassInputs]:
        """Arguments of the target's pass over `tree`, and what its layers are given beside them."""
        model, cached = self.target.model, batch.cached_lengths
        num_nodes = tree.tokens.shape[1]
        self.write = max(cached)
        # Sequences that have ended but stay in the cache need their window for the padding behind them.
        shortest = min(batch.lengths) - 1 + batch.cache_shift if self.keeps_all else min(cached)
        self.cache.begin_pass(self.write, shortest, max(num_nodes, tree.max_depth + 1))
        device = tree.tokens.device
        self.lengths, steps = on_device([cached, batch.steps], device)
        visible = batch.active_visible(device)
        masks = self._masks(tree, visible, batch)
        ahead = (steps[:, None] + tree.depths).clamp(max=self.most_steps)
        last = self.last_position
        if len(batch.active) < batch.num_sequences:
            last = last.index_select(-2, on_device(batch.active, last.device))
        positions = last.to(device) + ahead
        node_slots = batch.prompt_length + batch.cache_shift - 1 + ahead
        by_slot = slot_positions(self.write, visible, node_slots) if self.target.layer_inputs.hooked else None
        given = PassInputs(masks, by_slot, node_slots)
        per_token = {
            name: value.expand(-1, num_nodes, *value.shape[2:])
            for name, value in _active(self.per_token, batch).items()
        }
        kwargs = {"position_ids": positions, **per_token, **_active(self.extra, batch)}
        put_cache(kwargs, self.cache)
        inputs = pass_inputs(model, tree.tokens, num_nodes, kwargs)
        # Phi-3's preparation takes a pass as long as its RoPE threshold for a prompt, and would leave the cache out.
        put_cache(inputs, self.cache)
        inputs["attention_mask"] = mask_argument(self.target.config, given)
        if self.target.takes_positions:
            prepared = inputs.get("position_ids", positions)
            if prepared is None or self.target.counts_padding:  # the model counts slots, padding included
                positions = node_slots
            elif prepared.shape == positions.shape:  # perhaps shifted (PaliGemma)
                positions = prepared
            inputs["position_ids"] = positions
        if self.target.keeps_logits:
            inputs["logits_to_keep"] = num_nodes
        return inputs, given

    def _masks(self, tree: DraftTree, visible: torch.Tensor | None, batch: Batch) -> dict[str, torch.Tensor]:
        dtype, device = self.dtype, tree.tokens.device
        if visible is None and self._sees_everything(tree, batch):
            count = tree.tokens.shape[0]
            return {
                kind: share_mask(torch.zeros(count, 1, 1, span.offset + 1, dtype=dtype, device=device), True)
                for kind, (span, _) in self.kinds.items()
            }
        masks = verification_masks(self.kinds, self.lengths, visible, tree.depths, tree.ancestors, dtype)
        return {kind: share_mask(mask, hides_nothing=False) for kind, mask in masks.items()}

    def _sees_everything(self, tree: DraftTree, batch: Batch) -> bool:
        """Whether the pass is a plain step of sequences equally long, and no window or chunk ends behind it."""
        is_plain = tree.num_draft_tokens == 0 and min(batch.cached_lengths) == self.write
        return is_plain and all(
            reach.chunk is None and (reach.window is None or span.offset < reach.window)
            for span, reach in self.kinds.values()
        )

    def attended(self, a: int, path: torch.Tensor) -> torch.Tensor:
        """Slots that the last node of sequence `a`'s `path` attends to, in the order plain generate has them."""
        prefix = torch.arange(self.batch.cached_lengths[a], device=path.device)
        return torch.cat((prefix, self.write + path))

    def keep(self, nodes: torch.Tensor, counts: list[int], ended: dict[int, int]) -> None:
        """Commit each sequence's path `nodes` (A, T + 1), the root first; for the others see `ChainPass.keep`."""
        if nodes.shape[1] > 1 or min(self.batch.cached_lengths) < self.write:  # else roots in their place
            self.cache.keep(self.write, self.lengths, nodes)

    def forget_nodes(self) -> None:
        """Undo the last pass: what it left in slots that are masked may not be finite."""
        self.cache.clear_behind(self.batch.cached_lengths)

    def select(self, kept: list[int], drop: bool) -> None:
        """Only the active sequences at `kept` continue; `drop`: the others are not needed any more."""
        self.cache.select(kept, drop)
        self.keeps_all &= not drop
        others = [] if drop else [place for place in range(len(self.order)) if place not in kept]
        self.order = [self.order[place] for place in kept + others]

    @property
    def longest_chain(self) -> int:
        """Most tokens of a pass of padding."""
        return PADDING_CHUNK

    def cache_padding(self, ended: list[int]) -> None:
        """
        Fill the caches of sequences that ended before others as plain `generate` does, which feeds them padding until
        all have ended: a later turn may attend to it.
        """
        own, longest = self.batch, max(self.batch.lengths)
        self.batch = batch = own.with_active(ended)
        while ended := [number for number in ended if batch.lengths[number] < longest]:
            batch.active = ended
            self.select([self.order.index(number) for number in ended], drop=False)
            count = min(longest - min(batch.active_lengths), self.longest_chain)
            roots = self.target.on_input_device(batch.roots())
            padding = roots.new_full((len(ended), count - 1), batch.pad_token_id)
            self.verify(chain(roots, padding, torch.zeros_like(padding, dtype=torch.float32)))
            self.keep(torch.arange(count, device=roots.device).expand(len(ended), -1), [count] * len(ended), {})
            for number in ended:
                batch.lengths[number] = min(batch.lengths[number] + count, longest)
        self.batch = own

    def close(self, is_wanted: bool) -> Cache:
        """The target's cache, an ordinary one again, of all tokens but the last, which is not cached."""
        order = self.order if is_wanted and self.keeps_all else None
        self.cache.give_back(self.batch.final_cache_length, order)
        return self.target_cache


def _active(values: dict, batch: Batch) -> dict:
    """Of tensors per sequence, by name, the active ones' parts; everything else as it is."""
    if len(batch.active) == batch.num_sequences:
        return values
    return {
        name: value[batch.active]
        if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == batch.num_sequences
        else value
        for name, value in values.items()
    }
