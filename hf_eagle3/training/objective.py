"""From unrolled draft states and the target's last hidden states to losses and figures, chunk by chunk.

Both heads are applied to a few hundred positions at a time and again in the backward pass, so neither (B, L, V) nor
S times (B, L, D) numbers ever exist at once; positions that no loss reads are skipped. Does not know the draft's
layers nor how the target ran.

Shape letters: B batch, L sequence, H hidden, V target vocabulary, D draft vocabulary, S steps, M positions that count.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .losses import StepTerms, TargetDistribution, step_loss


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised; the fields are those of `Eagle3TrainingArguments`, documented there."""

    loss: str = "soft_cross_entropy"
    step_decay: float = 0.8
    loss_mask_shift: int = 1
    mask_outside_vocabulary: bool = True
    mean_over: str = "loss_mask"
    feature_loss_weight: float = 0.0
    head_chunk_size: int = 256


@dataclass
class Positions:
    """
    Where the loss is taken. Target position j holds the distribution of token j + 1; step k's draft row is j - 1 - k.

    Attributes:
        index: Flat indices b * L + j of the M positions where a loss counts, ascending.
        depth: How far j is into its document, (M,). Step k has a row for it if depth > k.
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
            document_ids: (B, L); -1 at padding.
            position_ids: Positions inside the document, (B, L).
            shift: Position j counts where `loss_mask[j + shift]` is set, in the same document: 1 is the token that is
                predicted there, 0 and -1 are peers' conventions.
        """
        moved = shifted(loss_mask, shift).bool() & (shifted(document_ids, shift, fill=-1) == document_ids)
        wanted = moved & (document_ids >= 0) & (position_ids > 0)
        index = wanted.flatten().nonzero()[:, 0]
        return cls(index, position_ids.expand_as(loss_mask).flatten()[index], tuple(loss_mask.shape))

    def has_row(self, step: int) -> Tensor:
        """Where step `step` has a draft row, (M,) bool."""
        return self.depth > step

    def rows(self, step: int) -> Tensor:
        """Flat indices of that step's draft rows, (M,); the first row where there is none."""
        return (self.index - 1 - step).where(self.has_row(step), self.index.new_tensor(0))

    def later_rows(self, num_steps: int) -> Tensor:
        """Flat indices of the draft rows that a step after the first has, ascending, at least one."""
        wanted = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.bool, device=self.index.device)
        wanted[0] = True
        for step in range(1, num_steps):
            wanted[self.rows(step)] = True
        return wanted.nonzero()[:, 0]


def shifted(x: Tensor, shift: int, fill: int = 0) -> Tensor:
    """y[:, j] = x[:, j + shift], `fill` beyond the ends."""
    if shift == 0:
        return x
    return F.pad(x[:, shift:] if shift > 0 else x[:, :shift], (0, shift) if shift > 0 else (-shift, 0), value=fill)


def count_positions(config: ObjectiveConfig, positions: Positions, num_steps: int) -> Tensor:
    """What each step's loss is divided by, (S,) float32; adds up over batches and processes."""
    if config.mean_over == "all":
        return torch.full((num_steps,), float(positions.shape[0] * positions.shape[1]))
    return torch.stack([positions.has_row(step).sum() for step in range(num_steps)]).float()


@dataclass
class ObjectiveOutput:
    """
    A batch's loss and what it showed.

    Attributes:
        loss: Scalar with gradient.
        terms: Per step.
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
    draft_head: Callable[[Tensor], Tensor],
    target_token_ids: Tensor | None,
    positions: Positions,
    denominators: Tensor,
) -> ObjectiveOutput:
    """
    Args:
        normed_states: The draft's states before its head, one (B, L, H) per step.
        target_hidden: What the target's head reads, (B, L, H_target).
        target_head: (n, H_target) -> logits (n, V); runs without gradient.
        draft_head: (n, H) -> logits (n, D).
        target_token_ids: The draft vocabulary, (D,), ascending; `None` for all.
        denominators: Per step, (S,); see `count_positions`.
    """
    states = [state.flatten(0, 1) for state in normed_states]
    hidden = target_hidden.flatten(0, 1)
    num_steps = len(states)

    def terms_of(hidden_chunk: Tensor, *chunks: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            target = TargetDistribution.from_logits(target_head(hidden_chunk), target_token_ids)
        out = []
        for chunk in chunks:
            step = StepTerms.measure(config.loss, target, draft_head(chunk).float())
            out += [step.divergence, step.acceptance, step.correct, step.best]
        return tuple(out)

    collected: list[tuple[Tensor, ...]] = []
    rows = [positions.rows(step) for step in range(num_steps)]
    # One empty chunk where no position counts, so that the loss is still a function of the draft.
    chunk = config.head_chunk_size or max(len(positions.index), 1)
    for start in range(0, max(len(positions.index), 1), chunk):
        part = slice(start, start + chunk)
        arguments = (hidden[positions.index[part]], *(state[r[part]] for state, r in zip(states, rows, strict=True)))
        if torch.is_grad_enabled() and config.head_chunk_size:
            collected.append(checkpoint(terms_of, *arguments, use_reentrant=False))
        else:
            collected.append(terms_of(*arguments))
    columns = [torch.cat(parts) for parts in zip(*collected, strict=True)]
    terms = [StepTerms(*columns[4 * step : 4 * step + 4]) for step in range(num_steps)]

    losses = []
    for step, step_terms in enumerate(terms):
        mask = positions.has_row(step)
        if config.mask_outside_vocabulary:
            mask = mask & step_terms.covered
        value = step_loss(config.loss, step_terms, mask, denominators[step])
        if config.feature_loss_weight:
            value = value + config.feature_loss_weight * feature_loss(
                states[step][rows[step]], hidden[positions.index], mask, denominators[step]
            )
        losses.append(value)
    step_losses = torch.stack(losses)
    weights = config.step_decay ** torch.arange(num_steps, device=step_losses.device)
    return ObjectiveOutput((step_losses * weights).sum(), step_losses.detach(), terms, positions)


def feature_loss(states: Tensor, target_hidden: Tensor, mask: Tensor, denominator: Tensor) -> Tensor:
    """
    Smooth L1 between what the two heads read, averaged over the width: EAGLE's and EAGLE-2's regression of features,
    which EAGLE-3 dropped (EAGLE, arXiv 2401.15077, section 4.2).
    """
    values = F.smooth_l1_loss(states.float(), target_hidden.to(states.device).float(), reduction="none").mean(-1)
    return (values * mask).sum() / denominator
