"""Undocumented parts of transformers' `Trainer`."""

from typing import Any

from transformers import Trainer, TrainingArguments

from .points import TRAINING, uses


uses("transformers.Trainer", "_prepare_inputs", "evaluation", scope=TRAINING)


def prepared_inputs(trainer: Trainer, inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch on the trainer's device."""
    return trainer._prepare_inputs(inputs)


def use_one_device(arguments: TrainingArguments) -> None:
    """Keep the `Trainer` from wrapping the model in `DataParallel`."""
    arguments._n_gpu = 1
