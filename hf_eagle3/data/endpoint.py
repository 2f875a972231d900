"""Answers from an OpenAI-compatible chat endpoint (vLLM, SGLang, ...), tolerating intermittent failures.

httpx sends the requests and tenacity retries them. The `openai` client retries HTTP failures only: it would accept a
truncated body, HTML or an error message as an answer. Does not know datasets or files.
"""

import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace

import httpx
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from .jobs import Job, Sampling, has_lone_surrogate
from .messages import BadRow, decoded, for_endpoint, without_none


logger = logging.getLogger(__name__)
RETRIED_STATUS = (408, 409, 425, 429)  # and all from 500
ENDPOINT_STATUS = (401, 403, 404)  # key, permissions or model name: retrying is useless
PAUSE = 0.5  # seconds before the first retry, doubling
LONGEST_PAUSE = 30
LONGEST_RETRY_AFTER = 120  # seconds
SEEDS_PER_TURN = 10**9  # more than there are conversations
MIN_PATIENCE = 32  # consecutive failed conversations that end the run, or twice `concurrency` if larger

# Field names that servers use; the first non-empty field is read.
REASONING = ("reasoning_content", "reasoning", "reasoning_text", "thinking")  # DeepSeek, SGLang; vLLM, OpenRouter; ...
PROMPT_IDS = ("prompt_token_ids",)
ANSWER_IDS = ("token_ids", "response_token_ids", "completion_token_ids", "output_token_ids", "output_ids")
TEXT_PARTS = ("text", "output_text")
REASONING_PARTS = ("thinking", "reasoning")
ABORTED = ("abort", "error")  # finish reasons of incomplete answers
FULL_CONTEXT = re.compile("context[_ ](length|size|window)")  # "This model's maximum context length is 4096 tokens"
TOOLS_CALLED = "an answer calls tools, whose results are unknown"
CONTEXT_FULL = "the served model's context is full"


class Refused(Exception):
    """This conversation cannot be answered; others may succeed."""


class Failed(Exception):
    """
    The endpoint returned no usable answer.

    Attributes:
        is_final: Retrying is useless.
        pause: Seconds to wait, as requested by the server.
    """

    def __init__(self, message: str, is_final: bool = False, pause: float = 0.0):
        super().__init__(message)
        self.is_final, self.pause = is_final, pause


@dataclass(frozen=True)
class Answer:
    """
    A chat completion.

    Attributes:
        text: Includes reasoning that the server returns separately; may be empty if there are `tool_calls`.
        finish_reason: "stop", "length", ...; `None` if missing.
        prompt_ids, answer_ids: Token ids; `None` if the server does not return them.
        fills_context: The answer was cut off by the served model's context length.
        tool_calls: Those that the server returns separately from the text.
    """

    text: str
    finish_reason: str | None
    prompt_ids: list[int] | None
    answer_ids: list[int] | None
    fills_context: bool = False
    tool_calls: list[dict] | None = None


class Endpoint:
    """
    Answers conversations concurrently through an OpenAI-compatible chat endpoint (vLLM, SGLang, ...).

    A failed request is retried; if it keeps failing, its conversation is skipped, and a later run tries again. The
    run ends when too many consecutive conversations fail.

    Args:
        url: Base URL including the version, e.g. `http://localhost:8000/v1`. The key, if any, is read from
            `OPENAI_API_KEY`.
        model: Name of the served model.
        sampling: Sampling parameters.
        concurrency: Maximum number of concurrent requests.
        retries: Attempts after the first, with exponential backoff, if the endpoint is unreachable or busy, reports an
            internal error, or returns something other than a chat completion.
        timeout: Seconds without receiving data after which an attempt fails.

    Raises:
        ValueError: `url` is not an http(s) URL.
    """

    def __init__(
        self, url: str, model: str, sampling: Sampling, concurrency: int = 16, retries: int = 5, timeout: float = 600
    ):
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL:
            address = httpx.URL()
        if address.scheme not in ("http", "https") or not address.host:
            raise ValueError(f"`--endpoint` is {url!r}; use an http(s) URL such as http://localhost:8000/v1.")
        self.url, self.model, self.sampling = url.rstrip("/") + "/chat/completions", model, sampling
        self.concurrency, self.retries, self.timeout = concurrency, retries, timeout
        self._takes_ids: bool | None = None  # whether the server accepts `return_token_ids`; `None`: unknown
        self._warned = False
        self._num_consecutive_failures = 0

    def __call__(self, jobs: list[Job]) -> Iterator[Job]:
        """
        Finished jobs, in any order; see the class.

        Raises:
            OSError: too many consecutive conversations failed.
        """
        stop = threading.Event()
        failure: str | None = None
        with self._client() as client, ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(self._converse, client, job, stop) for job in jobs]
            try:
                for future in as_completed(futures):
                    job = None if future.cancelled() else future.result()
                    if job is None:
                        continue
                    self._num_consecutive_failures = self._num_consecutive_failures + 1 if job.can_retry else 0
                    if self._num_consecutive_failures >= max(MIN_PATIENCE, 2 * self.concurrency) and failure is None:
                        failure = job.problem
                        stop.set()  # requests in flight may still succeed
                        for waiting in futures:
                            waiting.cancel()
                    self._warn_without_ids(job)
                    yield job
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
        if failure is not None:
            raise OSError(
                f"{self._num_consecutive_failures} consecutive conversations failed, the last one: {failure}"
            )

    def _client(self) -> httpx.Client:
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        return httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(self.timeout, connect=min(self.timeout, 30), pool=None),
            # One connection per request: a server may close an idle one just as the next request is sent on it.
            limits=httpx.Limits(max_keepalive_connections=0),
            follow_redirects=True,
        )

    def _warn_without_ids(self, job: Job) -> None:
        if job.text_only and not self._warned:
            self._warned = True
            logger.warning(
                "The endpoint returns no token ids, so answers are stored as text only: turns that the chat template "
                "rewrites (earlier reasoning) cannot be trained on. Newer versions of vLLM and SGLang return them."
            )

    def _converse(self, client: httpx.Client, job: Job, stop: threading.Event) -> Job | None:
        """The job with its answers or its problem; `None` if the run is stopping."""
        if job.text is not None:
            job.problem = "a chat endpoint cannot continue plain `text`; regenerate it in-process"
        while job.asked and job.problem is None:
            job.messages += job.asked.pop(0)
            try:
                answer = self._ask(client, job, stop)
            except (Refused, BadRow) as refusal:
                if job.num_answers and FULL_CONTEXT.search(str(refusal)):
                    job.end_early(CONTEXT_FULL)
                else:
                    job.problem = str(refusal)
            except Failed as failure:
                if stop.is_set():
                    return None
                job.problem, job.can_retry = str(failure), True
            else:
                job.add_answer(answer.text, answer.prompt_ids, answer.answer_ids, answer.tool_calls)
                if answer.fills_context:
                    job.end_early(CONTEXT_FULL)
                elif answer.tool_calls and job.asked:
                    job.end_early(TOOLS_CALLED)
        return job

    def _ask(self, client: httpx.Client, job: Job, stop: threading.Event) -> Answer:
        """
        The next answer. A rejected request is sent again without what servers may reject: `max_tokens` beyond the
        context (without it the server uses what is left), and `return_token_ids` if it may be unsupported.
        """
        body = {
            "model": self.model,
            "messages": for_endpoint(job.messages),
            "max_tokens": self.sampling.max_new_tokens,
            "temperature": self.sampling.temperature(job.index),
            "top_p": self.sampling.top_p,
            # Servers draw the same noise for the same seed: a later turn would repeat the earlier one's rare words.
            "seed": self.sampling.seed + job.index + job.num_answers * SEEDS_PER_TURN,
        } | job.template_fields()
        if self._takes_ids is not False:
            body["return_token_ids"] = True
        attempts = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, Failed) and not error.is_final),
            stop=stop_after_attempt(self.retries + 1),
            wait=pause_before_retry,
            sleep=sleep_using_event(stop),
            reraise=True,
        )
        while True:
            try:
                answer = attempts(self._post, client, body, stop)
            except Refused as refusal:
                if "max_tokens" in body and FULL_CONTEXT.search(str(refusal)):
                    del body["max_tokens"]
                elif self._takes_ids is None and "return_token_ids" in body:
                    del body["return_token_ids"]
                else:
                    raise
            else:
                self._takes_ids = "return_token_ids" in body
                is_cut = "max_tokens" not in body and answer.finish_reason == "length"
                return replace(answer, fills_context=is_cut)

    def _post(self, client: httpx.Client, body: dict, stop: threading.Event) -> Answer:
        """Send one request."""
        if stop.is_set():
            raise Failed("The run is stopping.", is_final=True)
        try:
            response = client.post(self.url, json=body)
        except httpx.RequestError as error:
            raise Failed(f"{self.url} cannot be reached: {type(error).__name__}: {error}") from None
        if response.is_success:
            try:
                return read_answer(response.content)
            except Failed as failure:
                raise Failed(f"{self.url} did not return a chat completion: {failure}") from None
        status, problem = response.status_code, f"{self.url} returned {response.status_code}: {response.text[:500]}"
        if status in RETRIED_STATUS or status >= 500:
            raise Failed(problem, pause=retry_after(response))
        if status in ENDPOINT_STATUS or response.is_redirect:
            raise Failed(problem, is_final=True)
        raise Refused(problem)


def retry_after(response: httpx.Response) -> float:
    """Seconds from `Retry-After`; 0 if missing or a date."""
    text = response.headers.get("Retry-After", "").strip()
    return float(min(int(text), LONGEST_RETRY_AFTER)) if text.isascii() and text.isdigit() else 0.0


def pause_before_retry(state: RetryCallState) -> float:
    """Exponential backoff in seconds with jitter, at least what the server requested."""
    growing = (wait_exponential(multiplier=PAUSE, max=LONGEST_PAUSE) + wait_random(0, PAUSE))(state)
    error = state.outcome.exception()
    return max(growing, error.pause)


def read_answer(body: bytes) -> Answer:
    """
    Parse a chat completion.

    Raises:
        Failed: it is none, or was aborted.
        Refused: it has neither text nor tool calls, or was withheld by a content filter.
    """
    try:
        completion = json.loads(body)
    except (ValueError, RecursionError) as error:  # truncated JSON, HTML, invalid UTF-8
        raise Failed(f"not JSON ({error}): {body[:200]!r}") from None
    if isinstance(completion, dict) and completion.get("error"):
        raise Failed(f"error: {str(completion['error'])[:500]}")
    try:
        choice = completion["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text, reasoning = split_parts(message.get("content"))
        given = next((message[name] for name in REASONING if message.get(name)), None)
        calls = tool_calls(message.get("tool_calls"))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Failed(f"not a chat completion: {body[:200]!r}") from None
    reasoning += "".join(split_parts(given))
    if reason in ABORTED:
        raise Failed(f"aborted (`finish_reason` {reason!r})")
    if reason == "content_filter":
        raise Refused("the answer was withheld by the server's content filter")
    if not text and not calls:
        raise Refused("the answer has no text (cut off while reasoning?); raise `--max-new-tokens`")
    if has_lone_surrogate(text + reasoning + json.dumps(calls, ensure_ascii=False)):
        raise Failed("lone surrogate in the text")
    if reasoning:
        text = f"<think>\n{reasoning.strip()}\n</think>\n\n{text}"
    objects = [
        candidate
        for candidate in (choice, message, choice.get("meta_info"), completion.get("sglext"), completion)
        if isinstance(candidate, Mapping)
    ]
    ids = token_ids(objects, PROMPT_IDS), token_ids(objects, ANSWER_IDS)
    return Answer(text, reason, *ids, tool_calls=calls)


def tool_calls(given: object) -> list[dict] | None:
    """
    The tool calls of a message, in the form of the next request.

    Raises:
        Failed: they are not tool calls.
        Refused: the arguments of a call are not valid JSON.
    """
    if not given:
        return None
    if not isinstance(given, list):
        raise Failed(f"`tool_calls` of type {type(given).__name__}")
    for call in given:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Failed(f"a tool call without a function name: {str(call)[:200]}")
        if function.get("arguments") and not isinstance(decoded(function["arguments"]), dict):
            raise Refused("the arguments of a tool call are not a JSON object (cut off?); raise `--max-new-tokens`")
    return without_none(given)


def split_parts(content: object) -> tuple[str, str]:
    """
    (text, reasoning) of a message's content: a string, `None`, or a list of typed parts.

    Raises:
        Failed: content of another kind.
    """
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        raise Failed(f"content of type {type(content).__name__}")
    text = reasoning = ""
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in TEXT_PARTS:
            text += "".join(split_parts(part.get("text")))
        elif kind in REASONING_PARTS:
            reasoning += "".join(split_parts(part.get(kind, part.get("text"))))
        else:
            raise Failed(f"a content part of type {kind!r}, which is not text")
    return text, reasoning


def token_ids(objects: Iterable[Mapping], names: Iterable[str]) -> list[int] | None:
    """The first list of token ids under one of these names; of one list per choice, that of the first choice."""
    for candidate in objects:
        for name in names:
            found = candidate.get(name)
            if isinstance(found, list) and found and isinstance(found[0], list):
                found = found[0]
            if isinstance(found, list) and found and all(type(token) is int and token >= 0 for token in found):
                return found
    return None
