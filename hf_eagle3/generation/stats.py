"""What happened: per row and cycle, and where the time went.

Every call of `generate` with a draft makes a `SpeculationStats` (but for "host_chain", where the host's own loop
runs). It is found on the output (`return_dict_in_generate=True`), through `record()`, or cycle by cycle through a
`CycleStreamer`.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

from .. import metrics
from ..compat.outputs import BaseStreamer
from .auto.planner import Choice


PHASES = ("prefill", "draft_forward", "tree", "verify_forward", "walk", "commit")


@dataclass
class SpeculationStats:
    """
    Counters of one or (with `record()`) several calls.

    Attributes:
        accepted_tokens: Per row, accepted draft tokens of each of its cycles.
        tree_depths: Per row, how many a cycle could have accepted.
        cut: Per row, whether a cycle was cut by the end of the row (EOS, length, a stopping criterion).
        num_iterations: Turns of the loop; each runs the target once (twice where states are re-run).
        num_committed_tokens: Tokens of all rows, the prefill's not counted.
        num_draft_tokens: Draft tokens verified, all rows.
        prompt_lengths, generated_lengths: Per row, in tokens.
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
        """Cycles, summed over unfinished rows."""
        return sum(len(row) for row in self.accepted_tokens)

    @property
    def acceptance_length(self) -> float:
        """tau: committed tokens per cycle, the target's own token included."""
        return metrics.acceptance_length(self.num_committed_tokens, self.num_cycles)

    @property
    def acceptance_rates(self) -> list[float]:
        """n-alpha, n = 0, 1, ...; cycles cut by the end of a row are left out."""
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

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time inside to `phase_seconds[name]`."""
        if self.synchronize:
            torch.accelerator.synchronize()
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.synchronize:
                torch.accelerator.synchronize()
            self.phase_seconds[name] += time.perf_counter() - start

    def count_cycle(self, row: int, num_accepted_tokens: int, num_committed: int, depth: int, is_cut: bool) -> None:
        """One more cycle of a row; `depth` is how many draft tokens it could have accepted."""
        self.accepted_tokens[row].append(num_accepted_tokens)
        self.tree_depths[row].append(depth)
        self.cut[row].append(is_cut)
        self.num_committed_tokens += num_committed

    def start_rows(self, num_rows: int) -> None:
        """Make room for the rows of a call."""
        for rows in (self.accepted_tokens, self.tree_depths, self.cut):
            rows.extend([] for _ in range(num_rows))

    def add(self, other: "SpeculationStats") -> None:
        """Append another call's rows and add its counters."""
        for name in ("accepted_tokens", "tree_depths", "cut", "prompt_lengths", "generated_lengths", "choices"):
            getattr(self, name).extend(getattr(other, name))
        for name in ("num_iterations", "num_committed_tokens", "num_draft_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, seconds in other.phase_seconds.items():
            self.phase_seconds[name] += seconds
        self.mode, self.reason = other.mode, other.reason


@dataclass(frozen=True)
class CycleRecord:
    """
    One row's cycle as a `CycleStreamer` sees it, on the host.

    Attributes:
        row, cycle: Which row of the batch, which of its cycles. Cycle -1 is the prefill's token.
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
        """Called once per row and cycle, before the cycle's tokens are put."""

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
        synchronize: Wait for the accelerator at each phase's ends, so that phases are told apart truly.

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
