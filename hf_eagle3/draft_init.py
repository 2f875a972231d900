"""An untrained draft for a target: its sizes, its vocabulary, and weights initialised from the target.

Does not know data sets or training. Shape letters: H hidden, V target vocabulary, D draft vocabulary.
"""

from collections.abc import Iterable
from dataclasses import fields

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from . import vocabulary
from .configuration_eagle3 import Eagle3Config
from .modeling_eagle3 import Eagle3DraftModel
from .target.parts import unwrap_peft
from .target.target import Target


FC_SCALE = 0.3  # of the random part of `fc`, relative to the identity on the deepest tapped layer


def count_tokens(samples: Iterable[dict], vocab_size: int) -> torch.Tensor:
    """How often each token has loss in tokenised samples ({"input_ids", "loss_mask"}), (V,) int64."""
    counts = torch.zeros(vocab_size, dtype=torch.long)
    for sample in samples:
        ids, mask = torch.as_tensor(sample["input_ids"]).long(), torch.as_tensor(sample["loss_mask"]).bool()
        if len(ids) and int(ids.max()) >= vocab_size:
            raise ValueError(
                f"A sample contains token id {int(ids.max())}, but the target's vocabulary ends at {vocab_size - 1}: "
                "it comes from another tokenizer."
            )
        counts += ids[mask].bincount(minlength=vocab_size)
    return counts


def new_config(config_class: type[PreTrainedConfig], target: PreTrainedModel, overrides: dict) -> PreTrainedConfig:
    """
    A configuration of a draft for `target`.

    Raises:
        ValueError: an override that is no field of `config_class`, or sizes that do not fit.
    """
    if unknown := overrides.keys() - {f.name for f in fields(config_class)}:
        raise ValueError(f"`{config_class.__name__}` has no field {', '.join(map(repr, sorted(unknown)))}.")
    try:
        return config_class.from_target(target, **overrides)
    except StrictDataclassError as error:
        raise ValueError(" ".join(str(error).split())) from None


@torch.no_grad()
def start_as_identity(layer: nn.Linear) -> None:
    """Pass on the last of the layer's inputs, as many as it has outputs, plus small random weights."""
    nn.init.normal_(layer.weight, std=FC_SCALE / layer.in_features**0.5)
    layer.weight[:, -layer.out_features :] += torch.eye(layer.out_features)


def new_draft(
    target_model: PreTrainedModel,
    draft_vocab_size: int | None = None,
    token_counts: torch.Tensor | None = None,
    from_target: bool = True,
    **overrides,
) -> Eagle3DraftModel:
    """
    An untrained draft for a target, in float32.

    Args:
        target_model: The target.
        draft_vocab_size: Tokens the draft can propose (D). `None`: the target's whole vocabulary.
        token_counts: How often each token has loss, (V,), from [`count_tokens`]; required when D < V.
        from_target: Initialise `lm_head` from the target's rows, and `fc` as the identity on the deepest tapped layer
            plus small random weights. `False`: random, as in the original code.
        overrides: Fields of [`Eagle3Config`].

    Raises:
        ValueError: a draft vocabulary without counts, or sizes that do not fit.
    """
    base = unwrap_peft(target_model)
    if draft_vocab_size is not None:
        overrides["draft_vocab_size"] = draft_vocab_size
    config = new_config(Eagle3Config, base, overrides)
    if config.has_vocabulary_mapping and token_counts is None:
        raise ValueError(
            f"`draft_vocab_size` is {config.draft_vocab_size} of {config.vocab_size}; pass `token_counts` to choose "
            "which."
        )
    draft = Eagle3DraftModel(config)
    if config.has_vocabulary_mapping:
        ids = vocabulary.choose_target_ids(token_counts, config.draft_vocab_size)
        offsets, mask = vocabulary.mapping_from_target_ids(ids, config.vocab_size)
        draft.d2t.copy_(offsets)
        draft.t2d.copy_(mask)
    if from_target:
        initialise_from_target(draft, Target(base, config))
    return draft


@torch.no_grad()
def initialise_from_target(draft: Eagle3DraftModel, target: Target) -> None:
    """Head rows and an identity-like `fc` from the target; a no-op where widths differ."""
    config = draft.config
    if config.hidden_size != config.target_hidden_size:
        return
    if draft.lm_head is not None:
        draft.lm_head.weight.copy_(target.head_rows(draft.target_token_ids))
    # The taps are concatenated shallow to deep: the last H columns of `fc` read the deepest one.
    start_as_identity(draft.fc)
