"""`TrainingOptions`: fields that draft training adds to transformers' `TrainingArguments`, and defaults it changes.

Each field's help is its only documentation; the command line and the tests read it. Does not know how options are
used, and does not import torch, to keep `hf-eagle3 train --help` fast.
"""

from dataclasses import dataclass, field


LOSSES = ("soft_cross_entropy", "kl", "lk_alpha", "lk_lambda")
BLOCK_LOSSES = ("cross_entropy", "kl")
HEAD_LOSSES = ("cross_entropy", "soft_cross_entropy")
# Recipes of block drafters: their value of `is_causal`; the rest is in `RECIPES`.
BLOCK_RECIPES = {"dflash": False, "jetspec": True}
# Recipes by kind of drafter, its default first.
RECIPES_OF: dict[str, tuple[str, ...]] = {
    "eagle3": ("paper", "specforge", "speculators"),
    "block": ("jetspec", "dflash"),
    **{name: (name,) for name in ("eagle", "hass", "medusa", "hydra")},
}
# EAGLE's code trains 20 epochs of 68,000 conversations in steps of 4, 2,000 of 800,000 steps of warm-up; it clips
# gradients by value.
_EAGLE = {
    "learning_rate": 3e-5,
    "warmup_steps": 0.0025,
    "step_decay": 1.0,
    "token_loss_weight": 0.1,
    "feature_loss_weight": 1.0,
    "feature_noise": 0.1,
    "train_lm_head": False,
}
_HEADS = {
    "learning_rate": 1e-3,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
}
_BLOCK_OPTIMISER = {
    "learning_rate": 6e-4,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.04,
}
# Recipes as field values, from the sources of SpecForge (git a6b6b023) and speculators 0.9.0, whose recorded losses
# and gradients are in tests/data/parity.
RECIPES: dict[str, dict] = {
    "paper": {},
    "specforge": {
        "training_time_test_steps": 7,
        "step_decay": 0.8,
        "loss": "soft_cross_entropy",
        "loss_mask_shift": -1,
        "mask_outside_vocabulary": True,
        "mean_over": "all",
        "learning_rate": 1e-4,
        "adam_beta2": 0.999,
        "weight_decay": 0.0,
        "max_grad_norm": 0.5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.015,
    },
    "speculators": {
        "training_time_test_steps": 3,
        "step_decay": 1.0,
        "loss": "kl",
        "loss_mask_shift": 0,
        "mask_outside_vocabulary": False,
        "mean_over": "loss_mask",
        "train_lm_head": False,
    },
    # EAGLE and EAGLE-2 (arXiv 2401.15077, section 4; SafeAILab/EAGLE's train/main.py).
    "eagle": {"training_time_test_steps": 1, **_EAGLE},
    # HASS (arXiv 2408.15766): three aligned steps, ten tokens distilled with weight 1, the rest as EAGLE.
    "hass": {"training_time_test_steps": 3, "top_k_loss_weight": 1.0, "top_k_loss_tokens": 10, **_EAGLE},
    # Medusa-1 (arXiv 2401.10774): lambda_k = 0.8^k, section 2.2.1; optimiser of FasterDecoding/Medusa's README.
    "medusa": {"head_loss": "cross_entropy", "step_decay": 0.8, **_HEADS},
    # Hydra (arXiv 2402.05109) with its teacher loss, every head alike (zankner/Hydra's train.py); optimiser as Medusa.
    "hydra": {"head_loss": "soft_cross_entropy", "step_decay": 1.0, **_HEADS},
    # DFlash (arXiv 2602.06036): SpecForge's and DeepSpec's configurations of it.
    "dflash": {"block_loss": "cross_entropy", "block_loss_decay": 7.0, **_BLOCK_OPTIMISER},
    # JetSpec (arXiv 2606.18394), section 2.3: forward KL, uniform weights; its optimiser is DFlash's.
    "jetspec": {"block_loss": "kl", "block_loss_decay": 0.0, **_BLOCK_OPTIMISER},
}


@dataclass
class TrainingOptions:
    """The fields; [`Eagle3TrainingArguments`] validates them."""

    # Defaults that differ from transformers'
    learning_rate: float = field(
        default=5e-5, metadata={"help": "Peak learning rate. EAGLE-3, section 4: 5e-5; SpecForge: 1e-4."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's beta2. EAGLE-3, section 4: betas (0.9, 0.95)."})
    max_grad_norm: float = field(default=0.5, metadata={"help": "Gradient clipping. EAGLE-3, section 4: 0.5."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must be off: the draft's forward has no arguments for the data's columns."}
    )

    # Training-time test
    training_time_test_steps: int = field(
        default=7,
        metadata={
            "help": "Number of steps the draft is unrolled over its own outputs. Original code: 7; 1 is EAGLE's "
            "training."
        },
    )
    step_decay: float = field(
        default=0.8, metadata={"help": "Weight of step k's loss: step_decay^k. Original code and SpecForge: 0.8."}
    )
    loss: str = field(
        default="soft_cross_entropy",
        metadata={
            "help": f"One of {', '.join(LOSSES)}, all against the target's distribution on the draft vocabulary. "
            "Original code: soft_cross_entropy; lk_*: arXiv 2602.23881.",
            "choices": list(LOSSES),
        },
    )
    loss_mask_shift: int = field(
        default=1,
        metadata={
            "help": "Target position j has loss where loss_mask[j + shift] is set. 1, the mask of the predicted "
            "token, is correct; 0 (speculators) and -1 (SpecForge) reproduce other implementations.",
            "choices": [-1, 0, 1],
        },
    )
    mask_outside_vocabulary: bool = field(
        default=True,
        metadata={
            "help": "Exclude positions whose target argmax is outside the draft vocabulary, where no draft token "
            "can be accepted at temperature 0. Original code and SpecForge: true; speculators: false."
        },
    )
    mean_over: str = field(
        default="loss_mask",
        metadata={
            "help": "loss_mask: mean over positions selected by the loss mask, over all processes and accumulated "
            "batches (those excluded by mask_outside_vocabulary count as 0, so losses with different draft "
            "vocabularies are not comparable); all: over all positions of the batch, including padding (SpecForge).",
            "choices": ["loss_mask", "all"],
        },
    )
    feature_loss_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of EAGLE's regression of the target's last hidden states (EAGLE and EAGLE-2: 1, with the "
            "cross-entropy at 0.1). EAGLE-3 dropped it: 0. Requires a draft as wide as the target."
        },
    )
    token_loss_weight: float = field(
        default=1.0, metadata={"help": "Weight of --loss beside the regression of features. EAGLE, HASS: 0.1."}
    )
    top_k_loss_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of HASS's cross-entropy over the target's --top-k-loss-tokens likeliest tokens. HASS: 1."
        },
    )
    top_k_loss_tokens: int = field(default=10, metadata={"help": "Tokens of that loss. HASS: 10."})
    feature_noise: float = field(
        default=0.0,
        metadata={
            "help": "Uniform noise of at most this on the features that the draft reads in training. EAGLE: 0.1."
        },
    )
    train_lm_head: bool = field(
        default=True,
        metadata={"help": "Train the draft's head. speculators freezes it at the target's rows: false."},
    )

    # Medusa and Hydra
    head_loss: str = field(
        default="cross_entropy",
        metadata={
            "help": "Medusa and Hydra heads: cross_entropy with the text (Medusa-1), soft_cross_entropy with the "
            "target's distribution (Hydra's teacher loss).",
            "choices": list(HEAD_LOSSES),
        },
    )

    # Block drafters
    num_anchors: int = field(
        default=512,
        metadata={"help": "Block drafters: blocks sampled per sequence. DFlash, SpecForge, DeepSpec: 512."},
    )
    block_loss: str = field(
        default="kl",
        metadata={
            "help": "Block drafters: kl, of target and draft (JetSpec); cross_entropy with the text (DFlash).",
            "choices": list(BLOCK_LOSSES),
        },
    )
    block_loss_decay: float = field(
        default=0.0,
        metadata={
            "help": "Block drafters: level d's loss weighs exp(-(d - 1) / block_loss_decay); 0: all alike (JetSpec). "
            "DFlash: 7 with blocks of 16 (SpecForge), 4 with blocks of 7 (DeepSpec)."
        },
    )
    block_temperature: float = field(
        default=1.0,
        metadata={"help": "Block drafters: temperature of the KL, which is multiplied by its square. JetSpec."},
    )

    # Cost
    head_chunk_size: int = field(
        default=256,
        metadata={
            "help": "Positions per pass through the two heads, which are recomputed in the backward pass; lower it "
            "to save memory. 0 stores the logits of all positions and steps instead: faster, if they fit."
        },
    )
    max_length: int = field(
        default=2048,
        metadata={
            "help": "Maximum length in tokens; longer samples are truncated. Original code: 2048. Also the length "
            "of packed sequences."
        },
    )
    chat_template_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Extra arguments of the chat template, as a JSON object, e.g. {"enable_thinking": false}; the '
            "draft's card lists them."
        },
    )
    packing: bool = field(
        default=False,
        metadata={"help": "Pack several samples into sequences of max_length. They do not attend to each other."},
    )

    # Evaluation by speculative generation
    num_generation_prompts: int = field(
        default=8,
        metadata={
            "help": "At evaluation, number of evaluation samples to generate speculatively for, to report the true "
            "acceptance length. 0: off."
        },
    )
    generation_max_new_tokens: int = field(default=64, metadata={"help": "New tokens per prompt in that measurement."})
    generation_tree: str = field(
        default="chain:5",
        metadata={
            "help": "Draft tree of that measurement: chain:DEPTH, static:NODES,DEPTH,TOP_K, or default for the "
            "draft's own."
        },
    )
