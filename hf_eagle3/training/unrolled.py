"""The objective of an EAGLE-3 draft on one batch, unrolled over its own outputs. Does not know who optimises it."""

from typing import Protocol

import torch
from torch import Tensor, nn

from ..modeling_eagle3 import Eagle3DraftModel
from .objective import ObjectiveConfig, ObjectiveOutput, Positions, compute_objective
from .target_reader import segments_of
from .training_time_test import training_time_test


class TargetParts(Protocol):
    """What the objective asks of the target; it is never given gradients."""

    def embedding_rows(self, ids: Tensor) -> Tensor:
        """Embedding rows, (..., H)."""

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (n, V) of last hidden states (n, H_target)."""

    def head_rows(self, ids: Tensor | None) -> Tensor:
        """Rows of the head for `ids` (D,), or all, (D, H)."""


def positions_of(batch: dict[str, Tensor], config: ObjectiveConfig) -> Positions:
    """Where a batch has loss."""
    return Positions.from_masks(
        batch["loss_mask"], batch["document_ids"], batch["position_ids"], config.loss_mask_shift
    )


def unrolled_objective(
    draft: Eagle3DraftModel,
    target: TargetParts,
    config: ObjectiveConfig,
    num_steps: int,
    batch: dict[str, Tensor],
    features: Tensor,
    hidden: Tensor,
    denominators: Tensor,
) -> ObjectiveOutput:
    """
    Loss and statistics of a batch.

    Args:
        target: Its embedding and head.
        num_steps: Training-time-test steps (S).
        batch: The collator's.
        features, hidden: Of the tapped layers (B, L, F), and inputs of the target's head (B, L, H_target).
        denominators: Per step, (S,), from `count_positions`.
    """
    ids, device = batch["input_ids"], batch["input_ids"].device
    uses_own = draft.config.embed_trained or draft.config.hidden_size != draft.config.target_hidden_size
    embeds = draft.embed_tokens(ids) if uses_own else target.embedding_rows(ids).detach()
    dtype = draft.fc.weight.dtype
    positions = positions_of(batch, config)
    normed = training_time_test(
        draft,
        embeds.to(device, dtype),
        features.to(device, dtype),
        num_steps,
        batch["position_ids"],
        segments_of(batch["document_ids"]),
        positions.later_indices(num_steps),
        draft.gradient_checkpointing and draft.training,
    )
    vocabulary = draft.target_token_ids
    if draft.lm_head is not None:
        draft_head = draft.lm_head
    else:
        frozen = target.head_rows(vocabulary).detach().to(device)

        def draft_head(states: Tensor) -> Tensor:
            return nn.functional.linear(states.to(frozen.dtype), frozen)

    def target_head(states: Tensor) -> Tensor:
        with torch.no_grad():
            return target.head(states).to(device)

    return compute_objective(config, normed, hidden, target_head, draft_head, vocabulary, positions, denominators)
