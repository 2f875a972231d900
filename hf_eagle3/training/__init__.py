"""Training of draft models: `Eagle3Trainer`, its arguments and losses, and new drafts."""

from ..draft_init import count_tokens, new_draft
from .arguments import RECIPES, Eagle3TrainingArguments
from .trainer import Eagle3Trainer


__all__ = ["RECIPES", "Eagle3Trainer", "Eagle3TrainingArguments", "count_tokens", "new_draft"]
