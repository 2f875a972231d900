"""`TrainingOptions`: what training of a draft adds to transformers' `TrainingArguments` and the defaults it changes.

Each field's help is its documentation; the command line and the tests read it. Imports no torch, so that `hf-eagle3
train --help` need not.
"""

from dataclasses import dataclass, field


LOSSES = ("soft_cross_entropy", "kl", "lk_alpha", "lk_lambda")
# Whole recipes as values of fields. Facts: reading SpecForge (git a6b6b023) and speculators 0.9.0; their recorded
# losses and gradients are in tests/data/parity.
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
}


@dataclass
class TrainingOptions:
    """The fields alone; [`Eagle3TrainingArguments`] checks them."""

    # Defaults that differ from transformers'
    learning_rate: float = field(
        default=5e-5, metadata={"help": "Peak learning rate. EAGLE-3, section 4: 5e-5; SpecForge: 1e-4."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's beta2. EAGLE-3, section 4: betas (0.9, 0.95)."})
    max_grad_norm: float = field(default=0.5, metadata={"help": "Gradient clipping. EAGLE-3, section 4: 0.5."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Off: the draft's forward does not name the data's columns."}
    )

    # Training-time test
    training_time_test_steps: int = field(
        default=7,
        metadata={
            "help": "Times the draft is unrolled over its own outputs. Original code: 7; 1 is EAGLE's training."
        },
    )
    step_decay: float = field(
        default=0.8, metadata={"help": "Step k's loss weighs step_decay^k. Original code and SpecForge: 0.8."}
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
            "help": "Target position j counts where loss_mask[j + shift] is set: 1, the token predicted there, is "
            "right; 0 (speculators) and -1 (SpecForge) reproduce the peers.",
            "choices": [-1, 0, 1],
        },
    )
    mask_outside_vocabulary: bool = field(
        default=True,
        metadata={
            "help": "Leave out positions whose target argmax the draft cannot propose: nothing it says there can be "
            "accepted at temperature 0. Original code and SpecForge: true; speculators: false."
        },
    )
    mean_over: str = field(
        default="loss_mask",
        metadata={
            "help": "loss_mask: mean over positions whose token is loss-masked, over all processes and accumulated "
            "batches (those left out by mask_outside_vocabulary count as 0, so losses of different draft "
            "vocabularies do not compare); all: over every position of the batch, padding too (SpecForge).",
            "choices": ["loss_mask", "all"],
        },
    )
    feature_loss_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of EAGLE's regression of the target's last hidden states (EAGLE and EAGLE-2: 1, with the "
            "cross-entropy at 0.1). EAGLE-3 dropped it: 0. Needs a draft as wide as the target."
        },
    )
    train_lm_head: bool = field(
        default=True,
        metadata={"help": "Train the draft's head. speculators keeps the target's rows frozen: false."},
    )

    # Cost
    head_chunk_size: int = field(
        default=256,
        metadata={
            "help": "Positions per application of the two heads, which run again in the backward pass; lower it if "
            "memory is short. 0 keeps the logits of all positions and steps instead: faster, where they fit."
        },
    )
    max_length: int = field(
        default=2048,
        metadata={"help": "Longer samples are cut, in tokens. Original code: 2048. Also the length of packed rows."},
    )
    chat_template_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Further arguments of the chat template, as a JSON object, e.g. {"enable_thinking": false}; the '
            "draft's card names them."
        },
    )
    packing: bool = field(
        default=False,
        metadata={"help": "Pack several samples into rows of max_length. They do not see each other."},
    )

    # Evaluation by speculative generation
    num_generation_prompts: int = field(
        default=8,
        metadata={
            "help": "At evaluation, generate speculatively for so many samples of the evaluation set and report the "
            "true acceptance length. 0: off."
        },
    )
    generation_max_new_tokens: int = field(default=64, metadata={"help": "New tokens per prompt of that measurement."})
    generation_tree: str = field(
        default="chain:5",
        metadata={
            "help": "Draft shape of that measurement: chain:DEPTH, static:NODES,DEPTH,TOP_K, or default for the "
            "draft's own."
        },
    )
