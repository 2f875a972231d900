"""A new EAGLE draft to train. Its trainer is [`Eagle3Trainer`]: EAGLE, EAGLE-2 and HASS differ in options only."""

from transformers import PreTrainedModel

from ...draft_init import new_config, start_as_identity
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
    config = new_config(EagleDraftConfig, unwrap_peft(target_model), overrides)
    if config.hidden_size != config.target_hidden_size:
        raise ValueError(
            f"The draft is {config.hidden_size} wide, the target {config.target_hidden_size}: it predicts the "
            "target's features; take equal widths."
        )
    draft = EagleDraftModel(config)
    if from_target:
        start_as_identity(draft.fc)
    return draft
