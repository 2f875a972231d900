"""Training of draft models: `Eagle3Trainer`, its arguments and losses, and new drafts."""

from typing import TYPE_CHECKING, Any

from ..draft_init import count_tokens, new_draft


if TYPE_CHECKING:
    from .arguments import RECIPES, Eagle3TrainingArguments
    from .trainer import Eagle3Trainer

__all__ = ["RECIPES", "Eagle3Trainer", "Eagle3TrainingArguments", "count_tokens", "new_draft"]


def __getattr__(name: str) -> Any:
    """The trainer and its arguments need packages that measuring a draft (`hf-eagle3 doctor`) does not."""
    if name in ("RECIPES", "Eagle3TrainingArguments"):
        from . import arguments as module
    elif name == "Eagle3Trainer":
        from . import trainer as module
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
