"""Plain and speculative generation of one prompt, one after the other, as a stream of events.

`run` yields small lists of events, so that a page can follow; closing it stops the generation. Events are plain data
and can be pickled, as a Space with ZeroGPU needs. Does not know pages or visitors; logs types of errors, no text.

Generation runs in a thread of its own. It is stopped in the streamers, which `generate` calls after every step: a
criterion of our own would make the loop ask it token by token and switch shared noise off.
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
from transformers import GenerationMixin, set_seed

from hf_eagle3 import CycleRecord, CycleStreamer, record
from hf_eagle3.generation.auto.costs import forget_costs


PLAIN, SPECULATIVE = "plain", "speculative"
HEARTBEAT = 0.25  # seconds after which an empty list is yielded, so that a stop is noticed
# The argument of `generate` that takes a cache: `cache` since transformers 5.24.
CACHE = next(
    name
    for name in ("cache", "past_key_values")
    if name in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
)
CHUNK = 64  # positions whose distribution over the vocabulary exists at a time

logger = logging.getLogger("eagle3_demo")
device_lock = threading.Lock()  # one generation at a time, whoever calls


@dataclass(frozen=True)
class PlainToken:
    """One token of plain generate, `seconds` after its call began."""

    token: int
    seconds: float


@dataclass(frozen=True)
class Finished:
    """
    One way is through.

    Attributes:
        way: `PLAIN` or `SPECULATIVE`.
        tokens: What it wrote.
        seconds: Of the whole call.
        cached_tokens: Of the prompt, in the keys and values of earlier turns: not run again.
        phase_seconds: Where the speculative call's time went, by the host's clock.
        runs_behind: Whether the device runs behind that clock, as accelerators do.
        why_plain: Why the speculative call had to do without speculation; empty where it did not.
        choices: What the tree mode "auto" chose, cycle by cycle; empty in other modes.
    """

    way: str
    tokens: list[int]
    seconds: float
    cached_tokens: int = 0
    phase_seconds: dict[str, float] = field(default_factory=dict)
    runs_behind: bool = False
    why_plain: str = ""
    choices: list[Choice] = field(default_factory=list)


@dataclass(frozen=True)
class Probabilities:
    """The target's own probability of each new token, at temperature 1."""

    values: list[float]


@dataclass(frozen=True)
class Failed:
    """Generation ended in an error; a sentence for the visitor."""

    message: str


Event = PlainToken | CycleRecord | Finished | Probabilities | Failed


class Stopped(Exception):
    """Raised inside `generate` where the visitor, or the time limit, ends it."""


def run(
    pair: Pair,
    ids: list[int],
    request: Request,
    seconds: float,
    interval: float = 0.0,
    caches: dict[str, KeptCache] | None = None,
) -> Iterator[list[Event]]:
    """
    Events of a race, in order: `PlainToken`s and a `Finished` (if `request.compare`), `CycleRecord`s (the first, cycle
    -1, is the prompt's token), a `Finished`, `Probabilities`; or a `Failed` instead of the rest.

    Args:
        pair, ids, request: What to run; `ids` is the prompt.
        seconds: After so many it ends as if it were closed, with a `Failed` that says so.
        interval: Least seconds between two lists, so that following does not cost what is followed.
        caches: Keys and values of earlier turns by way; used, and replaced by those of this turn. `None` keeps none.
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
    """What the worker thread holds."""

    def __init__(self, pair, ids, request, deadline, caches, events, stop):
        self.pair, self.ids, self.request = pair, ids, request
        self.deadline, self.caches = deadline, caches
        self.events, self.stop = events, stop

    def check(self) -> None:
        """Called after every step."""
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
                draft = self.pair.draft.with_tree(self.request.tree, **self.request.tree_sizes)
                ours = self.generate(SPECULATIVE, _Cycles(self), assistant_model=draft)
                if plain and ours.choices and ours.seconds > plain.seconds:
                    forget_costs()  # measured in a bad moment, and frozen: the next run measures them anew
                self.events.put(Probabilities(_probabilities(self.pair.target, self.ids, ours.tokens)))
        except Stopped:
            self._forget()
        except Exception as error:
            self._forget()
            self.events.put(Failed(explained(error)))
        finally:
            self.events.put(None)

    def _forget(self) -> None:
        """A call that did not end leaves a cache that nobody should rely on."""
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
            tokens = sequences[0, len(self.ids) :].tolist()  # waits for the device
            seconds = time.perf_counter() - self.began
        done = Finished(way, tokens, seconds, cached)
        if way == SPECULATIVE:
            done = replace(
                done,
                phase_seconds=stats.phase_seconds if stats.num_cycles else {},
                runs_behind=target.device.type != "cpu",
                why_plain=stats.reason if stats.mode == "plain" else "",
                choices=stats.choices,
            )
        self.events.put(done)
        if self.caches is not None:
            self.caches[way] = KeptCache(extra[CACHE], (self.ids + tokens)[:-1])
        return done


class _PlainStreamer(CycleStreamer):
    """Sees no cycles in plain generate."""

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
            self.tell(token, seconds)

    def tell(self, token: int, seconds: float) -> None:
        self.race.events.put(PlainToken(token, seconds))


class _Cycles(_PlainStreamer):
    """Tokens come with their cycles. A call that has to do without speculation brings tokens alone."""

    def __init__(self, race: _Race):
        super().__init__(race)
        self.announced = 0  # tokens of cycles that are still to be put

    def on_cycle(self, record: CycleRecord) -> None:
        self.announced += len(record.tokens)
        self.race.events.put(record)

    def tell(self, token: int, seconds: float) -> None:
        if self.announced:
            self.announced -= 1
        else:
            self.race.events.put(CycleRecord(0, -1, [token], 0, [token], [-1], [0.0], [], seconds))


@torch.no_grad()
def _probabilities(target, ids: list[int], tokens: list[int]) -> list[float]:
    """Of each of `tokens` after `ids`, by one pass over all of them."""
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
    """For the visitor; the log gets the type and the place. Messages of unknown errors may hold a visitor's text."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    logger.error("%s in %s, line %s", type(error).__name__, place.name, place.lineno)
    if isinstance(error, torch.OutOfMemoryError):
        return "The device is out of memory. Ask for fewer tokens or a smaller tree."
    if isinstance(error, ValueError):  # of settings: sizes of trees, targets that cannot branch
        return str(error)
    return f"Generation failed ({type(error).__name__}). The log has the place."
