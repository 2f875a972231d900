"""Undocumented parts of transformers' `Trainer`."""

from typing import Any

from transformers import Trainer, TrainingArguments

from .points import TRAINING, uses


uses("transformers.Trainer", "_prepare_inputs", "evaluation", scope=TRAINING)
_last_checkpoint = uses("transformers.trainer_utils", "get_last_checkpoint", "resuming", scope=TRAINING)


def prepared_inputs(trainer: Trainer, inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch on the trainer's device."""
    return trainer._prepare_inputs(inputs)


def use_one_device(arguments: TrainingArguments) -> None:
    """Keep the `Trainer` from wrapping the model in `DataParallel`."""
    arguments._n_gpu = 1


def last_checkpoint(folder: str) -> str | None:
    """The newest checkpoint in a folder."""
    return _last_checkpoint(folder)
