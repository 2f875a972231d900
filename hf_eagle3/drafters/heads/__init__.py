"""Drafts that are heads beside the target's own: Medusa, where they are independent, and Hydra, where each reads the
tokens of those before it."""

from transformers import PreTrainedModel
from transformers.utils import logging

from ...fitting import fit_notes
from ...generation.draft.interface import register_drafter
from .configuration import HydraDraftConfig, MedusaDraftConfig, is_hydra, is_medusa
from .drafter import HeadsDrafter
from .modeling import HeadsDraftModel, HydraDraftModel, MedusaDraftModel


__all__ = ["HydraDraftConfig", "HydraDraftModel", "MedusaDraftConfig", "MedusaDraftModel"]
logger = logging.get_logger(__name__)


def noted(draft: HeadsDraftModel, target: PreTrainedModel) -> HeadsDraftModel:
    """`draft`; what does not fit its target is logged once."""
    for note in fit_notes(target.config, draft.config):
        logger.warning_once(note)
    return draft


for kind, reads in ((MedusaDraftModel, is_medusa), (HydraDraftModel, is_hydra)):
    register_drafter(
        kind,
        HeadsDrafter,
        fit=noted,
        sizes=lambda draft: draft.tree_config.shallower(draft.config.num_heads).fitted(draft.config.vocab_size),
        features=lambda draft: draft.config,
        device=lambda draft, target: draft.device,
        identity=lambda draft: draft.heads[0],
        reads=reads,
    )
