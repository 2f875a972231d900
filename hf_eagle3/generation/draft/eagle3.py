"""The EAGLE-3 drafter: the draft model within one call of `generate`.

Per cycle one pass over the tokens committed last, with true features, that also yields level 1; then one pass per
further level (`grow.py`). Everything stays on the draft's device. Does not know the target's cache or the walk.

Shape letters: A active sequences, m new entries, k nodes of a level, H hidden, F features, D draft vocabulary.
"""

from collections.abc import Callable

import torch
from transformers import Cache
from transformers.utils import logging

from ...modeling_eagle3 import Eagle3DraftModel
from ...target.target import Target
from ..batch import Batch
from ..ops.transfer import on_device
from ..sampling.noise import StepNoise
from ..stats import PhaseTimer
from ..tree.draft_tree import DraftTree
from ..tree.policy import TreePolicy
from .grow import Vocabulary, entry_pass, grow, level_pass
from .interface import DraftInputs, Roots
from .kv import DraftCache, Window
from .memory import attach_state
from .ranking import Warp
from .reader import FeatureReader


logger = logging.get_logger(__name__)

# Elements of the largest tensor while reading a long prompt.
MOST_ELEMENTS = 2**23


def uses_own_embedding(draft: Eagle3DraftModel, target: Target) -> bool:
    """Whether embedding rows come from the checkpoint. Published drafts exist whose stored embedding is random."""
    own, config = draft.embed_tokens, draft.config
    if own is None:
        return False
    if config.embed_trained or config.hidden_size != config.target_hidden_size:
        return True
    some = torch.arange(0, config.vocab_size, max(1, config.vocab_size // 64))
    rows = target.embedding_rows(some).float().cpu()
    if (own.weight[some.to(own.weight.device)].float().cpu() - rows).abs().max() > 1e-2 * rows.abs().max():
        logger.warning_once(
            "The draft's stored `embed_tokens` differs from the target's embedding; the target's is used. If the "
            "draft was trained with its own, load it with `embed_trained=True`."
        )
    return False


class Eagle3Drafter(FeatureReader):
    """
    Args:
        draft: The draft.
        target: Where embedding rows come from.
        num_sequences: B.
        timer: Phases are timed there.
        noise: Steps' noise, for ranking under shared noise; `None` ranks by log q.
        warp: The request's, for ranking under shared noise.
        batch: The tokens, for what is remembered between calls; not needed by `extend` and `grow`.
        draft_window: As in [`TreeConfig`].
    """

    def __init__(
        self,
        draft: Eagle3DraftModel,
        target: Target,
        num_sequences: int,
        timer: PhaseTimer,
        noise: StepNoise | None = None,
        warp: Warp | None = None,
        batch: Batch | None = None,
        draft_window: int | None = None,
    ):
        self.draft, self.target, self.timer, self.noise, self.batch = draft, target, timer, noise, batch
        self.warp = warp if noise is not None else None
        self.config = draft.config
        self.window = Window.of(draft.config, draft_window)
        weight = draft.fc.weight
        self.device = weight.device
        self.dtype = weight.dtype if weight.is_floating_point() else draft.norm.weight.dtype
        self.cache = self._new_cache(num_sequences)
        self.reads_own_embedding = uses_own_embedding(draft, target)
        ids = draft.target_token_ids
        head = None if draft.lm_head is not None else target.head_rows(ids).to(self.device, self.dtype)
        embedding = draft.embed_tokens.weight if self.reads_own_embedding else target.embedding_weight
        self.vocabulary = Vocabulary(embedding.detach(), head, ids)
        self.pending = []
        self.hidden = self.normed = None  # (A, 1, H) of each sequence's newest entry

    def _new_cache(self, num_sequences: int) -> DraftCache:
        return DraftCache(self.config, num_sequences, self.dtype, self.device, self.window)

    # -- entries ------------------------------------------------------------------------------------------------------

    def read(self, inputs: DraftInputs) -> None:
        """Make entries, in parts where they are many; the newest of each sequence is where the next tree hangs."""
        num_sequences, length = inputs.features.shape[:2]
        newest = on_device(inputs.counts, self.device).sub(1)[:, None]
        valid = inputs.valid
        if valid is None and min(inputs.counts) < length:
            valid = torch.arange(length, device=self.device) <= newest
        chunk = self._most_at_once(num_sequences, inputs.last_slot + 1)
        for start in range(0, length, chunk):
            part = slice(start, min(start + chunk, length))
            self.cache.drop_before(inputs.first_slot + start)
            # Columns up to the last of this part: what a sequence may have ahead of the slowest is in all of them.
            width = inputs.last_slot + 1 - (length - part.stop) - self.cache.dropped
            self.cache.reserve(width)
            features = inputs.features[:, part].to(self.device, self.dtype)
            here = newest - start
            states = entry_pass(
                self.draft,
                self.cache,
                self._embeds(inputs, part, features),
                features,
                inputs.slots[:, part].to(self.device) - self.cache.dropped,
                inputs.positions[:, part].to(self.device),
                True if valid is None else valid[:, part].to(self.device),
                here.clamp(0, features.shape[1] - 1),
                width,
            )
            if start:  # sequences whose newest entry stood before this part have their states
                is_here = (here >= 0)[:, :, None]
                old = (self.hidden, self.normed)
                states = [new.where(is_here, known) for new, known in zip(states, old, strict=True)]
            self.hidden, self.normed = states
            self.cache.filled = max(self.cache.filled, width)

    def _most_at_once(self, num_sequences: int, width: int) -> int:
        """Entries of a sequence that are made in one pass."""
        # With one layer no mask over all entries is made, and its keys and values are the largest.
        widest = width if self.config.num_hidden_layers > 1 else 2 * self.config.hidden_size
        most = max(64, MOST_ELEMENTS // (widest * num_sequences))
        return most if self.window is None else min(most, max(64, self.window.size))

    def _embeds(self, inputs: DraftInputs, part: slice, like: torch.Tensor) -> torch.Tensor:
        if inputs.embeds is None:
            return self.vocabulary.embed(inputs.tokens[:, part], like)
        return inputs.embeds[:, part].to(like)

    # -- trees --------------------------------------------------------------------------------------------------------

    def sizes(self, depth: int, top_k: int) -> tuple[int, int]:
        """Levels and children per node: no node so deep that it would not see all its ancestors."""
        is_limited = self.window is not None and self.window.is_trained
        return (min(depth, self.window.size + 1) if is_limited else depth), top_k

    def grow(self, roots: Roots, depth: int, policy: TreePolicy) -> DraftTree:
        """As in [`Drafter`]."""
        with self.timer.phase("draft_forward"):
            self.feed()
        with torch.autocast(self.device.type, enabled=False), self.timer.phase("tree"):
            return self._grown(roots, depth, policy)

    def _grown(self, roots: Roots, depth: int, policy: TreePolicy, run_level: Callable = level_pass) -> DraftTree:
        depth, top_k = self.sizes(depth, policy.top_k)
        self.cache.begin_nodes(depth * top_k)
        with self.timer.phase("draft_forward"):
            logits = self.vocabulary.logits(self.draft, self.normed)
        return grow(
            self.draft,
            self.cache,
            self.vocabulary,
            self.hidden,
            logits,
            roots.tokens.to(self.device),
            on_device(roots.positions, self.device),
            (depth, top_k),
            policy,
            self._gumbel(roots),
            self.warp,
            self.timer.timed("draft_forward", run_level),
        )

    def _gumbel(self, roots: Roots):
        """level - 1 -> noise of the step that its tokens belong to, (A, D); `None` without shared noise."""
        if self.noise is None:
            return None
        return lambda level: self.noise.gumbel_at([step + level for step in roots.steps], roots.sequences).to(
            self.device
        )

    # -- sequences ----------------------------------------------------------------------------------------------------

    @property
    def reads_plain_embeddings(self) -> bool:
        """Whether a prompt given as embeddings can stand for the rows the draft reads."""
        is_plain = type(self.target.model.get_input_embeddings()) is torch.nn.Embedding
        return is_plain and not self.reads_own_embedding

    def select(self, kept: list[int]) -> None:
        """As in [`Drafter`]."""
        self.cache.select(kept)
        index = on_device(kept, self.device)
        if self.hidden is not None:
            self.hidden, self.normed = self.hidden[index], self.normed[index]
        self.pending = [inputs.select(kept) for inputs in self.pending]

    def close(self, cache: Cache | None) -> None:
        """As in [`Drafter`]: what the draft knows rides along on the cache."""
        if cache is not None:
            attach_state(cache, self, self.batch)
