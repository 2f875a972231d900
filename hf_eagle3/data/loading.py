"""Loading and tokenising datasets: presets of the paper, Hub ids, local files, streams.

Reading, mapping, caching and sharding are left to `datasets`; only JSON files without a common schema are read here.
Unusable rows are skipped and reported with their number, from 1, and the reason. Does not know models or training.
"""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, IterableDataset, Sequence, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from transformers import PreTrainedTokenizerBase

from .conversations import TemplateMismatch, checked_template_kwargs, tokenise
from .messages import BAD_ROW, JSON_ROW, MAX_EXAMPLES, BadRow, row_examples, short_repr


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
TRAINED = ("used", "partial")
PEEK = 64  # samples of a stream that are checked before training


@dataclass(frozen=True)
class Preset:
    """A dataset of the paper: Hub id, `split`, and `data_files` if the repository contains several."""

    path: str
    split: str
    data_files: str | None = None


# EAGLE-3, section 4: ShareGPT and UltraChat-200K; OpenThoughts-114k-math for the reasoning model.
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
    Load a dataset by preset name, local file (.json, .jsonl, .parquet, .arrow, .txt), folder or Hub id.

    Args:
        source: Preset, path or Hub id.
        split: Default: the preset's split, else "train".
        streaming: Read rows while training instead of before it.
        options: Further arguments of `datasets.load_dataset` (`name`, `revision`, `token`, ...).

    Raises:
        ValueError: unknown file type, missing split (the available ones are listed), or no rows.
    """
    data = _load(source, split, streaming, options)
    if isinstance(data, Dataset) and not len(data):
        raise ValueError(f"`{source}` is empty: it has no rows.")
    return data


def _load(source: str, split: str | None, streaming: bool, options: dict) -> Dataset | IterableDataset:
    if source in PRESETS:
        preset = PRESETS[source]
        if preset.data_files:
            options = {"data_files": preset.data_files} | options
        return load_dataset(preset.path, split=split or preset.split, streaming=streaming, **options)
    path = Path(source)
    if path.is_file():
        if path.suffix not in FILE_FORMATS:
            raise ValueError(f"`{source}` ends in {path.suffix!r}; supported are {', '.join(FILE_FORMATS)}.")
        if FILE_FORMATS[path.suffix] == "json" and split in (None, "train") and not options:
            return _load_json(path, streaming)
        return _load_file(path, split, streaming, options)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():  # written by save_to_disk
        loaded = load_from_disk(source)
        if not isinstance(loaded, DatasetDict):
            return loaded
        if (split or "train") not in loaded:
            raise ValueError(f"`{source}` has the splits {', '.join(loaded)}; choose one.")
        return loaded[split or "train"]
    return load_dataset(source, split=split or "train", streaming=streaming, **options)


def _load_file(path: Path, split: str | None, streaming: bool, options: dict) -> Dataset | IterableDataset:
    kind = FILE_FORMATS[path.suffix]
    if not path.stat().st_size:
        raise ValueError(f"`{path}` is empty: it has no rows.")
    try:
        return load_dataset(kind, data_files=str(path), split=split or "train", streaming=streaming, **options)
    except DatasetGenerationError as error:
        raise ValueError(f"`{path}` cannot be read as {kind}: {error.__cause__ or error}") from None


def _load_json(path: Path, streaming: bool) -> Dataset | IterableDataset:
    """As a table if the rows have a common schema; otherwise row by row, so that bad lines do not affect others."""
    if streaming:
        return IterableDataset.from_generator(json_rows, gen_kwargs={"path": str(path)})
    try:
        with path.open(encoding="utf-8") as file:  # `datasets` would fail on invalid UTF-8 later
            for _ in iter(lambda: file.read(2**20), ""):
                pass
        return _load_file(path, None, False, {})
    except ValueError:
        rows = [as_text(row) for row in json_rows(path)]
        if not rows:
            raise ValueError(f"`{path}` is empty: it has no rows.") from None
        if all(row[JSON_ROW] is None for row in rows):
            raise ValueError(f"`{path}` cannot be read as json: {rows[0][BAD_ROW]}.") from None
        return Dataset.from_list(rows)


def json_rows(path: str | Path) -> Iterator[dict]:
    """
    Rows of a JSON-lines file, or of one JSON list. Anything but an object becomes {BAD_ROW: reason}; empty lines are
    skipped.
    """
    with Path(path).open("rb") as file:
        if file.read(1) == b"[":
            try:
                yield from map(_as_row, json.loads(b"[" + file.read()))
                return
            except ValueError:  # JSON lines that start with a list
                pass
        file.seek(0)
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield _as_row(json.loads(line))
            except ValueError as error:
                yield {BAD_ROW: f"line {number} is not JSON ({error})"}


def _as_row(row) -> dict:
    return row if isinstance(row, dict) else {BAD_ROW: f"it is {short_repr(row)}, not a JSON object"}


def as_text(row: dict) -> dict[str, str | None]:
    """A row as JSON text, so that rows of any schema fit into one table; see `messages.row_of`."""
    bad = row.get(BAD_ROW)
    return {JSON_ROW: None if bad else json.dumps(row), BAD_ROW: bad}


def tokenised(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int,
    num_proc: int | None = None,
    name: str = "The data",
    template_kwargs: Mapping | None = None,
    vocab_size: int | None = None,
) -> Dataset | IterableDataset:
    """
    `dataset` reduced to the columns `input_ids` and `loss_mask`. Unreadable samples, and those without any token to
    train on, are skipped, counted and reported.

    Args:
        dataset: Samples in any format of `conversations`.
        tokenizer: The target's tokenizer; `None` for tokenised data.
        max_length: Longer samples are truncated.
        num_proc: Number of processes.
        name: Name of the data in reports.
        template_kwargs: Extra arguments of the chat template.
        vocab_size: Vocabulary size of the target; samples with other token ids are unreadable.

    Raises:
        ValueError: no sample has a token to train on; the counts and likely reasons are given.
    """
    template_kwargs = checked_template_kwargs(template_kwargs, tokenizer)

    def convert(sample: dict) -> dict:
        try:
            out = tokenise(sample, tokenizer, max_length, template_kwargs, vocab_size)
        except BadRow as error:
            state = "unmarked" if isinstance(error, TemplateMismatch) else "unreadable"
            return {"input_ids": [], "loss_mask": [], "state": state, "problem": str(error)}
        # A draft never predicts the first two tokens.
        state = "partial" if out.partial else "used"
        return {
            "input_ids": out.input_ids,
            "loss_mask": out.loss_mask,
            "state": state if any(out.loss_mask[2:]) else "empty",
            "problem": "",
        }

    if isinstance(dataset, IterableDataset):
        return _tokenised_stream(dataset, convert, name)
    converted = dataset.map(
        convert, remove_columns=dataset.column_names, features=COLUMNS, num_proc=num_proc, desc="Tokenising"
    )
    report(converted.select_columns(["state", "problem"]), name)
    return converted.filter(lambda state: state in TRAINED, input_columns="state", num_proc=num_proc).remove_columns(
        ["state", "problem"]
    )


def _tokenised_stream(dataset: IterableDataset, convert, name: str) -> IterableDataset:
    """The first samples are reported before training starts, later ones as they are read."""
    peeked = [convert(sample) for sample in dataset.take(PEEK)]
    report(peeked, f"{name} (its first {len(peeked)} samples)")

    def convert_later(sample: dict, index: int) -> dict:
        out = convert(sample)
        if index >= PEEK and out["state"] not in TRAINED:
            logger.warning("%s: row %d is skipped: %s", name, index + 1, out["problem"] or "no token to train on")
        return out

    # Rows of a stream may have different columns, so the wanted ones are selected instead of removing others.
    converted = dataset.map(convert_later, with_indices=True).select_columns(list(COLUMNS)).cast(COLUMNS)
    return converted.filter(lambda sample: sample["state"] in TRAINED).remove_columns(["state", "problem"])


def is_tokenised(dataset: Dataset | IterableDataset, max_length: int, vocab_size: int) -> bool:
    """Whether all rows are in the form of `tokenised`: valid token ids and at least one token to train on."""
    if isinstance(dataset, IterableDataset) or set(dataset.column_names) != {"input_ids", "loss_mask"}:
        return False
    for batch in dataset.with_format("numpy").iter(batch_size=1000):
        for ids, mask in zip(batch["input_ids"], batch["loss_mask"], strict=True):
            ids, mask = np.asarray(ids), np.asarray(mask)
            if not (ids.dtype.kind in "iu" and ids.ndim == 1 and ids.shape == mask.shape and mask.dtype.kind in "iub"):
                return False
            if not mask[2:max_length].any() or ids.min() < 0 or ids.max() >= vocab_size:
                return False
    return True


def report(converted: Iterable[dict], name: str) -> None:
    """Log how many rows were skipped and why, with row numbers from 1; ValueError if none remains."""
    counts: Counter = Counter()
    examples: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for number, sample in enumerate(converted, start=1):
        state = sample["state"]
        counts[state] += 1
        if len(examples[state]) < MAX_EXAMPLES:
            examples[state].append((number, sample["problem"]))
    total = counts.total()
    if not total:
        raise ValueError(f"{name} has no rows.")
    if not any(counts[state] for state in TRAINED):
        problem = next((problem for found in examples.values() for _, problem in found if problem), "")
        remedy = (
            "Check roles, chat template, loss masks and `max_length`; `hf-eagle3 prepare regenerate` answers prompts "
            "without answers."
        )
        raise ValueError(
            f"{name}: none of {total} samples has a token to train on ({counts['empty']} without an assistant turn or "
            f"truncated before it by `max_length`; {counts['unmarked']} whose assistant tokens the chat template does "
            f"not reveal; {counts['unreadable']} unreadable). " + (f"First problem: {problem}" if problem else remedy)
        )
    for state, reason in (
        ("empty", "are skipped: no token to train on (no assistant turn, or truncated by `max_length`)"),
        ("unmarked", "are skipped: the chat template does not reveal which tokens are the assistant's"),
        ("unreadable", "are skipped as unreadable"),
        ("partial", "are trained on the last assistant turn only: the chat template rewrites earlier ones"),
    ):
        if counts[state]:
            text = row_examples(examples[state], counts[state])
            logger.warning("%s: %d of %d samples %s. %s", name, counts[state], total, reason, text)
