"""`Eagle3TrainingArguments`: transformers' `TrainingArguments` with the fields of `TrainingOptions`, checked."""

import math
from dataclasses import dataclass, fields

import torch
from transformers import TrainingArguments

from ..data.messages import decoded
from ..training_options import RECIPES, TrainingOptions
from ..tree_config import TreeConfig
from .objective import ObjectiveConfig


# What optimisers refuse later, with a bare message, or take and then diverge: each from 0 to this.
OPTIMISER_LIMITS = {
    "learning_rate": math.inf,
    "weight_decay": math.inf,
    "adam_epsilon": math.inf,
    "max_grad_norm": math.inf,
    "adam_beta1": 0.999999,
    "adam_beta2": 0.999999,
}


@dataclass
class Eagle3TrainingArguments(TrainingOptions, TrainingArguments):
    """
    Arguments of [`Eagle3Trainer`]: those of transformers, some with the paper's defaults, and the draft's own
    (`training_options.py`).

    Raises:
        ValueError: an invalid value; the message names it and a remedy.
    """

    def __post_init__(self):
        # Without an accelerator, transformers refuses bf16 unless `use_cpu` is set.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        if self.accelerator_config.dispatch_batches is None:
            # Streamed batches are padded to different lengths, so each process reads its own instead of a slice.
            self.accelerator_config.dispatch_batches = False
        values = vars(self)
        for name, useless in (("neftune_noise_alpha", None), ("label_smoothing_factor", 0.0)):
            if values[name] != useless:
                raise ValueError(f"`{name}` is for language models; drafts are trained without it.")
        if self.remove_unused_columns:
            raise ValueError(
                "`remove_unused_columns` must be off: the draft's forward has no arguments for the data's columns."
            )
        if isinstance(self.chat_template_kwargs, str):
            self.chat_template_kwargs = decoded(self.chat_template_kwargs)
        if not isinstance(self.chat_template_kwargs, dict | None):
            raise ValueError(
                f"`chat_template_kwargs` is {self.chat_template_kwargs!r}; give a JSON object such as "
                '{"enable_thinking": false}.'
            )
        if self.training_time_test_steps < 1:
            raise ValueError(f"`training_time_test_steps` is {self.training_time_test_steps}; it must be at least 1.")
        for name in ("loss", "mean_over", "loss_mask_shift", "block_loss", "head_loss"):
            choices = next(f for f in fields(self) if f.name == name).metadata["choices"]
            if values[name] not in choices:
                raise ValueError(f"`{name}` is {values[name]!r}; choose from {', '.join(map(str, choices))}.")
        if not 0 < self.step_decay <= 1:
            raise ValueError(f"`step_decay` is {self.step_decay}; it must lie in (0, 1].")
        if not 0 < self.block_temperature < math.inf or not 0 <= self.block_loss_decay < math.inf:
            raise ValueError(
                f"`block_temperature` is {self.block_temperature}, `block_loss_decay` {self.block_loss_decay}; the "
                "first must be positive, the second at least 0."
            )
        for name, least in (
            ("head_chunk_size", 0),
            ("generation_max_new_tokens", 1),
            ("num_anchors", 1),
            ("top_k_loss_tokens", 1),
        ):
            if values[name] < least:
                raise ValueError(f"`{name}` is {values[name]}; it must be at least {least}.")
        for name in ("token_loss_weight", "feature_loss_weight", "top_k_loss_weight", "feature_noise"):
            if not 0 <= values[name] < math.inf:
                raise ValueError(f"`{name}` is {values[name]}; it must be at least 0.")
        for name, most in OPTIMISER_LIMITS.items():
            if not 0 <= values[name] <= most:  # NaN is refused, too
                wanted = f"from 0 to {most}" if math.isfinite(most) else "at least 0"
                raise ValueError(f"`{name}` is {values[name]}; it must be {wanted}.")
        if self.max_length < 4:
            raise ValueError(f"`max_length` is {self.max_length}; a sample needs at least 4 tokens.")
        self.generation_tree_sizes()

    @classmethod
    def from_recipe(cls, recipe: str, **arguments) -> "Eagle3TrainingArguments":
        """
        The arguments of a recipe, "paper", "specforge" or "speculators", or for other drafters "eagle", "hass",
        "medusa", "hydra", "dflash" or "jetspec"; `arguments` override its values.

        speculators trains with Muon and AdamW; its recipe here has the same loss, steps and masks, and AdamW only.
        """
        if recipe not in RECIPES:
            raise ValueError(f"`recipe` is {recipe!r}; choose from {', '.join(RECIPES)}.")
        return cls(**RECIPES[recipe] | arguments)

    def objective(self) -> ObjectiveConfig:
        """The options of the objective."""
        return ObjectiveConfig(**{f.name: vars(self)[f.name] for f in fields(ObjectiveConfig)})

    def generation_tree_sizes(self) -> tuple[str, dict[str, int]] | None:
        """`generation_tree` as arguments of `with_tree`; `None` for the draft's default."""
        mode, _, numbers = self.generation_tree.partition(":")
        names = {"chain": ("tree_depth",), "static": ("num_draft_tokens", "tree_depth", "tree_top_k")}
        if self.generation_tree == "default":
            return None
        values = numbers.split(",")
        if mode not in names or len(values) != len(names[mode]) or not all(v.isdigit() for v in values):
            raise ValueError(
                f"`generation_tree` is {self.generation_tree!r}; write chain:DEPTH, static:NODES,DEPTH,TOP_K or "
                "default."
            )
        sizes = dict(zip(names[mode], map(int, values), strict=True))
        TreeConfig().with_changes(mode, **sizes)
        return mode, sizes
