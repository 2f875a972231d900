"""`training.json`, beside a trained draft: on what, how and where it was trained. The model card reads it.

Does not know the command line or the card.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset, IterableDataset
from torch.utils.data import Subset

from ..compat.models import commit_of
from ..data.features import CachedTarget
from ..hub.trained import THINKING
from ..target.fingerprint import fingerprint
from .base_trainer import DraftTrainer
from .best import evaluations


NAME, FORMAT = "training.json", 1


def training_record(
    trainer: DraftTrainer, data: Iterable[str], versions: dict, hardware: dict, start: str | None = None
) -> dict:
    """
    What a finished training run was.

    Args:
        trainer: After training.
        data: Names of the data: files, folders, Hub ids or presets.
        versions, hardware: As in `hf-eagle3 benchmark`.
        start: The initial draft, if it was not a new one.

    Returns:
        A JSON object. `steps` were run, the weights are those after `kept_step`; `seconds` are those of the last run
        if training was interrupted; counts of streamed data are `None`; `batch_tokens` is a mean.
    """
    args, state, reader = trainer.args, trainer.state, trainer.reader
    counts = totals(trainer.train_dataset)
    tokenizer = trainer.processing_class
    template = None if tokenizer is None else tokenizer.chat_template
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    batch_tokens = counts["tokens"] and round(per_step * counts["tokens"] / counts["samples"])
    if isinstance(reader, CachedTarget):
        stored = reader.provenance
        target = {"name": stored.target, "revision": stored.revision, "fingerprint": stored.fingerprint}
    else:
        config, weights = reader.base.config, fingerprint(reader.base)
        target = {"name": config.name_or_path, "revision": commit_of(config), "fingerprint": weights}
    names = ("learning_rate", *trainer.recorded, "max_length", "packing", "seed")
    kept = state.best_global_step if args.load_best_model_at_end else None
    ended = [entry for entry in state.log_history[::-1] if "train_runtime" in entry]
    measured = [{"step": step, "acceptance_length": tau} for step, tau in evaluations(state.log_history)]
    return {
        "format": FORMAT,
        "data": {"names": list(data), **counts, "held_out_samples": _length(trainer.eval_dataset)},
        "target": target,
        "initial_draft": start,
        "epochs": round(state.epoch or 0, 3),
        "steps": state.global_step,
        "kept_step": kept or state.global_step,
        "batch_tokens": batch_tokens,
        **{name: vars(args)[name] for name in names},
        "lr_scheduler_type": str(args.lr_scheduler_type.value),
        "chat_template": template and {"takes_thinking": THINKING in str(template)},
        "chat_template_kwargs": args.chat_template_kwargs,
        "evaluation": {"tree": args.generation_tree, "history": measured},
        "seconds": next((entry["train_runtime"] for entry in ended), None),
        "hardware": hardware | {"processes": args.world_size},
        "versions": versions,
    }


def write_record(record: dict, folder: str | Path) -> None:
    """Write `training.json` into `folder`."""
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    Path(folder, NAME).write_text(text, encoding="utf-8")


def totals(data) -> dict[str, int | None]:
    """Samples, tokens and answer tokens (those with loss) of training data; `None` where only a stream knows."""
    if isinstance(data, IterableDataset):
        return dict.fromkeys(("samples", "tokens", "answer_tokens"))
    masks = list(_masks(data))
    return {
        "samples": len(masks),
        "tokens": sum(len(mask) for mask in masks),
        "answer_tokens": int(sum(np.count_nonzero(mask) for mask in masks)),
    }


def _masks(data) -> Iterator:
    """The loss mask of every sample; offline features are not read from disk."""
    if isinstance(data, Subset):
        chosen = set(data.indices)
        yield from (mask for index, mask in enumerate(_masks(data.dataset)) if index in chosen)
    elif isinstance(data, Dataset):
        for batch in data.select_columns(["loss_mask"]).with_format("numpy").iter(batch_size=1000):
            yield from batch["loss_mask"]
    else:
        yield from (np.asarray(sample["loss_mask"]) for sample in data.tokens())


def _length(data) -> int | None:
    return 0 if data is None else None if isinstance(data, IterableDataset) else len(data)
