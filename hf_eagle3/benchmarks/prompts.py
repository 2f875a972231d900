"""Prompt sets: the paper's five tasks from the Hub, or JSON lines from a file. Does not know models or tokenizers.

A line of a file is `{"turns": [...]}` or `{"prompt": "..."}` (or a list of turns under `prompt`), with `question_id`
if it has one; other keys are left alone.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path


@dataclass(frozen=True)
class Prompt:
    """One conversation to be had: the user's turns, to be answered one after the other."""

    question_id: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A named prompt set."""

    name: str
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class HubSet:
    """Where a task lives on the Hub, its name in the paper's Table 1, and how a row of it becomes user turns."""

    path: str
    config: str | None
    split: str
    title: str
    turns: Callable[[Mapping], list[str]]


def _instruction(row: Mapping) -> list[str]:
    return [f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]]


# EAGLE-3, section 4. The words before code and articles are those of the original repository's question files.
HUB_SETS = {
    "mt-bench": HubSet("HuggingFaceH4/mt_bench_prompts", None, "train", "MT-bench", lambda row: list(row["prompt"])),
    "humaneval": HubSet(
        "openai/openai_humaneval",
        None,
        "test",
        "HumanEval",
        lambda row: [f"Complete the code I provided.\n{row['prompt']}"],
    ),
    "gsm8k": HubSet("openai/gsm8k", "main", "test", "GSM8K", lambda row: [row["question"]]),
    "alpaca": HubSet("tatsu-lab/alpaca", None, "train", "Alpaca", _instruction),
    "cnn_dm": HubSet("abisee/cnn_dailymail", "3.0.0", "test", "CNN/DM", lambda row: [f"Summarize: {row['article']}"]),
}


def title(task: str) -> str:
    """A task's name as in the paper's Table 1; the name itself for other sets."""
    return HUB_SETS[task].title if task in HUB_SETS else task


def load_task(source: str, limit: int | None = None) -> Task:
    """
    A prompt set by name (`HUB_SETS`; needs the package `datasets`) or from a .jsonl file, which it is named after.

    Args:
        source: Name or path.
        limit: Only the first so many prompts.

    Raises:
        ValueError: neither a known name nor a file, or a file that holds something else (with the line's number).
    """
    if source in HUB_SETS:
        return Task(source, tuple(islice(_from_hub(HUB_SETS[source]), limit)))
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"`--tasks` {source!r} is neither a file nor one of {', '.join(HUB_SETS)}, embedded.")
    prompts = tuple(islice(read_lines(path.read_text(encoding="utf-8").splitlines(), source), limit))
    if not prompts:
        raise ValueError(f"`--tasks` {source!r} has no prompts; give one JSON object per line.")
    return Task(path.stem, prompts)


def read_lines(lines: Iterable[str], source: str) -> Iterable[Prompt]:
    """Prompts of JSON lines; empty lines are skipped."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"`--tasks` {source!r}, line {number} is not JSON: {error}.") from None
        turns = (row.get("turns") or row.get("prompt")) if isinstance(row, dict) else None
        turns = [turns] if isinstance(turns, str) else turns
        if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
            raise ValueError(
                f"`--tasks` {source!r}, line {number} has no prompt; give "
                '{"turns": ["..."]} or {"prompt": "..."} with text in it.'
            )
        yield Prompt(str(row.get("question_id", number)), tuple(turns))


def _from_hub(hub: HubSet) -> Iterable[Prompt]:
    from datasets import load_dataset

    # Streamed: of sets with hundreds of thousands of rows the first few are asked for.
    try:
        rows = load_dataset(hub.path, hub.config, split=hub.split, streaming=True)
    except OSError as error:
        raise ValueError(f"{error}; without the Hub give `--tasks` a .jsonl file or embedded.") from None
    for number, row in enumerate(rows):
        yield Prompt(str(number), tuple(hub.turns(row)))
