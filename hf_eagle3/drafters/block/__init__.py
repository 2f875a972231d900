"""Block drafters: every level of the tree from one pass (DFlash, JetSpec)."""

import weakref
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from ...fitting import fit_notes
from ...generation.auto.traits import DraftingTraits
from ...generation.draft.interface import register_drafter
from ...tree_config import TreeConfig
from .configuration import BlockDraftConfig
from .dialects import MUSE, is_block_draft
from .drafter import BlockDrafter
from .modeling import BlockDraftModel


__all__ = ["BlockDraftConfig", "BlockDraftModel"]
logger = logging.get_logger(__name__)
_ADOPTED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # costs are kept by the draft: one per assistant


def sizes_of(draft: BlockDraftModel) -> TreeConfig:
    """No deeper than the block; raises ValueError for a given shape, as levels are not grown one after the other."""
    sizes = draft.tree_config
    if sizes.tree_mode == "sparse":
        raise ValueError("`tree_mode` 'sparse' does not go with a BlockDraftModel; take 'static'.")
    return sizes.shallower(draft.config.num_predictions).fitted(draft.config.vocab_size)


def noted(draft: BlockDraftModel, target: PreTrainedModel) -> BlockDraftModel:
    """`draft`; what does not fit its target is logged once. Its head is the target's, whatever the vocabulary."""
    for note in fit_notes(target.config, draft.config):
        logger.warning_once(note)
    return draft


def adopted(model: Any) -> BlockDraftModel | None:
    """The draft that shares the weights of transformers' own DFlash assistant; `None`: it is something else."""
    if not isinstance(model, PreTrainedModel) or model.config.model_type != MUSE:
        return None
    if model not in _ADOPTED:
        _ADOPTED[model] = BlockDraftModel.from_assistant(model)
    return _ADOPTED[model]


register_drafter(
    BlockDraftModel,
    BlockDrafter,
    fit=noted,
    sizes=sizes_of,
    features=lambda draft: draft.config,
    device=lambda draft, target: draft.fc.weight.device,
    identity=lambda draft: draft.layers,
    traits=lambda draft: DraftingTraits(in_one_pass=True),
    reads=is_block_draft,
    adopts=adopted,
    speculation_types=("dflash",),
)
