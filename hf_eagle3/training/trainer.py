"""`Eagle3Trainer`: trains an EAGLE-3 draft by training-time test. Does not know the draft's layers or the losses."""

import torch
from torch import Tensor

from ..modeling_eagle3 import Eagle3DraftModel
from .arguments import Eagle3TrainingArguments
from .base_trainer import DraftTrainer
from .figures import TrainingFigures
from .objective import ObjectiveOutput, count_positions, shifted
from .unrolled import positions_of, unrolled_objective


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
        return count_positions(self.objective, positions_of(batch, self.objective), self.num_steps())

    def objective_of(
        self, draft: Eagle3DraftModel, batch, features: Tensor, hidden: Tensor, denominators: Tensor
    ) -> ObjectiveOutput:
        """As in [`DraftTrainer`]: the draft unrolled over its own outputs."""
        if self.args.feature_noise and draft.training:
            features = features + (2 * torch.rand_like(features) - 1) * self.args.feature_noise
        return unrolled_objective(
            draft, self.reader, self.objective, self.num_steps(), batch, features, hidden, denominators
        )

    @torch.no_grad()
    def add_figures(self, figures: TrainingFigures, measured: ObjectiveOutput, batch: dict[str, Tensor]) -> None:
        """As in [`DraftTrainer`]."""
        following = shifted(batch["input_ids"], 1).flatten()[measured.positions.index]
        figures.add(measured, following, self.draft().target_token_ids)
