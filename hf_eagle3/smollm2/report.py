"""What is in a file of answers: how many conversations, answers and tokens of each kind, greedy and sampled.

Does not know how they were made. `python -m hf_eagle3.smollm2.data --output DIR --only report` prints it.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase


VOCABULARY_SIZES = (4096, 6144, 8192, 12288)


def report(
    prompts: Path,
    answers: Path,
    temperatures: Sequence[float],
    tokenizer: PreTrainedTokenizerBase,
    stops: Sequence[int],
) -> dict:
    """
    Counts of a file of answers.

    Returns:
        "kinds" and "temperatures": each with conversations, answers, tokens (of the answers, stop tokens too),
        "stopped" (answers that end with a stop token) and "canonical" (answers whose text has the same tokens when
        encoded again); "total"; "coverage": the share of the answers' tokens that the commonest so many cover.
    """
    kinds = [json.loads(line)["kind"] for line in prompts.read_text(encoding="utf-8").splitlines()]
    tables: dict[str, dict[str, Counter[str]]] = {"kinds": defaultdict(Counter), "temperatures": defaultdict(Counter)}
    total: Counter[str] = Counter()
    tokens: Counter[int] = Counter()
    for record in records(answers):
        counts = Counter(conversations=int(record["part"] == record["parts"]))
        for answer in answers_of(record):
            tokens.update(answer)
            text_ids = answer[:-1] if answer[-1] in stops else answer
            again = tokenizer.encode(tokenizer.decode(text_ids), add_special_tokens=False)
            counts += Counter(
                answers=1, tokens=len(answer), stopped=int(answer[-1] in stops), canonical=int(again == text_ids)
            )
        temperature = temperatures[record["id"] % len(temperatures)]
        tables["kinds"][kinds[record["id"]]] += counts
        tables["temperatures"][str(temperature)] += counts
        total += counts
    return {
        **{name: {key: dict(counts) for key, counts in table.items()} for name, table in tables.items()},
        "total": dict(total),
        "distinct tokens": len(tokens),
        "coverage": coverage(tokens),
    }


def records(path: Path) -> Iterator[dict]:
    """The whole lines; the last may be about to be written."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def answers_of(record: dict) -> list[list[int]]:
    """The tokens of each answer in a conversation."""
    found: list[list[int]] = []
    was_answer = 0
    for token, is_answer in zip(record["input_ids"], record["loss_mask"], strict=True):
        if is_answer:
            if not was_answer:
                found.append([])
            found[-1].append(token)
        was_answer = is_answer
    return found


def coverage(tokens: Counter[int]) -> dict[str, float]:
    """Share of all tokens that the commonest ones are, for each size of a draft vocabulary."""
    counts = sorted(tokens.values(), reverse=True)
    return {str(size): round(sum(counts[:size]) / max(sum(counts), 1), 5) for size in VOCABULARY_SIZES}
