"""`HeadsTrainer` trains Medusa's and Hydra's heads beside their frozen target; `new_heads` makes some to begin with.

Data, target, chunks of the heads, metrics and everything of the Trainer are shared with EAGLE-3's training: head k at
index i predicts x[i+2+k], as training-time-test step k does there.

Shape letters: B batch, L sequence, H hidden, V vocabulary.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ...draft_init import new_config
from ...target.parts import unwrap_peft
from ...target.target import Target
from ...training.arguments import Eagle3TrainingArguments
from ...training.objective import ObjectiveOutput, compute_objective, shifted
from ...training.trainer import Eagle3Trainer
from ...training.unrolled import positions_of
from .modeling import HeadsDraftModel


class HeadsTrainer(Eagle3Trainer):
    """
    Trains a [`MedusaDraftModel`] or [`HydraDraftModel`], e.g. from [`new_heads`]; arguments as for [`DraftTrainer`].

    Source: Medusa-1 (arXiv 2401.10774, section 2.2.1), Hydra (arXiv 2402.05109).
    """

    draft_class = HeadsDraftModel
    recorded = ("head_loss", "step_decay")

    def check_draft(self, draft: HeadsDraftModel, args: Eagle3TrainingArguments) -> None:
        """As in [`DraftTrainer`]."""
        self.objective, self.num_heads = args.objective(), draft.config.num_heads
        self.labelled = args.head_loss == "cross_entropy"
        if self.objective.feature_loss_weight:
            raise ValueError(
                "`feature_loss_weight` compares states with the target's; heads have none. Leave it at 0."
            )

    def num_steps(self) -> int:
        """As in [`DraftTrainer`]: heads."""
        return self.num_heads

    def objective_of(
        self, draft: HeadsDraftModel, batch, features: Tensor, hidden: Tensor, denominators: Tensor
    ) -> ObjectiveOutput:
        """As in [`DraftTrainer`]."""
        ids, positions = batch["input_ids"], positions_of(batch, self.objective)
        states = [features.to(ids.device, draft.dtype)] * self.num_heads
        if draft.reads_tokens:
            rows = self.reader.embedding_rows(ids).to(states[0])
            # Index i of head k: the state of x[i], and the rows of x[i+1] to x[i+1+k].
            behind = [F.pad(rows[:, 1 + k :], (0, 0, 0, min(1 + k, rows.shape[1]))) for k in range(self.num_heads)]
            states = [torch.cat((states[k], *behind[: k + 1]), dim=2) for k in range(self.num_heads)]
        following = shifted(ids, 1).flatten()[positions.index]
        return compute_objective(
            self.objective,
            states,
            hidden,
            self.target_head,
            [partial(draft.logits, head) for head in range(self.num_heads)],
            None,
            positions,
            denominators,
            following if self.labelled else None,
        )


def new_heads(
    kind: type[HeadsDraftModel], target_model: PreTrainedModel, from_target: bool = True, **overrides
) -> HeadsDraftModel:
    """
    Untrained heads of `kind` for a target, in float32.

    Args:
        target_model: The target.
        from_target: Begin as the target's own head, see `start_from`. `False`: random.
        overrides: Fields of its configuration: `num_heads`, `num_layers`.

    Raises:
        ValueError: an unknown field, or sizes that do not fit.
    """
    base = unwrap_peft(target_model)
    config = new_config(kind.config_class, base, overrides)
    draft = kind(config)
    if from_target:
        draft.start_from(Target(base, config).head_rows(None).float())
    return draft
