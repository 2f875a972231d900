"""Drafts that predict the target's next feature: EAGLE, EAGLE-2 and HASS, which differ in tree and training only."""

from ...generation.draft.kinds import register_eagle3
from .configuration import EagleDraftConfig, is_eagle
from .modeling import EagleDraftModel


__all__ = ["EagleDraftConfig", "EagleDraftModel"]

register_eagle3(EagleDraftModel, reads=is_eagle)
