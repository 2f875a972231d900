"""Plain and then speculative generation of one prompt, as a stream of events.

`run` yields short lists of events for live updates; closing it stops the generation. Events are plain, picklable data,
as ZeroGPU requires. Only the types of errors are logged, never text. Does not know pages or users.

Generation runs in its own thread and is stopped from the streamers, which `generate` calls after every step. A custom
stopping criterion would be checked token by token and disable shared noise.
"""

import inspect
import logging
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue

import torch
from choices import Choice
from conversation import KeptCache, fitted_cache
from limits import Request
from pair import Pair
from transformers import set_seed

from hf_eagle3 import CycleRecord, CycleStreamer, record
from hf_eagle3.compat.calls import CACHE
from hf_eagle3.generation.auto.costs import forget_costs


PLAIN, SPECULATIVE = "plain", "speculative"
HEARTBEAT = 0.25  # seconds after which an empty list is yielded, so that the consumer can stop
CHUNK = 64  # positions for which the softmax over the vocabulary is computed at a time

logger = logging.getLogger("eagle3_demo")
device_lock = threading.Lock()  # one generation at a time


@dataclass(frozen=True)
class PlainToken:
    """One token of plain generate, `seconds` after the start of the call."""

    token: int
    seconds: float


@dataclass(frozen=True)
class Finished:
    """
    One method has finished.

    Attributes:
        way: `PLAIN` or `SPECULATIVE`.
        tokens: Generated token ids.
        seconds: Duration of the whole call.
        cached_tokens: Prompt tokens whose keys and values were reused from earlier turns.
        phase_seconds: CPU time per phase of the speculative call.
        is_asynchronous: Whether the device runs asynchronously to the CPU, as accelerators do.
        why_plain: Reason why the speculative call ran without speculation; empty if it did not.
        choices: Choices of the tree mode "auto" per cycle; empty in other modes.
    """

    way: str
    tokens: list[int]
    seconds: float
    cached_tokens: int = 0
    phase_seconds: dict[str, float] = field(default_factory=dict)
    is_asynchronous: bool = False
    why_plain: str = ""
    choices: list[Choice] = field(default_factory=list)


@dataclass(frozen=True)
class Probabilities:
    """The target's probability of each new token at temperature 1."""

    values: list[float]


@dataclass(frozen=True)
class Failed:
    """Generation failed; a message for the user."""

    message: str


Event = PlainToken | CycleRecord | Finished | Probabilities | Failed


class Stopped(Exception):
    """Raised inside `generate` to stop it, by the user or at the time limit."""


def run(
    pair: Pair,
    ids: list[int],
    request: Request,
    seconds: float,
    interval: float = 0.0,
    caches: dict[str, KeptCache] | None = None,
) -> Iterator[list[Event]]:
    """
    Events in order: `PlainToken`s and a `Finished` (if `request.compare`), `CycleRecord`s (the first one, cycle -1, is
    the token of prefill), a `Finished`, `Probabilities`; or a `Failed` in place of the rest.

    Args:
        pair, ids, request: The pair, the prompt's token ids and the validated request.
        seconds: Time limit, after which the run ends with a `Failed`.
        interval: Minimum seconds between two lists, to limit the overhead of live updates.
        caches: Keys and values of earlier turns by method; used, and replaced by those of this turn. `None`: not kept.
    """
    events: SimpleQueue[Event | None] = SimpleQueue()
    stop = threading.Event()
    race = _Race(pair, ids, request, time.monotonic() + seconds, caches, events, stop)
    worker = threading.Thread(target=race.work, name="eagle3-race", daemon=True)
    worker.start()
    try:
        while True:
            batch: list[Event | None] = []
            try:
                batch.append(events.get(timeout=HEARTBEAT))
                while True:
                    batch.append(events.get_nowait())
            except Empty:
                pass
            is_last = bool(batch) and batch[-1] is None
            yield [event for event in batch if event is not None]
            if is_last:
                return
            time.sleep(interval)
    finally:
        stop.set()
        worker.join()


class _Race:
    """State of the worker thread."""

    def __init__(self, pair, ids, request, deadline, caches, events, stop):
        self.pair, self.ids, self.request = pair, ids, request
        self.deadline, self.caches = deadline, caches
        self.events, self.stop = events, stop

    def check(self) -> None:
        """Called after every step; raises `Stopped` to end the generation."""
        if self.stop.is_set():
            raise Stopped
        if time.monotonic() > self.deadline:
            self.events.put(Failed("This run reached the time limit and was stopped. Ask for fewer tokens."))
            raise Stopped

    def work(self) -> None:
        try:
            with device_lock:
                self.check()
                plain = self.generate(PLAIN, _PlainStreamer(self)) if self.request.compare else None
                draft = self.pair.drafter(self.request.drafter, self.request.tree, **self.request.tree_sizes)
                ours = self.generate(SPECULATIVE, _Cycles(self), assistant_model=draft)
                if plain and ours.choices and ours.seconds > plain.seconds:
                    forget_costs()  # perhaps measured while the machine was busy; the next run measures again
                self.events.put(Probabilities(_probabilities(self.pair.target, self.ids, ours.tokens)))
        except Stopped:
            self._forget()
        except Exception as error:
            self._forget()
            self.events.put(Failed(explained(error)))
        finally:
            self.events.put(None)

    def _forget(self) -> None:
        """The cache of an interrupted call is in an undefined state."""
        if self.caches is not None:
            self.caches.clear()

    def generate(self, way: str, streamer: CycleStreamer, **extra) -> Finished:
        target = self.pair.target
        ids = torch.tensor([self.ids], device=target.device)
        cached = 0
        if self.caches is not None:
            extra[CACHE] = fitted_cache(self.caches.pop(way, None), self.ids, target.config)
            cached = extra[CACHE].get_seq_length()
        set_seed(self.request.seed)
        with record() as stats:
            self.began = time.perf_counter()
            sequences = target.generate(
                ids, attention_mask=torch.ones_like(ids), **self.request.options, streamer=streamer, **extra
            )
            tokens = sequences[0, len(self.ids) :].tolist()  # synchronises the device
            seconds = time.perf_counter() - self.began
        done = Finished(way, tokens, seconds, cached)
        if way == SPECULATIVE:
            done = replace(
                done,
                phase_seconds=stats.phase_seconds if stats.num_cycles else {},
                is_asynchronous=target.device.type != "cpu",
                why_plain=stats.reason if stats.mode == "plain" else "",
                choices=stats.choices,
            )
        self.events.put(done)
        if self.caches is not None:
            self.caches[way] = KeptCache(extra[CACHE], (self.ids + tokens)[:-1])
        return done


class _PlainStreamer(CycleStreamer):
    """Streams the tokens of plain generate, which has no cycles."""

    def __init__(self, race: _Race):
        self.race = race
        self.is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        self.race.check()
        if self.is_prompt:
            self.is_prompt = False
            return
        seconds = time.perf_counter() - self.race.began
        for token in value.flatten().tolist():
            self.emit(token, seconds)

    def emit(self, token: int, seconds: float) -> None:
        self.race.events.put(PlainToken(token, seconds))


class _Cycles(_PlainStreamer):
    """Streams cycles. A call that runs without speculation has tokens only, which become cycles without a tree."""

    def __init__(self, race: _Race):
        super().__init__(race)
        self.announced = 0  # tokens of reported cycles that `put` has not received yet

    def on_cycle(self, record: CycleRecord) -> None:
        self.announced += len(record.tokens)
        self.race.events.put(record)

    def emit(self, token: int, seconds: float) -> None:
        if self.announced:
            self.announced -= 1
        else:
            self.race.events.put(CycleRecord(0, -1, [token], 0, [token], [-1], [0.0], [], seconds))


@torch.no_grad()
def _probabilities(target, ids: list[int], tokens: list[int]) -> list[float]:
    """Probability of each of `tokens` after `ids`, in one forward pass."""
    if not tokens:
        return []
    whole = torch.tensor([[*ids, *tokens[:-1]]], device=target.device)
    takes_number = "logits_to_keep" in inspect.signature(target.forward).parameters
    keep = {"logits_to_keep": len(tokens)} if takes_number else {}
    logits = target(whole, **keep, use_cache=False).logits[0, -len(tokens) :]
    wanted = torch.tensor(tokens, device=logits.device)[:, None]
    parts = [
        part.float().softmax(-1).gather(1, index)
        for part, index in zip(logits.split(CHUNK), wanted.split(CHUNK), strict=True)
    ]
    return torch.cat(parts)[:, 0].tolist()


def explained(error: Exception) -> str:
    """A message for the user. Only type and location are logged, as unknown errors may contain a user's text."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    logger.error("%s in %s, line %s", type(error).__name__, place.name, place.lineno)
    if isinstance(error, torch.OutOfMemoryError):
        return "The device is out of memory. Ask for fewer tokens or a smaller tree."
    if isinstance(error, ValueError):  # invalid settings: tree sizes, targets that cannot branch
        return str(error)
    return f"Generation failed ({type(error).__name__}). The location is in the log."
