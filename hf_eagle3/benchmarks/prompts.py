"""Prompt sets: the paper's five tasks from the Hub, or JSON lines from a file. Does not know models or tokenizers.

A line of a file is `{"turns": [...]}`, `{"prompt": "..."}` or any other sample that `prepare regenerate` reads (see
`data.messages`), with an optional `question_id`; other keys are ignored, and so are recorded answers.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ..data.messages import (
    MAX_EXAMPLES,
    BadRow,
    Message,
    messages_of,
    plain_text,
    questions,
    row_examples,
    template_options,
)


logger = logging.getLogger(__name__)
# A turn: the user's text, or several messages (a system message before it, a tool call and its results after it).
Turn = str | tuple[Message, ...]


@dataclass(frozen=True)
class Prompt:
    """
    One conversation: turns to be answered one after the other. `options` are arguments of the chat template for this
    prompt, tools included.
    """

    question_id: str
    turns: tuple[Turn, ...]
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A named prompt set, and the number of unreadable lines in its file."""

    name: str
    prompts: tuple[Prompt, ...]
    num_unreadable: int = 0


@dataclass(frozen=True)
class HubSet:
    """A task on the Hub: its location, its name in the paper's Table 1, and the conversion of a row to user turns."""

    path: str
    config: str | None
    split: str
    title: str
    turns: Callable[[Mapping], list[str]]


def _instruction(row: Mapping) -> list[str]:
    return [f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]]


# EAGLE-3, section 4. The instructions before code and articles are those of the original repository's question files.
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
    """A task's name in the paper's Table 1; other names unchanged."""
    return HUB_SETS[task].title if task in HUB_SETS else task


def load_task(source: str, limit: int | None = None) -> Task:
    """
    A prompt set by name (`HUB_SETS`; needs the package `datasets`) or from a .jsonl file, whose name it takes.

    Args:
        source: Name or path.
        limit: Maximum number of prompts.

    Raises:
        ValueError: neither a known name nor a file, or a file without any prompt (the error of the first line is
            given). Single lines without a prompt are skipped and reported.
    """
    if source in HUB_SETS:
        return Task(source, tuple(islice(_from_hub(HUB_SETS[source]), limit)))
    path = Path(source)
    if not path.is_file():
        raise ValueError(
            f"`--tasks` {source!r} is neither a file nor one of {', '.join(HUB_SETS)}, embedded, smollm2."
        )
    problems: list[tuple[int, str]] = []
    with path.open("rb") as lines:
        prompts = tuple(islice(read_lines(lines, problems), limit))
    if not prompts:
        reason = f" Line {problems[0][0]}: {problems[0][1]}" if problems else ""
        raise ValueError(f"`--tasks` {source!r} has no prompts; give one JSON object per line.{reason}")
    if problems:
        text = row_examples(problems[:MAX_EXAMPLES], len(problems), "Line")
        logger.warning("`--tasks` %r: %d lines are skipped. %s", source, len(problems), text)
    return Task(path.stem, prompts, len(problems))


def read_lines(lines: Iterable[str | bytes], problems: list[tuple[int, str]]) -> Iterable[Prompt]:
    """Prompts of JSON lines. Empty lines are skipped; `problems` receives (line number from 1, error) of bad ones."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield prompt_of(line, number)
            except BadRow as error:
                problems.append((number, str(error)))


def prompt_of(line: str | bytes, number: int) -> Prompt:
    """The prompt on line `number`; BadRow if it holds none."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BadRow(f"it is not JSON: {error}.") from None
    if not isinstance(row, dict):
        raise BadRow('it has no prompt; give {"turns": ["..."]} or {"prompt": "..."} with text in it.')
    column = next((name for name in ("turns", "prompt") if row.get(name)), None)
    asked = {column: row[column]} if column else {name: row[name] for name in row if name != "input_ids"}
    messages = messages_of(asked)
    if messages is None:
        before, turns = [], [[{"role": "user", "content": plain_text(asked["text"], "`text`")}]]
    else:
        before, turns = questions(messages)
    texts = [message["content"] for turn in turns for message in turn if message["role"] == "user"]
    if not texts or not all(text.strip() for text in texts):
        raise BadRow('it has no prompt; give {"turns": ["..."]} or {"prompt": "..."} with text in it.')
    turns[0] = [*before, *turns[0]]
    return Prompt(
        str(row.get("question_id", number)),
        tuple(turn[0]["content"] if len(turn) == 1 else tuple(turn) for turn in turns),
        template_options(row),
    )


def _from_hub(hub: HubSet) -> Iterable[Prompt]:
    from datasets import load_dataset

    # Streamed: only the first few of up to hundreds of thousands of rows are read.
    try:
        rows = load_dataset(hub.path, hub.config, split=hub.split, streaming=True)
    except OSError as error:
        raise ValueError(f"{error}; without access to the Hub, set `--tasks` to a .jsonl file or embedded.") from None
    for number, row in enumerate(rows):
        yield Prompt(str(number), tuple(hub.turns(row)))
