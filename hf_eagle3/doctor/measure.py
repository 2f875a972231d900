"""Acceptance along answers of the target itself: the draft is asked at every position of one plain answer.

The answer does not depend on the draft, so that repairs are compared position by position, and a measurement costs
passes of the draft only. Does not know repairs.

Shape letters: B answers, L sequence, F tapped features, K levels of a chain, n positions that a chain may start from.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from .. import metrics
from ..draft_model import DraftModel
from ..drafters.block import BlockDraftModel
from ..drafters.block.objective import block_states
from ..generation.draft.eagle3 import uses_own_embedding
from ..modeling_eagle3 import Eagle3DraftModel
from ..target.target import Target
from ..training.figures import simulated_cycles
from ..training.training_time_test import take_indices, training_time_test


LEAST_LOG = -10.0  # of a token's log-probability: so is one outside the draft vocabulary counted, and NaN


@dataclass(frozen=True)
class Acceptance:
    """
    What a chain would accept from each position.

    Attributes:
        lengths: Draft tokens accepted, 0..K, (n,) int64 on the CPU.
        log_likelihoods: What the draft gives the K tokens that the target chose, each at least `LEAST_LOG`, summed,
            (n,) float32 on the CPU. Tells two drafts apart on far fewer positions than `lengths`.
        starts: Flat indices of the positions, ascending.
        depth: K.
    """

    lengths: Tensor
    log_likelihoods: Tensor
    starts: tuple[int, ...]
    depth: int

    @property
    def rates(self) -> list[float]:
        """n-alpha for n = 0..K-1: the share accepted at a level among chains that reached it; NaN if none did."""
        return metrics.acceptance_rates(((length, self.depth) for length in self.lengths.tolist()), self.depth)

    @property
    def mean(self) -> float:
        """Draft tokens accepted per position."""
        return float(self.lengths.double().mean())

    @property
    def acceptance_length(self) -> float:
        """tau of a chain of K levels, where each cycle starts behind the one before."""
        tokens, cycles = simulated_cycles(list(self.starts), self.lengths.tolist())
        return metrics.acceptance_length(tokens, cycles)


@torch.no_grad()
def plain_answers(target_model: PreTrainedModel, prompts: list[dict], max_new_tokens: int) -> list[tuple[Tensor, int]]:
    """(token ids (L,), length of the prompt) of the target's greedy answer to each prompt."""
    out = []
    for inputs in prompts:
        ids = target_model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
        out.append((ids[0], inputs["input_ids"].shape[1]))
    return out


def draft_ids_of(target_ids: Tensor | None, vocab_size: int) -> Tensor:
    """Draft id of every target id, (V,) int64; -1 outside the draft vocabulary `target_ids` (D,), `None` for all."""
    if target_ids is None:
        return torch.arange(vocab_size)
    out = torch.full((vocab_size,), -1)
    out[target_ids.cpu()] = torch.arange(len(target_ids))
    return out


class Evidence:
    """
    Answers of a target, and what it computes for them.

    Args:
        target_model: The target.
        answers: From [`plain_answers`].
        depth: Levels of the chains (K).

    Raises:
        ValueError: the answers are too short for a chain of that depth.
    """

    def __init__(self, target_model: PreTrainedModel, answers: list[tuple[Tensor, int]], depth: int):
        self.target_model, self.depth = target_model, depth
        self.ids = pad_sequence([ids for ids, _ in answers], batch_first=True)
        self.mask = pad_sequence([torch.ones_like(ids) for ids, _ in answers], batch_first=True)
        length = self.ids.shape[1]
        # Index i pairs the token i + 1 with the feature of i; level k predicts the token i + 1 + k.
        starts = [
            row * length + index
            for row, (ids, prompt) in enumerate(answers)
            for index in range(prompt - 1, len(ids) - 1 - depth)
        ]
        if not starts:
            raise ValueError(
                f"The target's answers have at most {max(len(ids) - p for ids, p in answers)} tokens, too few for "
                f"chains of {depth}; use other prompts or more `--max-new-tokens`."
            )
        self.starts = torch.tensor(starts, device=self.ids.device)
        self._features: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def measure(self, draft: DraftModel) -> Acceptance:
        """What chains of `draft`, an EAGLE-3 draft or a block drafter, would accept from every position."""
        target = Target(self.target_model, draft.config)
        weight = draft.norm.weight
        features = self._features_of(target).to(weight.device, weight.dtype)
        ids, starts = self.ids.to(weight.device), self.starts.to(weight.device)
        own = uses_own_embedding(draft, target)

        def embed(ids: Tensor) -> Tensor:
            return draft.embed_tokens(ids) if own else target.embedding_rows(ids).to(weight.device, weight.dtype)

        if isinstance(draft, BlockDraftModel):
            levels, target_ids = self._levels_of_blocks(draft, target, embed, features), None
        else:
            levels, target_ids = self._unrolled_levels(draft, target, embed(ids), features), draft.target_token_ids
        draft_ids = draft_ids_of(target_ids, max(draft.config.vocab_size, int(ids.max()) + 1)).to(weight.device)
        accepted = torch.ones_like(starts)
        lengths, logs = torch.zeros_like(starts), torch.zeros(len(starts), device=weight.device)
        for level, logits in enumerate(levels):
            wanted = draft_ids[ids.flatten()[starts + 2 + level]]  # -1 outside the draft vocabulary
            accepted = accepted * (logits.argmax(-1) == wanted)
            lengths += accepted
            chosen = logits.log_softmax(-1).gather(1, wanted.clamp(min=0)[:, None])[:, 0].nan_to_num(LEAST_LOG)
            logs += chosen.where(wanted >= 0, chosen.new_tensor(LEAST_LOG)).clamp(min=LEAST_LOG)
        return Acceptance(lengths.cpu(), logs.cpu(), tuple(self.starts.tolist()), self.depth)

    def _unrolled_levels(
        self, draft: Eagle3DraftModel, target: Target, embeds: Tensor, features: Tensor
    ) -> Iterator[Tensor]:
        """Logits (n, D) of each level of the chains of an EAGLE-3 draft, float32."""
        weight, head, starts = draft.norm.weight, draft.lm_head, self.starts.to(embeds.device)
        rows = None if head is not None else target.head_rows(draft.target_token_ids).to(weight.device, weight.dtype)
        for normed in training_time_test(draft, embeds, features, self.depth, later_indices=starts):
            here = take_indices(normed, starts)[0]
            yield (head(here) if rows is None else here @ rows.T).float()

    def _levels_of_blocks(
        self, draft: BlockDraftModel, target: Target, embed: Callable[[Tensor], Tensor], features: Tensor
    ) -> Iterator[Tensor]:
        """Logits (n, V) of each level of a block drafter, float32; its anchors are the tokens behind the starts."""
        length, device = self.ids.shape[1], features.device
        anchors = pad_sequence(
            [self.starts[self.starts // length == row] % length + 1 for row in range(len(self.ids))], batch_first=True
        )  # 0 where a sequence has fewer
        batch = {
            "input_ids": self.ids.to(device),
            "document_ids": (self.mask - 1).to(device),  # -1 at padding
            "position_ids": torch.arange(length, device=device)[None],
        }
        states = block_states(draft, embed, batch, features, anchors.to(device))[(anchors > 0).to(device)]
        for level in range(self.depth):
            yield target.head(states[:, level].to(target.model.dtype)).to(device).float()

    def _features_of(self, target: Target) -> Tensor:
        key = tuple(target.layer_ids)
        if key not in self._features:
            self._features[key] = target.read(self.ids, self.mask)[0]
        return self._features[key]
