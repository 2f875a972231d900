"""Verifying trees over static shapes, in passes of one shape.

Sequences that ended stay and run again beside the others, unseen; trees are padded with dummy nodes whose outputs are
discarded. Tapped layers are read from `hidden_states`, since hooks added for a call would be compiled in.

Shape letters: B sequences of the batch, A active ones, P places of a path, S slots.
"""

import torch
from transformers import Cache

from ...compat.caches import static_lengths
from ...target.target import Target
from ..batch import Batch, stand_ins
from ..compiled.shapes import KEPT_SLOTS
from ..compiled.slots import StaticSlots
from ..ops.transfer import on_device
from ..settings import Settings
from ..tree.draft_tree import DraftTree, padded
from .tree_pass import TreePass


class StaticPass(TreePass):
    """
    Verifies trees as [`TreePass`] does, in passes of one shape.

    Args:
        target, batch, model_kwargs, room, max_length: As for [`TreePass`]; `room` is the nodes of a pass.
        settings: The call's, with its static shapes.
    """

    def __init__(
        self, target: Target, batch: Batch, model_kwargs: dict, room: int, max_length: int, settings: Settings
    ):
        self.shapes, self.sizes, self.path_length = settings.static, settings.pass_sizes, settings.sizes.tree_depth + 1
        super().__init__(target, batch, model_kwargs, room, max_length)
        config = self.shapes.config
        self.shows_states = bool(config.return_dict_in_generate and config.output_hidden_states)

    def _slots(self, room: int, length: int, limit: int) -> StaticSlots:
        kept = KEPT_SLOTS.take(self.target.model) if self.shapes.compiles else None
        needs = (self.batch.num_sequences, self.shapes.num_slots(limit, room), self.path_length, room)
        fits = kept is not None and kept.fits(self.target_cache, *needs)
        slots = kept if fits else StaticSlots(self.target_cache, *needs)
        slots.fill(self.target_cache)
        return slots

    def verify(self, tree: DraftTree):
        """As `TreePass.verify`."""
        active, nodes = self.batch.active, tree.tokens.shape[1]
        everyone = self.batch.with_active(list(range(self.batch.num_sequences)))
        is_whole = active == everyone.active
        whole = padded(tree, next(size for size in self.sizes if size >= nodes))
        if not is_whole:  # in the places of sequences that ended the first active one runs again
            whole = whole.select(on_device(stand_ins(active, self.batch.num_sequences), whole.tokens.device))
        inputs, _ = self._inputs(whole, everyone)  # beside them nothing: layers with hooks are refused
        outputs = self.shapes.forward(inputs)
        logits, features = outputs.logits[:, :nodes], self.target.features(outputs)[:, :nodes]
        if not is_whole:
            index = on_device(active, logits.device)
            logits, features = logits[index], features[index.to(features.device)]
            if self.shows_states:
                outputs.hidden_states = tuple(layer[index.to(layer.device)] for layer in outputs.hidden_states)
        return logits, features, outputs

    def _masks(self, tree: DraftTree, visible: torch.Tensor | None, batch: Batch) -> dict[str, torch.Tensor]:
        least, width = torch.finfo(self.target.model.dtype).min, self.cache.num_slots
        return {
            kind: torch.nn.functional.pad(mask, (0, width - mask.shape[3]), value=least)
            for kind, mask in super()._masks(tree, visible, batch).items()
        }

    def keep(self, nodes: torch.Tensor, counts: list[int], ended: dict[int, int]) -> None:
        """Commit each active sequence's path `nodes` (A, up to P), the root first: in the next pass."""
        # Places past a path, and sequences that ended, move slots that stay masked.
        dst = self.lengths.to(nodes.device)[:, None] + torch.arange(self.path_length, device=nodes.device)
        src = dst.clone()
        src[on_device(self.batch.active, nodes.device), : nodes.shape[1]] = self.write + nodes
        self.cache.keep(src, dst)

    def forget_nodes(self) -> None:
        """As `TreePass.forget_nodes`; of sequences that ended all slots stay masked."""
        self.cache.clear_behind([length - 1 + self.batch.cache_shift for length in self.batch.lengths])

    @property
    def longest_chain(self) -> int:
        """As many nodes as a pass commits."""
        return min(self.path_length, self.sizes[-1])

    def select(self, kept: list[int], drop: bool) -> None:
        """Sequences that ended keep their places."""

    def close(self, is_wanted: bool) -> Cache:
        """
        The static cache, filled with all tokens but the last if that is wanted.

        Raises:
            ValueError: a cache of the caller's is too short; it is then as it was.
        """
        length, given = self.batch.final_cache_length, self.shapes.cache
        is_too_long = self.shapes.is_callers and length > min(static_lengths(given))
        if is_wanted and not is_too_long:
            self.cache.give_back(given, length)
        if self.shapes.compiles:
            KEPT_SLOTS.put(self.target.model, self.cache)
        if is_too_long:
            raise ValueError(
                f"The `StaticCache` given has room for {min(static_lengths(given))} tokens, and this call needed "
                f"{length}; make it longer (`max_cache_len`) or lower `max_new_tokens`."
            )
        return given
