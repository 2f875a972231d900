"""What happened: per sequence and cycle, and where the time went.

Every call of `generate` with a draft makes a `SpeculationStats` (but for "host_chain", where transformers' own loop
runs). It is found on the output (`return_dict_in_generate=True`), through `record()`, or cycle by cycle through a
`CycleStreamer`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

from .. import metrics
from ..compat.outputs import BaseStreamer
from .tree.policy import Choice


PHASES = ("prefill", "draft_forward", "tree", "verify_forward", "walk", "commit")


@dataclass
class SpeculationStats:
    """
    Counters of one or (with `record()`) several calls.

    Attributes:
        accepted_tokens: Per sequence, accepted draft tokens of each of its cycles.
        tree_depths: Per sequence, how many a cycle could have accepted.
        cut: Per sequence, whether a cycle was cut by its end (EOS, length, a stopping criterion).
        num_iterations: Turns of the loop; each runs the target once (twice where states are re-run).
        num_committed_tokens: Tokens of all sequences, the prefill's not counted.
        num_draft_tokens: Draft tokens verified, all sequences.
        prompt_lengths, generated_lengths: Per sequence, in tokens.
        choices: What the tree mode "auto" did in each turn of the loop; empty in other modes.
        mode, reason: "tree", "chain" or "plain", and why, as decided for the target.
        phase_seconds: Wall clock per phase. On CUDA kernels run on after a phase ends, so set
            `synchronize=True` through `record(synchronize=True)` for a true split (slower).
    """

    accepted_tokens: list[list[int]] = field(default_factory=list)
    tree_depths: list[list[int]] = field(default_factory=list)
    cut: list[list[bool]] = field(default_factory=list)
    num_iterations: int = 0
    num_committed_tokens: int = 0
    num_draft_tokens: int = 0
    prompt_lengths: list[int] = field(default_factory=list)
    generated_lengths: list[int] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    mode: str = ""
    reason: str = ""
    phase_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    synchronize: bool = False

    @property
    def num_cycles(self) -> int:
        """Cycles, summed over unfinished sequences."""
        return sum(len(row) for row in self.accepted_tokens)

    @property
    def acceptance_length(self) -> float:
        """tau: committed tokens per cycle, the target's own token included."""
        return metrics.acceptance_length(self.num_committed_tokens, self.num_cycles)

    @property
    def acceptance_rates(self) -> list[float]:
        """n-alpha, n = 0, 1, ...; cycles cut by the end of a sequence are left out."""
        cycles = [
            (accepted, depth)
            for row, depths, cuts in zip(self.accepted_tokens, self.tree_depths, self.cut, strict=True)
            for accepted, depth, is_cut in zip(row, depths, cuts, strict=True)
            if not is_cut
        ]
        return metrics.acceptance_rates(cycles, max((depth for _, depth in cycles), default=0))

    @property
    def histogram(self) -> list[int]:
        """Cycles by number of accepted draft tokens."""
        return metrics.histogram([n for row in self.accepted_tokens for n in row])

    def count_cycle(self, number: int, num_accepted_tokens: int, num_committed: int, depth: int, is_cut: bool) -> None:
        """One more cycle of a sequence; `depth` is how many draft tokens it could have accepted."""
        self.accepted_tokens[number].append(num_accepted_tokens)
        self.tree_depths[number].append(depth)
        self.cut[number].append(is_cut)
        self.num_committed_tokens += num_committed

    def start(self, num_sequences: int) -> None:
        """Make room for the sequences of a call."""
        for each in (self.accepted_tokens, self.tree_depths, self.cut):
            each.extend([] for _ in range(num_sequences))

    def add(self, other: "SpeculationStats") -> None:
        """Append another call's sequences and add its counters."""
        mine, theirs = vars(self), vars(other)
        for name in ("accepted_tokens", "tree_depths", "cut", "prompt_lengths", "generated_lengths", "choices"):
            mine[name].extend(theirs[name])
        for name in ("num_iterations", "num_committed_tokens", "num_draft_tokens"):
            mine[name] += theirs[name]
        for name, seconds in other.phase_seconds.items():
            self.phase_seconds[name] += seconds
        self.mode, self.reason = other.mode, other.reason


class PhaseTimer:
    """
    Times the phases of a call. A phase inside another counts alone for its time.

    Args:
        seconds: Wall clock per phase, added to.
        synchronize: Wait for the accelerator where phases meet.
    """

    def __init__(self, seconds: dict[str, float], synchronize: bool):
        self.seconds, self.synchronize = seconds, synchronize
        self._open: list[str] = []
        self._mark = 0.0

    def _lap(self) -> None:
        if self.synchronize:
            torch.accelerator.synchronize()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._mark
        self._mark = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time inside to `seconds[name]`."""
        self._lap()
        self._open.append(name)
        try:
            yield
        finally:
            self._lap()
            self._open.pop()

    def timed(self, name: str, function: Callable) -> Callable:
        """`function`, whose calls are a phase."""

        def run(*args):
            with self.phase(name):
                return function(*args)

        return run


@dataclass(frozen=True)
class CycleRecord:
    """
    One sequence's cycle as a `CycleStreamer` sees it, on the CPU.

    Attributes:
        row, cycle: Which sequence of the batch, which of its cycles. Cycle -1 is the prefill's token.
        tokens: Committed tokens, in order.
        num_accepted_tokens: How many of them were draft tokens (the first ones).
        tree_tokens, tree_parents, tree_scores: The draft tree; node 0 is the root, scores are log-probabilities of
            being reached.
        accepted_nodes: Nodes of the accepted path, root not included.
        seconds: Since the call began.
    """

    row: int
    cycle: int
    tokens: list[int]
    num_accepted_tokens: int
    tree_tokens: list[int]
    tree_parents: list[int]
    tree_scores: list[float]
    accepted_nodes: list[int]
    seconds: float


class CycleStreamer(BaseStreamer):
    """A streamer that also sees each cycle: tree, accepted path, tokens, seconds. Override `on_cycle`."""

    def on_cycle(self, record: CycleRecord) -> None:
        """Called once per sequence and cycle, before the cycle's tokens are put."""

    def put(self, value: torch.Tensor) -> None:
        """Token ids, as for every streamer of transformers."""

    def end(self) -> None:
        """After the last token."""


_recorder: ContextVar[SpeculationStats | None] = ContextVar("hf_eagle3_recorder", default=None)


@contextmanager
def record(synchronize: bool = False) -> Iterator[SpeculationStats]:
    """
    Collects the stats of every call inside, in this thread or task.

    Args:
        synchronize: Wait for the accelerator at each phase's ends, so that phases are timed apart.

    Example:
        `with hf_eagle3.record() as stats: target.generate(**inputs, assistant_model=draft)`
    """
    stats = SpeculationStats(synchronize=synchronize and torch.accelerator.is_available())
    token = _recorder.set(stats)
    try:
        yield stats
    finally:
        _recorder.reset(token)


def new_stats() -> SpeculationStats:
    """Stats for one call, timed as the surrounding `record()` asks."""
    recorder = _recorder.get()
    return SpeculationStats(synchronize=recorder is not None and recorder.synchronize)


def publish(stats: SpeculationStats) -> None:
    """Hand a finished call's stats to the surrounding `record()`, if any."""
    recorder = _recorder.get()
    if recorder is not None:
        recorder.add(stats)
