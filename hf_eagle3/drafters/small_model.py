"""`SmallModelDraft`: any causal LM with the target's tokenizer proposes, as a chain or a tree, for any batch.

    small("the cat sat")  -->  level 1: on, down  -->  small("... on"), small("... down") in one pass  -->  ...

The tree grows as EAGLE-3's does: same ranking, shared noise, policies. In transformers' own assisted decoding the
small model proposes one chain for one sequence.

Shape letters: A active sequences, m tokens to read, n nodes, k nodes of a level, V vocabulary.

Source: Leviathan et al. (arXiv 2211.17192); EAGLE-2's dynamic tree (arXiv 2406.16858, section 4).
"""

import torch
from transformers import DynamicCache, PreTrainedModel

from ..data.limits import context_length
from ..generation.draft.interface import DraftContext, Drafter, Prompt, Roots, register_drafter
from ..generation.draft.ranking import rank_children
from ..generation.ops.transfer import additive, on_device
from ..generation.tree.draft_tree import DraftTree, root_only
from ..generation.tree.policy import TreePolicy
from ..generation.tree.pool import Pool
from ..target.mode import decoding_mode
from ..tree_config import TreeConfig
from .base import Draft
from .small_pass import SmallPasses


class SmallModelDraft(Draft):
    """
    A small causal LM as the draft of a larger one.

    Args:
        model: The small model, on its device and in its dtype. It must use the target's tokenizer.

    Raises:
        ValueError: its cache cannot branch (recurrent models), so that it cannot draft here.
    """

    takes_shapes = True

    def __init__(self, model: PreTrainedModel):
        config = model.config.get_text_config(decoder=True)
        mode = decoding_mode(model, DynamicCache(config=config))
        if mode.kind != "tree":
            raise ValueError(
                f"`model` is a {type(model).__name__}, which cannot draft trees: {mode.reason}. Take an attention "
                "model, or transformers' own assisted decoding."
            )
        self.model = model
        self.tree_config = TreeConfig().fitted(config.vocab_size)


def fit(draft: SmallModelDraft, target: PreTrainedModel) -> SmallModelDraft:
    """
    The draft itself.

    Raises:
        ValueError: the vocabularies differ in size.
    """
    small, large = (model.config.get_text_config(decoder=True).vocab_size for model in (draft.model, target))
    if small != large:
        raise ValueError(
            f"The small model of `assistant_model` has {small} tokens, the target {large}: they do not share a "
            "tokenizer. Take a model of the target's family, or transformers' own assisted decoding with both "
            "tokenizers."
        )
    return draft


class SmallModelDrafter(Drafter):
    """See [`SmallModelDraft`]."""

    def __init__(self, draft: SmallModelDraft, context: DraftContext):
        self.model, self.batch, self.timer = draft.model, context.batch, context.timer
        self.noise, self.warp, self.max_length = context.noise, context.warp, context.max_length
        self.device, self.dtype = draft.model.device, draft.model.dtype
        sizes = context.settings.sizes
        self.room = sizes.tree_depth * (sizes.tree_top_k + 1) + 1
        self.context = context_length(draft.model.config)
        self.passes: SmallPasses | None = None
        self.sequences: list[int] = []  # original numbers of those of the last tree
        self._levels: list[tuple[torch.Tensor, torch.Tensor]] = []  # tokens and parents' places of what was expanded

    # -- tokens -------------------------------------------------------------------------------------------------------

    def start(self, prompt: Prompt) -> None:
        """As in [`Drafter`]: the small model reads the prompt if a cycle will follow."""
        batch, length = self.batch, self.batch.prompt_length
        if not prompt.is_read:
            return
        ids, visible = batch.ids[:, :length], batch.visible
        if visible is not None:
            visible = visible[:, batch.cache_shift : batch.cache_shift + length].to(self.device)
        if length == 0:  # embeddings alone: of these texts the small model knows what was generated
            ids, visible = prompt.first_tokens, None
        if self.context is not None and ids.shape[1] >= self.context:
            return
        self.passes = SmallPasses(self.model, ids.to(self.device), visible, self.room, self.max_length + 1)
        if length == 0:  # the root, which every cycle reads
            self.passes.forget_all()

    def _committed(self, sequences: list[int]) -> list[list[int]]:
        """Tokens of each sequence that are not cached yet, the root last."""
        first, lengths = min(self.passes.cached), [self.batch.lengths[number] for number in sequences]
        rows = self.batch.ids[sequences, first : max(lengths)].tolist()
        return [
            row[cached - first : length - first]
            for row, cached, length in zip(rows, self.passes.cached, lengths, strict=True)
        ]

    def _keep_accepted(self, new: list[list[int]]) -> list[list[int]]:
        """Commit the nodes of the last tree that carry the tokens `new`; returns the tokens that remain to be read."""
        if not self._levels:
            return new
        tokens = torch.cat([tokens for tokens, _ in self._levels], dim=1).tolist()
        parents = torch.cat([parents for _, parents in self._levels], dim=1).tolist()
        self._levels, paths = [], []
        for row, above, wanted in zip(tokens, parents, new, strict=True):
            places, path, last = {key: place for place, key in enumerate(zip(above, row, strict=True))}, [], -1
            for token in wanted[:-1]:  # the root is read again: its logits are needed
                last = places.get((last, token))
                if last is None:
                    break
                path.append(last)
            paths.append(path)
        self.passes.commit(paths)
        return [wanted[len(path) :] for wanted, path in zip(new, paths, strict=True)]

    def _read(self, new: list[list[int]]) -> torch.Tensor:
        """Logits (A, 1, V) behind the last of the tokens `new` of each sequence, which are then cached."""
        counts = [len(tokens) for tokens in new]
        longest = max(counts)
        tokens = on_device([row + [0] * (longest - len(row)) for row in new], self.device)
        steps = torch.arange(longest, device=self.device)
        seen = additive(steps <= steps[:, None], self.dtype).expand(len(new), 1, -1, -1)
        logits = self.passes.run(tokens, steps.expand(len(new), -1), seen, longest == 1)
        self.passes.commit([list(range(count)) for count in counts])
        if min(counts) == longest:
            return logits[:, -1:]
        last = on_device(counts, self.device).sub(1)
        return logits[torch.arange(len(new), device=self.device), last][:, None]

    # -- trees --------------------------------------------------------------------------------------------------------

    def grow(self, roots: Roots, depth: int, policy: TreePolicy) -> DraftTree:
        """As in [`Drafter`]."""
        self.sequences, longest = roots.sequences, max(self.batch.active_lengths)
        if self.passes is None or (self.context is not None and longest + depth > self.context):
            return root_only(roots.tokens.to(self.device))
        with self.timer.phase("draft_forward"):
            logits = self._read(self._keep_accepted(self._committed(roots.sequences)))
        windows = [reach.window for _, reach in self.passes.kinds.values() if reach.window is not None]
        depth = min([depth, *windows])  # every node sees all its ancestors
        with self.timer.phase("tree"):
            return self._grown(roots, logits, depth, policy)

    def _grown(self, roots: Roots, logits: torch.Tensor, depth: int, policy: TreePolicy) -> DraftTree:
        count = logits.shape[0]

        def ranked(logits: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
            return rank_children(logits, policy.top_k, self._gumbel(roots, level), self.warp)

        pool = Pool(count, policy.top_k, self.dtype, self.device, policy)
        pool.start(*ranked(logits, 0))
        places = torch.full((count, policy.top_k), -1, device=self.device)  # of the frontier's parents
        for level in range(1, depth):
            width = policy.width(level, pool.frontier_scores)
            if width == 0:
                break
            first, seen = pool.columns, pool.expand(width)
            tokens = pool.frontier_tokens
            self._levels.append((tokens, places[:, :width]))
            with self.timer.phase("draft_forward"):
                logits = self.passes.run(tokens, torch.full_like(tokens, level - 1), seen, policy.top_k == 1)
            places = first + pool.extend(*ranked(logits, level))
        return pool.finish(roots.tokens.to(self.device))

    def _gumbel(self, roots: Roots, level: int) -> torch.Tensor | None:
        if self.noise is None:
            return None
        return self.noise.gumbel_at([step + level for step in roots.steps], roots.sequences).to(self.device)

    # -- sequences ----------------------------------------------------------------------------------------------------

    def select(self, kept: list[int]) -> None:
        """As in [`Drafter`]."""
        if self.passes is None:
            return
        if self.sequences:
            self._keep_accepted(self._committed(self.sequences))
            self.sequences = []
        self.passes.select(kept)

    def close(self, cache) -> None:
        """As in [`Drafter`]."""
        if self.passes is not None:
            self.passes.close()


register_drafter(
    SmallModelDraft,
    SmallModelDrafter,
    fit=fit,
    device=lambda draft, target: draft.model.device,
    identity=lambda draft: draft.model,
)
