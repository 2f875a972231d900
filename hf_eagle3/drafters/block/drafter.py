"""The block drafter within one call of `generate`: one pass per cycle predicts every level of the tree.

Keys and values of past positions are made of the target's features when tokens are committed, and stay; those of the
block are written behind them and forgotten. Everything stays on the draft's device. Does not know the target's cache
or the walk.

Shape letters: A active sequences, m new entries, S slots, K positions of the block, T levels, H hidden, V vocabulary.
"""

import torch
from transformers import Cache

from ...generation.draft.eagle3 import MOST_ELEMENTS, uses_own_embedding
from ...generation.draft.interface import DraftContext, DraftInputs, Roots
from ...generation.draft.kv import DraftCache
from ...generation.draft.memory import attach_state
from ...generation.draft.ranking import rank_children
from ...generation.draft.reader import FeatureReader
from ...generation.ops.grouped_attention import grouped_attention
from ...generation.ops.transfer import additive, on_device
from ...generation.tree.draft_tree import DraftTree
from ...generation.tree.policy import TreePolicy
from .modeling import BlockDraftModel, seen_in_block
from .tree import product_tree


class BlockDrafter(FeatureReader):
    """
    Args:
        draft: The draft.
        context: What the call hands to every drafter.

    Raises:
        ValueError: the draft's mask is no token of the target.
    """

    reads_plain_embeddings = True  # a prompt's features suffice; its tokens are never read

    def __init__(self, draft: BlockDraftModel, context: DraftContext):
        self.draft, self.config, self.target = draft, draft.config, context.target
        self.batch, self.timer, self.noise = context.batch, context.timer, context.noise
        self.warp = context.warp if self.noise is not None else None
        self.most_nodes = context.settings.sizes.num_draft_tokens
        weight = draft.fc.weight
        self.device = weight.device
        self.dtype = weight.dtype if weight.is_floating_point() else draft.norm.weight.dtype
        self.cache = DraftCache(self.config, self.batch.num_sequences, self.dtype, self.device)
        self.reads_own_embedding = uses_own_embedding(draft, self.target)
        rows = len(draft.embed_tokens.weight if self.reads_own_embedding else self.target.embedding_weight)
        if self.config.mask_token_id >= rows:
            raise ValueError(
                f"The draft's `mask_token_id` is {self.config.mask_token_id}, the target has {rows} embedding rows; "
                "this draft belongs to another target."
            )
        mask = on_device([[self.config.mask_token_id]], self.device)
        self.masks = self._embed(mask).expand(-1, self.config.block_size - 1, -1)
        self.pending = []

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        rows = self.draft.embed_tokens(tokens) if self.reads_own_embedding else self.target.embedding_rows(tokens)
        return rows.to(self.device, self.dtype)

    # -- past positions -----------------------------------------------------------------------------------------------

    def read(self, inputs: DraftInputs) -> None:
        """Keys and values of tokens that were committed, in parts where they are many."""
        num_sequences, length = inputs.features.shape[:2]
        self.cache.reserve(inputs.last_slot + 1)
        index = self.cache.index(num_sequences)
        valid = inputs.valid
        if valid is None and min(inputs.counts) < length:
            valid = torch.arange(length, device=self.device) < on_device(inputs.counts, self.device)[:, None]
        chunk = max(64, MOST_ELEMENTS // (self.config.fused_features_size * num_sequences))
        for start in range(0, length, chunk):
            part = slice(start, start + chunk)
            slots = inputs.slots[:, part].to(self.device)
            rotary = self.draft.rotary(inputs.positions[:, part].to(self.device), self.dtype)
            features = inputs.features[:, part].to(self.device, self.dtype)
            for layer, (key, value) in enumerate(self.draft.keys_and_values(features, rotary)):
                self.cache.write_entries(layer, index, slots, key, value)
            self.cache.valid[index, slots] = True if valid is None else valid[:, part].to(self.device)
        self.cache.filled = max(self.cache.filled, inputs.last_slot + 1)

    # -- trees --------------------------------------------------------------------------------------------------------

    def grow(self, roots: Roots, depth: int, policy: TreePolicy) -> DraftTree:
        """As in [`Drafter`]: no level costs more than another, so that all are predicted."""
        with self.timer.phase("draft_forward"):
            self.feed()
        with torch.autocast(self.device.type, enabled=False), self.timer.phase("tree"):
            with self.timer.phase("draft_forward"):
                logits = self._logits(roots, depth)
            log_probs, tokens = self._ranked(logits, roots, policy.top_k)
            return product_tree(roots.tokens.to(self.device), log_probs, tokens, self.most_nodes, policy)

    def _logits(self, roots: Roots, depth: int) -> torch.Tensor:
        """Of the tokens of levels 1 to `depth`, (A, T, V)."""
        length = self.config.block_size
        if not any(self.config.sees_later(layer) for layer in range(self.config.num_hidden_layers)):
            length -= self.config.num_predictions - depth  # the rest of the block is seen by nothing that is read
        anchors = self._embed(roots.tokens[:, None].to(self.device))
        embeds = torch.cat((anchors, self.masks[:, : length - 1].expand(len(anchors), -1, -1)), dim=1)
        behind = torch.arange(1, length + 1, device=self.device)
        rotary = self.draft.rotary(on_device(roots.positions, self.device)[:, None] + behind, self.dtype)
        self.cache.begin_nodes(length)
        slots, masks = self.cache.node_slots(0, length), self._masks(len(anchors), length)

        def attend(query, key, value, layer):
            return grouped_attention(query, *self.cache.write_nodes(layer, slots, key, value), masks[layer])

        states = self.draft.predictions(self.draft.decode(embeds, rotary, attend))[:, :depth]
        return self.target.head(states.to(self.target.model.dtype)).to(self.device)

    def _masks(self, num_sequences: int, length: int) -> list[torch.Tensor]:
        """What each layer's block sees, additive, (A, 1, K, S + K): the past of its sequence, and of itself."""
        valid = self.cache.entries(num_sequences)
        index = torch.arange(valid.shape[1], device=self.device)
        newest = (index * valid).amax(dim=1, keepdim=True)
        block = newest + torch.arange(1, length + 1, device=self.device)
        # In slots: the block's lie behind the sequence's newest, wherever its keys are written.
        places = torch.cat((index.expand(num_sequences, -1), block), dim=1)
        present = torch.cat((valid, torch.ones_like(block, dtype=torch.bool)), dim=1)
        kinds = {}
        for layer in range(self.config.num_hidden_layers):
            kind = (self.config.sees_later(layer), self.config.window(layer))
            if kind not in kinds:
                seen = seen_in_block(self.config, layer, block, places) & present[:, None]
                kinds[kind] = additive(seen, self.dtype)[:, None]
        order = [(self.config.sees_later(i), self.config.window(i)) for i in range(self.config.num_hidden_layers)]
        return [kinds[kind] for kind in order]

    def _ranked(self, logits: torch.Tensor, roots: Roots, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The best tokens of every level, log-probabilities and ids (A, T, k)."""
        top_k = min(top_k, logits.shape[2])
        if self.noise is None:
            return rank_children(logits, top_k)
        parts = []
        for level in range(logits.shape[1]):
            noise = self.noise.gumbel_at([step + level for step in roots.steps], roots.sequences).to(self.device)
            parts.append(rank_children(logits[:, level : level + 1], top_k, noise, self.warp))
        return torch.cat([scores for scores, _ in parts], dim=1), torch.cat([ids for _, ids in parts], dim=1)

    # -- sequences ----------------------------------------------------------------------------------------------------

    def select(self, kept: list[int]) -> None:
        """As in [`Drafter`]."""
        self.cache.select(kept)
        self.pending = [inputs.select(kept) for inputs in self.pending]

    def close(self, cache: Cache | None) -> None:
        """As in [`Drafter`]: what the draft knows rides along on the cache."""
        if cache is not None:
            attach_state(cache, self, self.batch)
