"""The target answers the prompts itself: what a draft should learn is what its target says.

In-process (batched, with or without a draft) or through an OpenAI-compatible endpoint. Conversations are written to a
JSON-lines file one by one as they are finished; a run that was interrupted goes on where it was.
"""

import json
import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from .conversations import chat_ids
from .messages import (
    MOST_NAMED,
    BadRow,
    Message,
    for_endpoint,
    messages_of,
    named,
    plain_text,
    questions,
    row_of,
    template_options,
)


logger = logging.getLogger(__name__)
RETRIED_STATUS = (408, 409, 425, 429, 500, 502, 503, 504)
HOPELESS_STATUS = (401, 403, 404)  # no conversation would fare better
PAUSE = 0.5  # seconds before the first retry, doubling


class Refused(Exception):
    """One conversation cannot be answered; others may."""


@dataclass(frozen=True)
class Sampling:
    """
    How answers are drawn. `temperatures` take turns, batch by batch; 0 is greedy. Plain text (for targets without
    chat) is cut after `prompt_tokens` tokens and continued.
    """

    max_new_tokens: int = 512
    temperatures: tuple[float, ...] = (1.0,)
    top_p: float = 1.0
    seed: int = 0
    prompt_tokens: int = 32

    def temperature(self, batch: int) -> float:
        """That of a batch."""
        return self.temperatures[batch % len(self.temperatures)]


@dataclass
class Job:
    """
    One conversation under way: `messages` so far, and what is `asked` still, each entry to be answered (a question, or
    one with recorded calls of tools and their results); or `text` to be continued, the first tokens of it unless
    `is_prompt`. `batch` is the place of its batch in the data, whatever of it was done before. `options` are the row's
    own for the chat template, tools included. `problem` says why it could not be answered.
    """

    index: int
    messages: list[Message]
    asked: list[list[Message]]
    batch: int = 0
    text: str | None = None
    tokens: dict | None = None
    problem: str | None = None
    options: dict = field(default_factory=dict)
    is_prompt: bool = False

    @classmethod
    def from_sample(cls, index: int, sample: dict, batch: int = 0, template_kwargs: Mapping | None = None) -> "Job":
        """
        What a sample asks.

        Raises:
            BadRow: nothing, or it is not a conversation or text.
        """
        row = row_of(sample)
        if isinstance(row.get("prompt"), str) and row.get("completion") is None:
            row = {name: row.get(name) for name in ("prompt", "tools", "chat_template_kwargs")}
        messages = messages_of(row)
        if messages is None:
            if row.get("text") is None:
                raise BadRow("Regeneration needs conversations or `text`; this sample is tokens.")
            return cls(index, [], [], batch, text=plain_text(row["text"], "`text`"))
        before, asked = questions(messages)
        if not asked:
            raise BadRow("It has no question to answer.")
        return cls(index, before, asked, batch, options=template_options(row, template_kwargs))

    def as_plain_text(self) -> None:
        """For a target without a chat template: one question is a text to be continued."""
        if len(self.asked) > 1 or len(self.asked[0]) > 1:
            raise BadRow(
                "It is a conversation of several turns and the tokenizer has no chat template; give single prompts."
            )
        self.text = "\n".join(message["content"] for message in (*self.messages, *self.asked.pop()))
        self.options, self.is_prompt = {}, True

    def record(self) -> dict:
        """The line of the output file."""
        content = {"messages": self.messages} if self.text is None else {"text": self.text}
        return {"id": self.index} | content | self.given() | (self.tokens or {})

    def given(self) -> dict:
        """`options` as rows and requests name them."""
        own = {name: value for name, value in self.options.items() if name != "tools"}
        tools = {"tools": self.options["tools"]} if "tools" in self.options else {}
        return tools | ({"chat_template_kwargs": own} if own else {})


def finished_ids(path: Path) -> set[int]:
    """Ids that the file already has; a half-written last line is cut off."""
    if not path.exists():
        return set()
    found, good = set(), 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                found.add(json.loads(line)["id"])
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"`{path}` is not a file of regenerated conversations; use another.") from None
            good += len(line)
    if good == 0 and path.stat().st_size and not found:
        with path.open("rb") as file:
            if not file.read(6).startswith(b'{"id"'):
                raise ValueError(f"`{path}` is not a file of regenerated conversations; use another.")
    os.truncate(path, good)
    return found


def regenerate(
    samples: Iterable[dict],
    path: str | Path,
    answer: Callable[[list[Job]], Iterator[Job]],
    batch_size: int,
    progress=None,
    template_kwargs: Mapping | None = None,
) -> int:
    """
    Answer every conversation of `samples` that `path` does not have yet and append it there.

    Args:
        samples: Conversations in any shape of `conversations`; the answers in them are ignored.
        path: JSON lines: {"id": place in `samples`, "messages", ...}.
        answer: Takes a batch of jobs, yields them finished, in any order.
        batch_size: Jobs given to `answer` at once.
        progress: Something with `update(n)`.
        template_kwargs: Further arguments of the chat template; each line of `path` keeps them.

    Returns:
        How many were written. Rows that cannot be read or answered are left out and reported with their numbers, from
        1; a later run tries again.

    Raises:
        ValueError: `path` is another kind of file, or there is no row that can be answered.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    done, written = finished_ids(path), 0
    problems: list[tuple[int, str]] = []

    def readable() -> Iterator[Job]:
        for index, sample in enumerate(samples):
            if index not in done:
                try:
                    yield Job.from_sample(index, sample, index // batch_size, template_kwargs)
                except BadRow as error:
                    problems.append((index + 1, str(error)))

    with path.open("a", encoding="utf-8") as file:
        for _, batch in groupby(readable(), key=lambda job: job.batch):
            for job in answer(list(batch)):
                if progress is not None:
                    progress.update(1)
                if job.problem is not None:
                    problems.append((job.index + 1, job.problem))
                    continue
                file.write(json.dumps(job.record(), ensure_ascii=False) + "\n")
                file.flush()
                written += 1
    if problems:
        report = (
            f"{len(problems)} conversations were not answered. {named(sorted(problems)[:MOST_NAMED], len(problems))}"
        )
        if not written and not done:
            raise ValueError(report)
        logger.warning(report)
    return written


class InProcess:
    """
    Answers by `target.generate`, all turns of a batch of conversations side by side.

    A conversation of one turn is also kept as the very tokens (`input_ids`, `loss_mask`), which training prefers: text
    encoded again may split differently, and an answer cut by `max_new_tokens` has no end to learn.

    Args:
        target: The target.
        tokenizer: Its tokenizer, with a chat template.
        sampling: How to draw.
        draft: A draft for it, to be faster.
    """

    def __init__(self, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling, draft=None):
        self.target, self.tokenizer, self.sampling, self.draft = target, tokenizer, sampling, draft
        self.pad = next(t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if t is not None)
        stops = target.generation_config.eos_token_id
        self.stops = {stops} if isinstance(stops, int) else set(stops or ())

    def __call__(self, jobs: list[Job]) -> Iterator[Job]:
        """The jobs finished, in any order; see the class."""
        set_seed(self.sampling.seed + jobs[0].index)  # not the same draws again where a run resumes
        temperature = self.sampling.temperature(jobs[0].batch)
        unfinished = list(jobs)
        while unfinished:
            prompts = []
            for job in list(unfinished):
                try:
                    prompts.append(self._prompt(job))
                except BadRow as error:  # a template may refuse a system message, or two questions in a row
                    job.problem = str(error)
                    unfinished.remove(job)
                    yield job
            if not prompts:
                return
            for job, prompt, tokens in zip(unfinished, prompts, self._generate(prompts, temperature), strict=True):
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                if not job.asked and not any(m["role"] == "assistant" for m in job.messages):
                    job.tokens = {"input_ids": prompt + tokens, "loss_mask": [0] * len(prompt) + [1] * len(tokens)}
                if job.text is not None:
                    job.text = self.tokenizer.decode(prompt + tokens, skip_special_tokens=True)
                else:
                    job.messages.append({"role": "assistant", "content": text})
                if not job.asked:
                    yield job
            unfinished = [job for job in unfinished if job.asked]

    def _prompt(self, job: Job) -> list[int]:
        if job.text is None and self.tokenizer.chat_template is None:
            job.as_plain_text()
        if job.text is not None:
            ids = list(self.tokenizer(job.text)["input_ids"])[: None if job.is_prompt else self.sampling.prompt_tokens]
            if not ids:
                raise BadRow("It is an empty text, and the tokenizer starts with no token.")
            return ids
        job.messages += job.asked.pop(0)
        return chat_ids(self.tokenizer, job.messages, prompt=True, options=job.options)

    @torch.no_grad()
    def _generate(self, prompts: list[list[int]], temperature: float) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        options: dict = {"max_new_tokens": self.sampling.max_new_tokens, "do_sample": temperature > 0}
        if temperature > 0:
            options |= {"temperature": temperature, "top_p": self.sampling.top_p, "top_k": 0}
        if self.draft is not None:
            options["assistant_model"] = self.draft
        device = self.target.device
        out = self.target.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), pad_token_id=self.pad, **options
        )
        return [up_to_stop(row, self.stops) for row in out[:, width:].tolist()]


def up_to_stop(tokens: list[int], stops: set[int]) -> list[int]:
    """Tokens through the first stop token."""
    end = next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]


class Endpoint:
    """
    Answers by an OpenAI-compatible chat endpoint (vLLM, SGLang, ...), several conversations at once.

    Args:
        url: Up to the version, e.g. `http://localhost:8000/v1`. The key, if any, is read from `OPENAI_API_KEY`.
        model: Name of the served model.
        sampling: How to draw.
        concurrency: Most requests under way.
        retries: Attempts after the first, with growing pauses; for refusals of load and errors of the server only.
    """

    def __init__(
        self, url: str, model: str, sampling: Sampling, concurrency: int = 16, retries: int = 5, timeout: float = 600
    ):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"`--endpoint` is {url!r}; give an http(s) address such as http://localhost:8000/v1.")
        self.url, self.model, self.sampling = url.rstrip("/") + "/chat/completions", model, sampling
        self.concurrency, self.retries, self.timeout = concurrency, retries, timeout

    def __call__(self, jobs: list[Job]) -> Iterator[Job]:
        """The jobs finished, in any order; see the class."""
        stop = threading.Event()
        failure: OSError | None = None
        with ThreadPoolExecutor(self.concurrency) as pool:
            waiting = {pool.submit(self._converse, job, stop) for job in jobs}
            try:
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        try:
                            job = future.result()
                        except OSError as error:  # nobody will be answered: keep what is done, ask no more
                            failure = failure or error
                            stop.set()
                            continue
                        if job is not None:
                            yield job
            finally:
                stop.set()
                for future in waiting:
                    future.cancel()
        if failure is not None:
            raise failure

    def _converse(self, job: Job, stop: threading.Event) -> Job | None:
        """The job with its answers or its problem; `None` where the run is being stopped."""
        if job.text is not None:
            job.problem = "a chat endpoint cannot continue plain `text`; that is done in-process"
        while job.asked and job.problem is None:
            job.messages += job.asked.pop(0)
            try:
                content = self._ask(job, stop)
            except Refused as refusal:
                job.problem = str(refusal)
                break
            if content is None:
                return None
            job.messages.append({"role": "assistant", "content": content})
        return job

    def _ask(self, job: Job, stop: threading.Event) -> str | None:
        body = {
            "model": self.model,
            "messages": for_endpoint(job.messages),
            "max_tokens": self.sampling.max_new_tokens,
            "temperature": self.sampling.temperature(job.batch),
            "top_p": self.sampling.top_p,
            "seed": self.sampling.seed + job.index,
        }
        body |= job.given()
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        problem = ""
        for attempt in range(self.retries + 1):
            if stop.wait(min(2**attempt * PAUSE, 30) if attempt else 0):
                return None
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return said(json.load(response))
            except urllib.error.HTTPError as error:
                problem = f"{self.url} answered {error.code}: {error.read(500).decode(errors='replace')}"
                if error.code in HOPELESS_STATUS:
                    raise OSError(problem) from None
                if error.code not in RETRIED_STATUS:
                    raise Refused(problem) from None
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                problem = f"{self.url} cannot be reached: {error}"
            except ValueError:
                raise OSError(f"{self.url} did not answer as a chat endpoint does.") from None
        raise OSError(problem)


def said(answer: dict) -> str:
    """
    The text of a chat completion, reasoning included where the server parts it off.

    Raises:
        Refused: no text.
        ValueError: not a chat completion.
    """
    try:
        message = answer["choices"][0]["message"]
        content, reasoning = message.get("content"), message.get("reasoning_content")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("not a chat completion") from None
    if not content:
        raise Refused("the answer has no text (cut off while it was reasoning?); raise `--max-new-tokens`")
    return f"<think>\n{reasoning.strip()}\n</think>\n\n{content}" if reasoning else content
