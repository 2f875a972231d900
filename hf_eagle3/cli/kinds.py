"""The kinds of draft that `hf-eagle3 train` trains: configuration, trainer, and how a new one is made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from ..draft_model import DraftModel
from ..drafters.block import BlockDraftConfig, BlockDraftModel
from ..drafters.eagle import EagleDraftConfig, EagleDraftModel
from ..drafters.heads import HydraDraftConfig, HydraDraftModel, MedusaDraftConfig, MedusaDraftModel
from ..modeling_eagle3 import Eagle3Config, Eagle3DraftModel
from .options.train import BLOCK, EAGLE, EAGLE3, HASS, HYDRA, MEDUSA


@dataclass(frozen=True)
class Kind:
    """
    A kind of draft.

    Attributes:
        config, model: Its classes.
        new: (target, whether weights begin as the target's, fields of its configuration) -> an untrained draft;
            `None`: it needs a draft vocabulary.
        trainer: Returns the class of its Trainer, which needs the extra `train`.
    """

    config: type[PreTrainedConfig]
    model: type[DraftModel]
    new: Callable[[Any, bool, dict], DraftModel] | None
    trainer: Callable[[], type]


def _eagle3_trainer() -> type:
    from ..training import Eagle3Trainer

    return Eagle3Trainer


def _block_trainer() -> type:
    from ..drafters.block.training import BlockTrainer

    return BlockTrainer


def _heads_trainer() -> type:
    from ..drafters.heads.training import HeadsTrainer

    return HeadsTrainer


def _new_block(target, from_target: bool, fields: dict) -> DraftModel:
    from ..drafters.block.training import new_block_draft

    return new_block_draft(target, from_target, **fields)


def _new_eagle(target, from_target: bool, fields: dict) -> DraftModel:
    from ..drafters.eagle.training import new_eagle_draft

    return new_eagle_draft(target, from_target, **fields)


def _new_heads(kind: type) -> Callable[[Any, bool, dict], DraftModel]:
    def new(target, from_target: bool, fields: dict) -> DraftModel:
        from ..drafters.heads.training import new_heads

        return new_heads(kind, target, from_target, **fields)

    return new


_OF_EAGLE = Kind(EagleDraftConfig, EagleDraftModel, _new_eagle, _eagle3_trainer)  # HASS is trained otherwise
KINDS = {
    EAGLE3: Kind(Eagle3Config, Eagle3DraftModel, None, _eagle3_trainer),
    BLOCK: Kind(BlockDraftConfig, BlockDraftModel, _new_block, _block_trainer),
    EAGLE: _OF_EAGLE,
    HASS: _OF_EAGLE,
    MEDUSA: Kind(MedusaDraftConfig, MedusaDraftModel, _new_heads(MedusaDraftModel), _heads_trainer),
    HYDRA: Kind(HydraDraftConfig, HydraDraftModel, _new_heads(HydraDraftModel), _heads_trainer),
}


def kind_of(config: PreTrainedConfig) -> str:
    """The name of the kind that a configuration belongs to."""
    return next(name for name, kind in KINDS.items() if type(config) is kind.config)
