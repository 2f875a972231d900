"""Regeneration: the target answers the prompts of a dataset, so that its draft is trained on its own outputs.

In-process (batched, with or without a draft) or through an OpenAI-compatible endpoint. Finished conversations are
appended to a JSON-lines file one by one, and an interrupted run can be resumed. Each turn is stored as text and as the
token ids that the target read and generated, so that training does not depend on the chat template.
"""

import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..token_ids import left_padded, padding_token_id
from .conversations import chat_ids
from .endpoint import Endpoint
from .jobs import Job, Sampling
from .limits import context_length, stop_tokens, up_to_stop
from .messages import MAX_EXAMPLES, BadRow, row_examples


__all__ = ["Endpoint", "InProcess", "Job", "Sampling", "finished_ids", "regenerate", "up_to_stop"]
logger = logging.getLogger(__name__)
MAX_LOGGED = 10  # problems logged individually; all are counted
LINE_STARTS = (b'{"id": 0, "part": ', b'{"id": 0, "messages": ', b'{"id": 0, "text": ')  # the last two: older files
MAX_START = 64  # bytes; any of these with any id is shorter


def finished_ids(path: Path) -> set[int]:
    """
    Ids of the conversations that the file already contains. The file is not changed.

    Raises:
        ValueError: it is not a file of regenerated conversations.
    """
    return read_output(path)[0]


def read_output(path: Path) -> tuple[set[int], int]:
    """
    Ids of the complete conversations in a file, and their size in bytes; after them there is at most one that an
    interrupted run left incomplete.

    Raises:
        ValueError: it is not a file of regenerated conversations.
    """
    found: set[int] = set()
    if not path.exists():
        return found, 0
    end = position = 0
    with path.open("rb") as file:
        for line in file:
            position += len(line)
            record = output_record(line)
            if record is None and (line.endswith(b"\n") or not half_written(line)):
                raise ValueError(f"`{path}` is not a file of regenerated conversations; choose another path.")
            if record is not None and record.get("part") == record.get("parts"):
                found.add(record["id"])
                end = position
    return found, end


def output_record(line: bytes) -> dict | None:
    """A line of the output file; `None` if it is something else or truncated."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    is_ours = isinstance(record, dict) and type(record.get("id")) is int and ("messages" in record or "text" in record)
    return record if is_ours else None


def half_written(line: bytes) -> bool:
    """Whether a line without a newline is the start of a truncated output line."""
    try:
        json.loads(line)
    except ValueError:
        start = re.sub(rb"\d+", b"0", line[:MAX_START])
        return any(known.startswith(start[: len(known)]) for known in LINE_STARTS)
    return False


def open_output(path: Path, end: int) -> BinaryIO:
    """Open the file to append after its first `end` bytes; an incomplete conversation after them is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        os.truncate(path, end)
    file = path.open("a+b")
    if end:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file


def regenerate(
    samples: Iterable[dict],
    path: str | Path,
    answer: Callable[[list[Job]], Iterator[Job]],
    batch_size: int,
    progress=None,
    template_kwargs: Mapping | None = None,
) -> int:
    """
    Answer every conversation of `samples` that is not yet in `path`, and append it there.

    Args:
        samples: Conversations in any format of `conversations`; their answers are ignored.
        path: JSON lines: {"id": index in `samples`, "part", "parts", "messages" or "text", "tools",
            "chat_template_kwargs", "input_ids", "loss_mask"}, without the last two if the token ids are unknown. A
            conversation is one line; if the chat template rewrites earlier turns it has `parts` lines, each with the
            tokens of its own turns. The file is created with the first answer.
        answer: Takes a batch of jobs and yields them finished, in any order.
        batch_size: Number of jobs passed to `answer` at once.
        progress: A progress bar with `update(n)`.
        template_kwargs: Extra arguments of the chat template; stored in each line of `path`.

    Returns:
        Number of conversations written. Unreadable and failed ones are skipped and reported with their row number,
        from 1; a later run tries them again.

    Raises:
        ValueError: `path` is another kind of file, or no conversation could be answered.
        OSError: the endpoint answered none.
    """
    path = Path(path)
    done, end = read_output(path)
    report = Report()
    jobs = unanswered(samples, done, batch_size, report, template_kwargs)
    with ExitStack() as stack:
        file = None
        for _, batch in groupby(jobs, key=lambda job: job.batch):
            for job in answer(list(batch)):
                if progress is not None:
                    progress.update(1)
                report.add(job)
                if job.problem is not None:
                    continue
                file = file or stack.enter_context(open_output(path, end))
                lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in job.records())
                file.write("".join(lines).encode())
                file.flush()
    report.close(has_earlier=bool(done))
    return report.num_written


def unanswered(
    samples: Iterable[dict], done: set[int], batch_size: int, report: "Report", template_kwargs: Mapping | None
) -> Iterator[Job]:
    """Jobs of the samples that are not in `done`; unreadable samples are reported."""
    for index, sample in enumerate(samples):
        if index in done:
            continue
        try:
            job = Job.from_sample(index, sample, index // batch_size, template_kwargs)
        except ValueError as error:
            report.problem(index, str(error))
        else:
            yield job


class Report:
    """Counts the results of a run; the first problems are logged immediately."""

    def __init__(self) -> None:
        self.num_written = 0
        self.problems: list[tuple[int, str]] = []  # row numbers, from 1
        self.can_retry = False
        self.cut: Counter[str] = Counter()

    def add(self, job: Job) -> None:
        """Count a finished job."""
        if job.problem is not None:
            self.can_retry |= job.can_retry
            self.problem(job.index, job.problem)
            return
        self.num_written += 1
        if job.cut is not None:
            self.cut[job.cut] += 1

    def problem(self, index: int, reason: str) -> None:
        """Count a conversation that is skipped."""
        self.problems.append((index + 1, reason))
        if len(self.problems) <= MAX_LOGGED:
            logger.warning("Row %d is not answered: %s", *self.problems[-1])

    def close(self, has_earlier: bool) -> None:
        """
        Log the counts.

        Args:
            has_earlier: Whether an earlier run has written conversations.

        Raises:
            OSError, ValueError: there were open conversations, and none was answered.
        """
        for reason, count in self.cut.items():
            logger.warning("%d conversations end early: %s.", count, reason)
        if not self.problems:
            if not self.num_written and not has_earlier:
                raise ValueError("The data has no rows, so there is nothing to answer.")
            return
        count = len(self.problems)
        examples = row_examples(sorted(self.problems)[:MAX_EXAMPLES], count)
        if self.num_written or (has_earlier and not self.can_retry):
            logger.warning("%d conversations were not answered. %s", count, examples)
        else:
            kind = OSError if self.can_retry else ValueError
            raise kind(f"None of {count} conversations was answered. {examples}")


class InProcess:
    """
    Answers with `target.generate`, the turns of a batch of conversations in parallel.

    Token ids are stored as well and preferred in training: text may be tokenised differently a second time, an answer
    truncated by `max_new_tokens` must not be followed by EOS, and templates drop reasoning from earlier turns. Answers
    never exceed the target's context; a conversation that fills it ends there.

    Args:
        target: The target.
        tokenizer: Its tokenizer; without a chat template, prompts are plain text.
        sampling: Sampling parameters.
        draft: A draft of the target, for speed.
    """

    def __init__(self, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling, draft=None):
        self.target, self.tokenizer, self.sampling, self.draft = target, tokenizer, sampling, draft
        self.pad_token_id = padding_token_id(tokenizer)
        self.stops = stop_tokens(target)
        self.context = context_length(target.config) or math.inf

    def __call__(self, jobs: list[Job]) -> Iterator[Job]:
        """Finished jobs, in any order; see the class."""
        set_seed(self.sampling.seed + jobs[0].index)  # a resumed run must not repeat the same draws
        temperature = self.sampling.temperature(jobs[0].batch)
        unfinished = list(jobs)
        while unfinished:
            prompts = {job.index: self._next_prompt(job) for job in unfinished}
            yield from (job for job in unfinished if prompts[job.index] is None)
            unfinished = [job for job in unfinished if prompts[job.index] is not None]
            answers = self._answers([prompts[job.index] for job in unfinished], temperature)
            for job, tokens in zip(unfinished, answers, strict=True):
                self._add_answer(job, prompts[job.index], tokens)
                if not job.asked:
                    yield job
            unfinished = [job for job in unfinished if job.asked]

    def _next_prompt(self, job: Job) -> list[int] | None:
        """Token ids of the next prompt; `None` if there is none, with the reason in the job."""
        try:
            ids = self._prompt_ids(job)
        except BadRow as error:  # a template may reject system messages or consecutive questions
            job.problem = str(error)
            return None
        if len(ids) < self.context:
            return ids
        job.end_early(self._context_full())
        return None

    def _prompt_ids(self, job: Job) -> list[int]:
        if job.text is None and self.tokenizer.chat_template is None:
            job.as_plain_text()
        if job.text is None:
            job.messages += job.asked.pop(0)
            return chat_ids(self.tokenizer, job.messages, prompt=True, options=job.options)
        ids = list(self.tokenizer(job.text)["input_ids"])[: None if job.is_prompt else self.sampling.prompt_tokens]
        if not ids:
            raise BadRow("Its text is empty, and the tokenizer adds no BOS token.")
        return ids

    def _add_answer(self, job: Job, prompt: list[int], tokens: list[int]) -> None:
        shown = prompt + tokens if job.text is not None else tokens
        job.add_answer(self.tokenizer.decode(shown, skip_special_tokens=True), prompt, tokens)
        is_cut = len(tokens) < self.sampling.max_new_tokens and tokens[-1] not in self.stops
        if is_cut and len(prompt) + len(tokens) >= self.context:
            job.end_early(self._context_full())

    def _context_full(self) -> str:
        return f"the target's context of {self.context} tokens is full"

    def _answers(self, prompts: list[list[int]], temperature: float) -> list[list[int]]:
        """
        The answer to each prompt, up to a stop token, `max_new_tokens` or the end of the context.

        `generate` has one length limit for the whole batch. If longer prompts reach the end of the context first, the
        other sequences are continued by another call.
        """
        rooms = [int(min(self.sampling.max_new_tokens, self.context - len(prompt))) for prompt in prompts]
        answers: list[list[int]] = [[] for _ in prompts]
        unfinished = list(range(len(prompts)))
        while unfinished:
            steps = min(rooms[i] - len(answers[i]) for i in unfinished)
            new = self._generate([prompts[i] + answers[i] for i in unfinished], temperature, steps)
            for i, tokens in zip(unfinished, new, strict=True):
                answers[i] += tokens
            unfinished = [
                i
                for i, tokens in zip(unfinished, new, strict=True)
                if len(answers[i]) < rooms[i] and len(tokens) == steps and tokens[-1] not in self.stops
            ]
        return answers

    @torch.no_grad()
    def _generate(self, prompts: list[list[int]], temperature: float, max_new_tokens: int) -> list[list[int]]:
        inputs = left_padded(prompts, self.pad_token_id, self.target.device)
        options: dict = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
        if temperature > 0:
            options |= {"temperature": temperature, "top_p": self.sampling.top_p, "top_k": 0}
        if self.draft is not None:
            options["assistant_model"] = self.draft
        out = self.target.generate(**inputs, pad_token_id=self.pad_token_id, **options)
        return [up_to_stop(answer, self.stops) for answer in out[:, inputs["input_ids"].shape[1] :].tolist()]
