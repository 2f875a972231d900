"""The drafter of Medusa and Hydra heads within one call of `generate`: a level of the tree is a head.

Nothing is cached: heads read the target's last state only. Trees grow as EAGLE-3's do, by the same pool and policies.
Does not know the target's cache or the walk.

Shape letters: A active sequences, k nodes of a level, H hidden, W inputs of a head, V vocabulary.
"""

import torch

from ...draft_layers import at_places
from ...generation.draft.interface import DraftContext, Drafter, DraftInputs, Prompt, Roots
from ...generation.draft.ranking import rank_children
from ...generation.ops.transfer import on_device
from ...generation.tree.draft_tree import DraftTree
from ...generation.tree.policy import TreePolicy
from ...generation.tree.pool import Pool
from .modeling import HeadsDraftModel


class HeadsDrafter(Drafter):
    """
    Args:
        draft: The heads.
        context: What the call hands to every drafter.
    """

    def __init__(self, draft: HeadsDraftModel, context: DraftContext):
        self.draft, self.target, self.timer, self.noise = draft, context.target, context.timer, context.noise
        self.warp = context.warp if self.noise is not None else None
        self.device, self.dtype = draft.device, draft.dtype
        self.num_tokens = min(draft.config.vocab_size, self.target.config.vocab_size)
        self.hidden: torch.Tensor | None = None  # (A, 1, H): the target's state at the token before each root

    def start(self, prompt: Prompt) -> None:
        """As in [`Drafter`]. Prompts are padded on the left."""
        self.hidden = prompt.features[:, -1:].to(self.device, self.dtype)

    def extend(self, inputs: DraftInputs) -> None:
        """As in [`Drafter`]: of what was committed only the newest state is read."""
        newest = on_device(inputs.counts, inputs.features.device).sub(1)[:, None]
        self.hidden = at_places(inputs.features, newest).to(self.device, self.dtype)

    def grow(self, roots: Roots, depth: int, policy: TreePolicy) -> DraftTree:
        """As in [`Drafter`]."""
        with torch.autocast(self.device.type, enabled=False), self.timer.phase("tree"):
            return self._grown(roots, min(depth, self.draft.config.num_heads), policy)

    def _grown(self, roots: Roots, depth: int, policy: TreePolicy) -> DraftTree:
        tokens, reads_tokens = roots.tokens.to(self.device), self.draft.reads_tokens
        inputs = self._with_tokens(self.hidden, tokens[:, None]) if reads_tokens else self.hidden
        pool = Pool(len(tokens), policy.top_k, self.dtype, self.device, policy)
        pool.start(*self._ranked(inputs, 0, roots, policy.top_k))
        inputs = inputs.expand(-1, policy.top_k, -1)  # all of level 1 hang below the same root
        for level in range(1, depth):
            width = policy.width(level, pool.frontier_scores)
            if width == 0:
                break
            pool.expand(width)
            if reads_tokens:
                inputs = self._with_tokens(inputs[:, :width], pool.frontier_tokens)
                ranked = self._ranked(inputs, level, roots, policy.top_k)
            else:  # the same below every node
                ranked = [x.expand(-1, width, -1) for x in self._ranked(self.hidden, level, roots, policy.top_k)]
            parents = pool.extend(*ranked)
            if reads_tokens and policy.top_k > 1:
                inputs = at_places(inputs, parents)
        return pool.finish(tokens)

    def _with_tokens(self, inputs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Inputs of the next head, (A, k, W + H): the embedding rows of `tokens` (A, k) behind those of this one."""
        return torch.cat((inputs, self.target.embedding_rows(tokens).to(inputs)), dim=2)

    def _ranked(self, inputs: torch.Tensor, level: int, roots: Roots, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-scores and ids (A, n, k) of the best tokens that the head of a level sees below `inputs` (A, n, W)."""
        with self.timer.phase("draft_forward"):
            logits = self.draft.logits(level, inputs)[..., : self.num_tokens]
        gumbel = None
        if self.noise is not None:
            gumbel = self.noise.gumbel_at([step + level for step in roots.steps], roots.sequences).to(self.device)
            gumbel = gumbel[:, : self.num_tokens]
        return rank_children(logits, top_k, gumbel, self.warp)

    def select(self, kept: list[int]) -> None:
        """As in [`Drafter`]."""
        self.hidden = self.hidden[on_device(kept, self.device)]
