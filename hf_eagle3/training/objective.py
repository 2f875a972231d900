"""The training loss, from the unrolled draft states and the target's last hidden states, computed in chunks.

Both heads run on a few hundred positions at a time and are recomputed in the backward pass, so that logits of shape
(B, L, V) or S x (B, L, D) never exist. Positions outside every loss are skipped. Does not know the draft's layers or
how the target ran.

Shape letters: B batch, L sequence, H hidden, V target vocabulary, D draft vocabulary, S steps, M positions with loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .losses import StepTerms, TargetDistribution, step_loss, top_k_cross_entropy


@dataclass(frozen=True)
class ObjectiveConfig:
    """The objective's options; fields as in `Eagle3TrainingArguments`, documented there."""

    loss: str = "soft_cross_entropy"
    step_decay: float = 0.8
    loss_mask_shift: int = 1
    mask_outside_vocabulary: bool = True
    mean_over: str = "loss_mask"
    token_loss_weight: float = 1.0
    feature_loss_weight: float = 0.0
    top_k_loss_weight: float = 0.0
    top_k_loss_tokens: int = 10
    head_chunk_size: int = 256


@dataclass
class Positions:
    """
    Where the loss is taken. Target position j predicts token j + 1, which step k of the draft predicts at j - 1 - k.

    Attributes:
        index: Flat indices b * L + j of the M positions with loss, ascending.
        depth: Offset of j in its document, (M,). Step k predicts the same token only if depth > k.
        shape: (B, L).
    """

    index: Tensor
    depth: Tensor
    shape: tuple[int, int]

    @classmethod
    def from_masks(cls, loss_mask: Tensor, document_ids: Tensor, position_ids: Tensor, shift: int) -> "Positions":
        """
        Args:
            loss_mask: 1 at tokens whose prediction counts, (B, L).
            document_ids: (B, L), -1 at padding.
            position_ids: Positions within the document, (B, L).
            shift: Position j has loss where `loss_mask[j + shift]` is set in the same document. 1: the predicted
                token's own mask; 0 and -1: conventions of other implementations.
        """
        # A mask shifted across a document boundary would select a token of another document.
        moved = shifted(loss_mask, shift).bool() & (shifted(document_ids, shift, fill=-1) == document_ids)
        # Not at a document's first position: step 0's draft index j - 1 would lie outside the document.
        wanted = moved & (document_ids >= 0) & (position_ids > 0)
        index = wanted.flatten().nonzero()[:, 0]
        return cls(index, position_ids.expand_as(loss_mask).flatten()[index], tuple(loss_mask.shape))

    def has_draft_index(self, step: int) -> Tensor:
        """Whether step `step` predicts the same token as each position, (M,) bool."""
        return self.depth > step

    def draft_indices(self, step: int) -> Tensor:
        """Flat indices at which that step predicts the same tokens, (M,); 0 where `has_draft_index` is false."""
        return (self.index - 1 - step).where(self.has_draft_index(step), self.index.new_tensor(0))

    def later_indices(self, num_steps: int) -> Tensor:
        """Flat indices that any step after the first is read at, ascending, at least one."""
        wanted = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.bool, device=self.index.device)
        wanted[0] = True  # `draft_indices` is 0 where a step has no prediction
        for step in range(1, num_steps):
            wanted[self.draft_indices(step)] = True
        return wanted.nonzero()[:, 0]


def shifted(x: Tensor, shift: int, fill: int = 0) -> Tensor:
    """y[:, j] = x[:, j + shift], `fill` out of range."""
    if shift == 0:
        return x
    return F.pad(x[:, shift:] if shift > 0 else x[:, :shift], (0, shift) if shift > 0 else (-shift, 0), value=fill)


def count_positions(config: ObjectiveConfig, positions: Positions, num_steps: int) -> Tensor:
    """The denominator of each step's loss, (S,) float32; additive over batches and processes."""
    if config.mean_over == "all":
        return torch.full((num_steps,), float(positions.shape[0] * positions.shape[1]))
    return torch.stack([positions.has_draft_index(step).sum() for step in range(num_steps)]).float()


@dataclass
class ObjectiveOutput:
    """
    Loss and statistics of a batch.

    Attributes:
        loss: Scalar with gradient.
        step_losses: Loss of each step before decay, (S,), detached.
        terms: Terms of each step at the M positions.
        positions: The M positions.
    """

    loss: Tensor
    step_losses: Tensor
    terms: list[StepTerms]
    positions: Positions


def compute_objective(
    config: ObjectiveConfig,
    normed_states: list[Tensor],
    target_hidden: Tensor,
    target_head: Callable[[Tensor], Tensor],
    draft_head: Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]],
    target_token_ids: Tensor | None,
    positions: Positions,
    denominators: Tensor,
    labels: Tensor | None = None,
) -> ObjectiveOutput:
    """
    The loss of a batch and its statistics.

    Args:
        normed_states: Inputs of the draft's head, one (B, L, H) per step.
        target_hidden: Inputs of the target's head, (B, L, H_target).
        target_head: (n, H_target) -> logits (n, V), called without gradient.
        draft_head: (n, H) -> logits (n, D); or one per step.
        target_token_ids: Target ids of the draft vocabulary, (D,), ascending; `None` for the whole vocabulary.
        positions: Where the loss is taken.
        denominators: Per step, (S,), from `count_positions`.
        labels: The text's tokens that the positions predict, (M,): their cross-entropy is the loss, instead of
            `config.loss`.
    """
    # Flat b * L + i, as in `Positions`: a chunk may mix positions of several sequences.
    states = [state.flatten(0, 1) for state in normed_states]
    hidden = target_hidden.flatten(0, 1)
    num_steps = len(states)
    draft_heads = [draft_head] * num_steps if callable(draft_head) else draft_head

    terms_of = partial(_chunk_terms, config, target_head, draft_heads, target_token_ids)
    collected: list[tuple[Tensor, ...]] = []
    indices = [positions.draft_indices(step) for step in range(num_steps)]
    # Without positions, one empty chunk keeps the loss a function of the draft: DDP waits for its gradients.
    chunk = config.head_chunk_size or max(len(positions.index), 1)
    for start in range(0, max(len(positions.index), 1), chunk):
        part = slice(start, start + chunk)
        arguments = (
            hidden[positions.index[part]],
            None if labels is None else labels[part],
            *(state[i[part]] for state, i in zip(states, indices, strict=True)),
        )
        if torch.is_grad_enabled() and config.head_chunk_size:
            collected.append(checkpoint(terms_of, *arguments, use_reentrant=False))
        else:
            collected.append(terms_of(*arguments))
    # Five tensors per step, four in the order of `StepTerms`; checkpointed functions return flat tuples.
    columns = [torch.cat(parts) for parts in zip(*collected, strict=True)]
    terms = [StepTerms(*columns[5 * step : 5 * step + 4]) for step in range(num_steps)]

    losses = []
    loss = config.loss if labels is None else "soft_cross_entropy"  # only how it is reduced
    for step, step_terms in enumerate(terms):
        mask = positions.has_draft_index(step)  # the other rows of the terms are index 0, computed but not counted
        if config.mask_outside_vocabulary:
            mask = mask & step_terms.covered
        value = config.token_loss_weight * step_loss(loss, step_terms, mask, denominators[step])
        if config.top_k_loss_weight:
            value = value + config.top_k_loss_weight * (columns[5 * step + 4] * mask).sum() / denominators[step]
        if config.feature_loss_weight:
            value = value + config.feature_loss_weight * feature_loss(
                states[step][indices[step]], hidden[positions.index], mask, denominators[step]
            )
        losses.append(value)
    step_losses = torch.stack(losses)
    weights = config.step_decay ** torch.arange(num_steps, device=step_losses.device)
    return ObjectiveOutput((step_losses * weights).sum(), step_losses.detach(), terms, positions)


def _chunk_terms(
    config: ObjectiveConfig,
    target_head: Callable[[Tensor], Tensor],
    draft_heads: Sequence[Callable[[Tensor], Tensor]],
    target_token_ids: Tensor | None,
    hidden: Tensor,
    labels: Tensor | None,
    *states: Tensor,
) -> tuple[Tensor, ...]:
    """Per step those of [`StepTerms`] and HASS's top-K loss, (n,) each, from the heads' inputs (n, H)."""
    # One target distribution serves all steps: they predict the same token from different draft indices.
    with torch.no_grad():
        target = TargetDistribution.from_logits(target_head(hidden), target_token_ids)
    out = []
    for head, state in zip(draft_heads, states, strict=True):
        logits = head(state).float()
        step = StepTerms.measure(config.loss, target, logits)
        if labels is not None:
            step.divergence = F.cross_entropy(logits, labels, reduction="none")
        extra = torch.zeros_like(step.divergence)
        if config.top_k_loss_weight:
            extra = top_k_cross_entropy(target, logits, config.top_k_loss_tokens)
        out += [step.divergence, step.acceptance, step.correct, step.best, extra]
    return tuple(out)


def feature_loss(states: Tensor, target_hidden: Tensor, mask: Tensor, denominator: Tensor) -> Tensor:
    """
    Smooth L1 between the inputs of the two heads, averaged over the width: the feature regression of EAGLE and
    EAGLE-2, which EAGLE-3 dropped (EAGLE, arXiv 2401.15077, section 4.2).
    """
    values = F.smooth_l1_loss(states.float(), target_hidden.to(states.device).float(), reduction="none").mean(-1)
    return (values * mask).sum() / denominator
