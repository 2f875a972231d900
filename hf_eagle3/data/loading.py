"""Datasets in, tokenised datasets out: names of the paper's sets, Hub ids, local files, streaming.

Reading, mapping, caching and sharding are `datasets`' work.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, IterableDataset, Sequence, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from .conversations import TemplateMismatch, tokenise


logger = logging.getLogger(__name__)
FILE_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow", ".txt": "text"}
COLUMNS = Features(
    {
        "input_ids": Sequence(Value("int32")),
        "loss_mask": Sequence(Value("int8")),
        "state": Value("string"),
        "problem": Value("string"),
    }
)
PEEK = 64  # samples of a stream that are looked at before training


@dataclass(frozen=True)
class Preset:
    """A set of the paper by its Hub id: `split`, and `data_files` where the repository holds several."""

    path: str
    split: str
    data_files: str | None = None


# EAGLE-3, section 4: ShareGPT and UltraChat-200K, for the reasoning model OpenThoughts-114k-math.
PRESETS = {
    "sharegpt": Preset(
        "anon8231489123/ShareGPT_Vicuna_unfiltered",
        "train",
        "ShareGPT_V3_unfiltered_cleaned_split_no_imsorry.json",
    ),
    "ultrachat-200k": Preset("HuggingFaceH4/ultrachat_200k", "train_sft"),
    "openthoughts-114k-math": Preset("open-r1/OpenThoughts-114k-math", "train"),
}


def load(source: str, split: str | None = None, streaming: bool = False, **options) -> Dataset | IterableDataset:
    """
    A dataset by preset name, local file (.json, .jsonl, .parquet, .arrow, .txt), folder or Hub id.

    Args:
        source: What to load.
        split: Default: the preset's, else "train".
        streaming: Read while training instead of before.
        options: Further arguments of `datasets.load_dataset` (`name`, `revision`, `token`, ...).

    Raises:
        ValueError: a file of unknown kind, or no such split (the ones there are named).
    """
    if source in PRESETS:
        preset = PRESETS[source]
        if preset.data_files:
            options = {"data_files": preset.data_files} | options
        return load_dataset(preset.path, split=split or preset.split, streaming=streaming, **options)
    path = Path(source)
    if path.is_file():
        if path.suffix not in FILE_FORMATS:
            raise ValueError(f"`{source}` ends in {path.suffix!r}; known are {', '.join(FILE_FORMATS)}.")
        kind = FILE_FORMATS[path.suffix]
        try:
            return load_dataset(kind, data_files=str(path), split=split or "train", streaming=streaming, **options)
        except DatasetGenerationError as error:
            raise ValueError(f"`{source}` cannot be read as {kind}: {error.__cause__ or error}") from None
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():  # written by save_to_disk
        loaded = load_from_disk(source)
        if not isinstance(loaded, DatasetDict):
            return loaded
        if (split or "train") not in loaded:
            raise ValueError(f"`{source}` has the splits {', '.join(loaded)}; say which.")
        return loaded[split or "train"]
    return load_dataset(source, split=split or "train", streaming=streaming, **options)


def tokenised(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int,
    num_proc: int | None = None,
    name: str = "The data",
) -> Dataset | IterableDataset:
    """
    `dataset` with the columns `input_ids` and `loss_mask` alone. Samples without a single token to learn from are left
    out, counted and reported.

    Raises:
        ValueError: no sample has a token to learn from; the counts and likely reasons are given.
    """
    columns = list(dataset.column_names or next(iter(dataset)))

    def convert(sample: dict) -> dict:
        try:
            out = tokenise(sample, tokenizer, max_length)
        except (ValueError, TemplateError) as error:
            state = "unmarked" if isinstance(error, TemplateMismatch) else "unreadable"
            return {"input_ids": [], "loss_mask": [], "state": state, "problem": str(error)}
        # The first two tokens are never predicted by a draft.
        state = "partial" if out.partial else "used"
        return {
            "input_ids": out.input_ids,
            "loss_mask": out.loss_mask,
            "state": state if any(out.loss_mask[2:]) else "empty",
            "problem": "",
        }

    if isinstance(dataset, IterableDataset):
        peeked = [convert(sample) for sample in dataset.take(PEEK)]
        report(peeked, f"{name} (its first {len(peeked)} samples)")
        # The columns an iterable dataset is told to drop must be all it has.
        converted = dataset.map(convert, remove_columns=[c for c in columns if c not in COLUMNS], features=COLUMNS)
        return converted.filter(lambda sample: sample["state"] in ("used", "partial")).remove_columns(
            ["state", "problem"]
        )
    converted = dataset.map(convert, remove_columns=columns, features=COLUMNS, num_proc=num_proc, desc="Tokenising")
    report(converted.select_columns(["state", "problem"]), name)
    return converted.filter(
        lambda state: state in ("used", "partial"), input_columns="state", num_proc=num_proc
    ).remove_columns(["state", "problem"])


def report(converted: Iterable[dict], name: str) -> None:
    """Say what was left out; an error where nothing is left."""
    states: Counter = Counter()
    problem = ""
    for sample in converted:
        states[sample["state"]] += 1
        problem = problem or sample["problem"]
    total = sum(states.values())
    if not states["used"] and not states["partial"]:
        raise ValueError(
            f"{name}: none of {total} samples has a token to learn from ({states['empty']} without one of the "
            f"assistant's, or cut off before it by `max_length`; {states['unmarked']} where the chat template "
            f"does not show which tokens are the assistant's; {states['unreadable']} that cannot be read). "
            + (f"The first problem: {problem}" if problem else "Check the roles, the template and `max_length`.")
        )
    for state, reason in (
        ("empty", "have no token to learn from (no assistant turn, or cut off by `max_length`) and are left out"),
        ("unmarked", "are left out: the chat template does not show which tokens are the assistant's"),
        ("unreadable", f"are left out as they cannot be read, the first because: {problem}"),
        ("partial", "learn from the last assistant turn only: the chat template rewrites earlier ones"),
    ):
        if states[state]:
            logger.warning("%s: %d of %d samples %s.", name, states[state], total, reason)
