"""A new EAGLE draft to train. Its trainer is [`Eagle3Trainer`]: EAGLE, EAGLE-2 and HASS differ in options only."""

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedModel

from ...draft_init import FC_SCALE
from ...target.parts import unwrap_peft
from .configuration import EagleDraftConfig
from .modeling import EagleDraftModel


def new_eagle_draft(target_model: PreTrainedModel, from_target: bool = True, **overrides) -> EagleDraftModel:
    """
    An untrained EAGLE draft for a target, in float32.

    Args:
        target_model: The target.
        from_target: Initialise `fc` as the identity on the feature plus small random weights. `False`: all random.
        overrides: Fields of [`EagleDraftConfig`].

    Raises:
        ValueError: an unknown field, or a draft that is not as wide as the target, whose head it uses.
    """
    base = unwrap_peft(target_model)
    if unknown := overrides.keys() - EagleDraftConfig.__dataclass_fields__.keys():
        raise ValueError(f"`EagleDraftConfig` has no field {', '.join(map(repr, sorted(unknown)))}.")
    try:
        config = EagleDraftConfig.from_target(base, **overrides)
    except StrictDataclassError as error:
        raise ValueError(" ".join(str(error).split())) from None
    if config.hidden_size != config.target_hidden_size:
        raise ValueError(
            f"The draft is {config.hidden_size} wide, the target {config.target_hidden_size}: it predicts the "
            "target's features; take equal widths."
        )
    draft = EagleDraftModel(config)
    if from_target:
        with torch.no_grad():
            nn.init.normal_(draft.fc.weight, std=FC_SCALE / draft.fc.in_features**0.5)
            draft.fc.weight[:, -config.hidden_size :] += torch.eye(config.hidden_size)
    return draft
