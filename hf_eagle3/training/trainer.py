"""`Eagle3Trainer`: trains an EAGLE-3 draft by training-time test. Does not know the draft's layers or the losses."""

import torch
from torch import Tensor, nn

from ..modeling_eagle3 import Eagle3DraftModel
from .arguments import Eagle3TrainingArguments
from .base_trainer import DraftTrainer
from .figures import TrainingFigures
from .objective import ObjectiveOutput, Positions, compute_objective, count_positions, shifted
from .target_reader import segments_of
from .training_time_test import training_time_test


class Eagle3Trainer(DraftTrainer):
    """
    Trains an [`Eagle3DraftModel`], e.g. from [`new_draft`], for a target model; arguments as for [`DraftTrainer`].

    Source: EAGLE-3 (arXiv 2503.01840), sections 3.2 and 4.
    """

    draft_class = Eagle3DraftModel
    recorded = ("loss", "training_time_test_steps", "step_decay")

    def check_draft(self, draft: Eagle3DraftModel, args: Eagle3TrainingArguments) -> None:
        """As in [`DraftTrainer`]."""
        if args.feature_loss_weight and draft.config.hidden_size != draft.config.target_hidden_size:
            raise ValueError(
                f"`feature_loss_weight` compares the draft's states ({draft.config.hidden_size} wide) with the "
                f"target's ({draft.config.target_hidden_size}); it needs equal widths."
            )
        window = draft.config.sliding_window
        if window is not None and args.max_length > window:
            raise ValueError(
                f"`max_length` is {args.max_length}, the draft's `sliding_window` {window}: training-time test "
                "attends to every position. Lower `max_length`, or load the draft with sliding_window=None."
            )
        self.objective = args.objective()

    def num_steps(self) -> int:
        """As in [`DraftTrainer`]: training-time-test steps."""
        return self.args.training_time_test_steps

    def counts(self, batch: dict[str, Tensor]) -> Tensor:
        """As in [`DraftTrainer`]."""
        return count_positions(self.objective, self._positions(batch), self.num_steps())

    def _positions(self, batch: dict[str, Tensor]) -> Positions:
        return Positions.from_masks(
            batch["loss_mask"], batch["document_ids"], batch["position_ids"], self.objective.loss_mask_shift
        )

    def objective_of(
        self, draft: Eagle3DraftModel, batch, features: Tensor, hidden: Tensor, denominators: Tensor
    ) -> ObjectiveOutput:
        """As in [`DraftTrainer`]: the draft unrolled over its own outputs."""
        ids, device = batch["input_ids"], batch["input_ids"].device
        uses_own = draft.config.embed_trained or draft.config.hidden_size != draft.config.target_hidden_size
        embeds = draft.embed_tokens(ids) if uses_own else self.reader.embedding_rows(ids)
        dtype = draft.fc.weight.dtype
        positions = self._positions(batch)
        if self.args.feature_noise and draft.training:
            features = features + (2 * torch.rand_like(features) - 1) * self.args.feature_noise
        normed = training_time_test(
            draft,
            embeds.to(device, dtype),
            features.to(device, dtype),
            self.num_steps(),
            batch["position_ids"],
            segments_of(batch["document_ids"]),
            positions.later_indices(self.num_steps()),
            draft.gradient_checkpointing and draft.training,
        )
        vocabulary = draft.target_token_ids
        if draft.lm_head is not None:
            draft_head = draft.lm_head
        else:
            frozen = self.reader.head_rows(vocabulary).to(device)

            def draft_head(states: Tensor) -> Tensor:
                return nn.functional.linear(states.to(frozen.dtype), frozen)

        return compute_objective(
            self.objective, normed, hidden, self.target_head, draft_head, vocabulary, positions, denominators
        )

    @torch.no_grad()
    def add_figures(self, figures: TrainingFigures, measured: ObjectiveOutput, batch: dict[str, Tensor]) -> None:
        """As in [`DraftTrainer`]."""
        following = shifted(batch["input_ids"], 1).flatten()[measured.positions.index]
        figures.add(measured, following, self.draft().target_token_ids)
