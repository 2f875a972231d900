"""`BlockTrainer` trains a [`BlockDraftModel`] beside its frozen target; `new_block_draft` makes one to begin with.

Data, target, chunks of the head, metrics and everything of the Trainer are shared with EAGLE-3's training. Does not
know layers or losses (`objective.py`).
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...draft_init import new_config, start_as_identity
from ...target.parts import unwrap_peft
from ...target.target import Target
from ...training.arguments import Eagle3TrainingArguments
from ...training.base_trainer import DraftTrainer
from ...training.figures import ACCEPTED, AGREED, CORRECT, COVERED, POSITIONS, PREDICTIONS, TrainingFigures
from .configuration import BlockDraftConfig
from .modeling import BlockDraftModel
from .objective import BlockLosses, BlockObjective, Blocks, block_states, blocks_of, compute_losses, sample_anchors


ANCHORS = "anchors"  # of a batch, sampled before its denominators are counted
LEAST_MASK_NORM = 0.1  # of the mask's embedding row, of the median row's


class BlockTrainer(DraftTrainer):
    """
    Trains a [`BlockDraftModel`], e.g. from [`new_block_draft`], for a target model; arguments as for [`DraftTrainer`].

    The metric `simulated_acceptance_length` is missing: blocks hang below sampled anchors, not where cycles begin.

    Source: DFlash (arXiv 2602.06036), JetSpec (arXiv 2606.18394); anchors as in SpecForge and DeepSpec.
    """

    draft_class = BlockDraftModel
    recorded = ("block_loss", "block_loss_decay", "block_temperature", "num_anchors")

    def check_draft(self, draft: BlockDraftModel, args: Eagle3TrainingArguments) -> None:
        """As in [`DraftTrainer`]."""
        if draft.config.hidden_size != draft.config.target_hidden_size:
            raise ValueError(
                f"The draft is {draft.config.hidden_size} wide, the target {draft.config.target_hidden_size}: a block "
                "drafter shares the target's embedding and head; take equal widths."
            )
        if draft.lm_head is not None:  # DeepSpec's copy of the target's
            draft.lm_head.requires_grad_(False)
        self.objective = BlockObjective(**{name: vars(args)[name] for name in BlockObjective.__dataclass_fields__})
        self.num_predictions, self.decay = draft.config.num_predictions, args.block_loss_decay

    def num_steps(self) -> int:
        """As in [`DraftTrainer`]: levels of a tree."""
        return self.num_predictions

    def prepare_batch(self, batch: dict[str, Tensor]) -> None:
        """As in [`DraftTrainer`]: anchors, the same ones in every evaluation."""
        if ANCHORS not in batch:
            generator = None if self.model.training else torch.Generator().manual_seed(self.args.seed)
            masks = (batch["loss_mask"], batch["document_ids"], batch["position_ids"])
            batch[ANCHORS] = sample_anchors(*masks, self.objective.num_anchors, generator)

    def blocks(self, batch: dict[str, Tensor]) -> Blocks:
        """Those of a batch with anchors."""
        return blocks_of(batch[ANCHORS], batch["loss_mask"], batch["document_ids"], self.num_predictions, self.decay)

    def counts(self, batch: dict[str, Tensor]) -> Tensor:
        """As in [`DraftTrainer`]: the sum of all weights, (1,)."""
        return self.blocks(batch).weights.sum()[None]

    def objective_of(
        self, draft: BlockDraftModel, batch, features: Tensor, hidden: Tensor, denominators: Tensor
    ) -> BlockLosses:
        """As in [`DraftTrainer`]."""
        blocks, device = self.blocks(batch), batch["input_ids"].device
        features, hidden = features.to(device, draft.fc.weight.dtype), hidden.to(device)
        states = block_states(
            draft, lambda ids: self.reader.embedding_rows(ids).to(device), batch, features, blocks.anchors
        )
        return compute_losses(
            self.objective, states, blocks, batch["input_ids"], hidden, self.target_head, denominators
        )

    @torch.no_grad()
    def add_figures(self, figures: TrainingFigures, measured: BlockLosses, batch: dict[str, Tensor]) -> None:
        """As in [`DraftTrainer`]."""
        terms, levels, dtype = measured.terms, measured.levels, figures.steps.dtype
        for row, values in ((CORRECT, terms.correct), (ACCEPTED, terms.acceptance), (PREDICTIONS, terms.covered)):
            figures.steps[row].index_add_(0, levels, values.to(dtype))
        figures.totals[COVERED] += terms.covered.sum()
        figures.totals[AGREED] += (terms.best == measured.labels).sum()
        figures.totals[POSITIONS] += len(levels)


def new_block_draft(target_model: PreTrainedModel, from_target: bool = True, **overrides) -> BlockDraftModel:
    """
    An untrained block drafter for a target, in float32.

    Args:
        target_model: The target.
        from_target: Initialise `fc` as the identity on the deepest tapped layer plus small random weights, and
            projections by their width: features reach the output through attention alone, and with the usual 0.02
            hardly any of a narrow target's would. `False`: all random with 0.02, as in the original code.
        overrides: Fields of [`BlockDraftConfig`]. Without `mask_token_id` the padding token, or the last one of the
            vocabulary, whichever has an embedding row that is no zero.

    Raises:
        ValueError: sizes that do not fit, or a mask whose embedding row is zero: it would say nothing of its position.
    """
    base = unwrap_peft(target_model)
    chosen = overrides.get("mask_token_id")
    config = new_config(BlockDraftConfig, base, overrides)
    norms = Target(base, config).embedding_weight.detach().float().norm(dim=1)
    candidates = [config.pad_token_id, config.vocab_size - 1] if chosen is None else [chosen]
    usable = [i for i in candidates if i is not None and norms[i] > LEAST_MASK_NORM * norms.median()]
    if not usable:
        raise ValueError(
            f"`mask_token_id` {candidates[-1]} has an embedding row of zeros in the target, which every layer would "
            "normalise to nothing; pass an unused token with a row of its own."
        )
    draft = BlockDraftModel(config.changed({"mask_token_id": usable[0]}))
    if from_target and config.hidden_size == config.target_hidden_size:
        with torch.no_grad():
            for module in draft.layers.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)
        start_as_identity(draft.fc)
    return draft
