"""Drafts that predict the target's next feature: EAGLE, EAGLE-2 and HASS, which differ in tree and training only."""

from ...fitting import fit_to
from ...generation.draft.interface import register_drafter
from ...generation.draft.kinds import open_eagle3
from .configuration import EagleDraftConfig, is_eagle
from .modeling import EagleDraftModel


__all__ = ["EagleDraftConfig", "EagleDraftModel"]

register_drafter(
    EagleDraftModel,
    open_eagle3,
    fit=fit_to,
    sizes=lambda draft: draft.tree_config.fitted(draft.config.draft_vocab_size),
    features=lambda draft: draft.config,
    vocabulary=lambda draft: draft.target_token_ids,
    device=lambda draft, target: draft.fc.weight.device,
    identity=lambda draft: draft.midlayer,
    reads=is_eagle,
)
