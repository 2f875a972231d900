"""What passes cost here: seconds of passes by the tokens they run, measured in use and then frozen.

One table per (target, draft), and in it per device, dtype, number of sequences and length of context, the last two in
buckets. A size counts once it was timed `SAMPLES` times after a warm-up, with the lower quartile of its timings; after
`MOST_SAMPLES` it is frozen, so that choices made from it are reproducible, until it is invalidated. Does not know
trees.
"""

import threading
import time
import weakref
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import nn


WARM_UPS = 1  # the first pass of a shape allocates
SAMPLES = 3  # timings until a size counts: with fewer, one slow moment decides
MOST_SAMPLES = SAMPLES**2
NEAR = 2  # sizes are interpolated from those measured within this factor


@dataclass
class CostCurve:
    """
    Seconds as a function of a size, in tokens: piecewise linear between sizes measured.

    Attributes:
        points: Seconds of the sizes measured.
    """

    points: dict[int, float] = field(default_factory=dict)
    _timings: dict[int, list[float]] = field(default_factory=dict)
    _sizes: list[int] = field(default_factory=list)
    _seconds: list[float] = field(default_factory=list)
    _interpolated: dict[int, float] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    def add(self, size: int, seconds: float) -> None:
        """One timing; ignored once the size is frozen."""
        with self._lock:  # threads may share a pair, and so its table
            self._add(size, seconds)

    def _add(self, size: int, seconds: float) -> None:
        if self.is_frozen(size):
            return
        timings = self._timings.setdefault(size, [])
        timings.append(seconds)
        if len(timings) >= WARM_UPS + SAMPLES:
            counted = sorted(timings[WARM_UPS:])
            self.points[size] = counted[len(counted) // 4]  # a busy machine makes passes slower, never faster
            self._sizes, self._interpolated = [], {}
        if len(timings) == WARM_UPS + MOST_SAMPLES:
            del self._timings[size]

    def is_frozen(self, size: int) -> bool:
        """Whether further timings of `size` are ignored."""
        return size in self.points and size not in self._timings

    def invalidate(self, size: int) -> None:
        """Measure `size` again; until that is done, the old timing holds."""
        with self._lock:
            if self.is_frozen(size):
                self._timings[size] = []

    def __call__(self, size: int) -> float:
        """Seconds at `size`; infinite while nothing is measured."""
        seconds = self._interpolated.get(size)
        if seconds is None:
            with self._lock:
                seconds = self._interpolated[size] = self._between(size)
        return seconds

    def _between(self, size: int) -> float:
        known, seconds = self._rising()
        if not known:
            return float("inf")
        if size < known[0]:
            return max(seconds[0] - self.slope(known[0]) * (known[0] - size), seconds[0] * size / known[0])
        place = max(1, bisect_left(known, size))
        if place < len(known):
            share = (size - known[place - 1]) / (known[place] - known[place - 1])
            return seconds[place - 1] + share * (seconds[place] - seconds[place - 1])
        slope = (seconds[-1] - seconds[0]) / max(1, known[-1] - known[0])
        return seconds[-1] + slope / NEAR * (size - known[-1])  # so that larger ones are tried, and measured

    def covers(self, size: int) -> bool:
        """Whether something near `size` is measured."""
        return any(known <= NEAR * size and size <= NEAR * known for known in list(self.points))

    def slope(self, size: int) -> float:
        """
        Seconds per unit around `size`, never negative: from half of it to twice as much, or as far as anything is
        known, so that one size's timing does not decide.
        """
        with self._lock:
            return self._slope(size)

    def _slope(self, size: int) -> float:
        known, _ = self._rising()
        if len(known) < 2:
            return 0.0
        low = max(known[0], min(size // NEAR, known[-2]))
        high = min(known[-1], max(size * NEAR, known[1]))
        return (self(high) - self(low)) / (high - low)

    def _rising(self) -> tuple[list[int], list[float]]:
        """Sizes and their seconds. No size costs more than a larger one: what did was timed in a slow moment."""
        if not self._sizes:
            self._sizes = sorted(self.points)
            from_the_end = accumulate((self.points[size] for size in reversed(self._sizes)), min)
            self._seconds = list(from_the_end)[::-1]
        return self._sizes, self._seconds


@dataclass
class CostTable:
    """
    Sizes are tokens of all sequences together, whose number changes from cycle to cycle.

    Attributes:
        verify: Of a target pass over so many tokens, the roots included, and of choosing and committing.
        first: Of reading what was committed and drafting the first level, by sequences.
        level: Of drafting one level more, by nodes expanded.
    """

    verify: CostCurve = field(default_factory=CostCurve)
    first: CostCurve = field(default_factory=CostCurve)
    level: CostCurve = field(default_factory=CostCurve)


class Stopwatch:
    """
    Times the passes of one cycle after another: the draft's by laps, the rest of the cycle as the target's.

    Args:
        device: The draft's. Off the CPU kernels run on after their call returns, so that times are taken, by waiting,
            only while they are wanted.

    Attributes:
        is_running: Whether a cycle has begun that did not end yet.
    """

    def __init__(self, device: torch.device):
        self.is_running = False
        self._waits = device.type != "cpu"
        self._is_new = True  # whether the last cycle had a pass whose cost was not frozen yet
        self._is_timed = False
        self._mark = 0.0
        self._laps: list[tuple[CostCurve, int, float]] = []

    def start(self, is_wanted: bool) -> None:
        """A cycle begins; `is_wanted`: its times are, whatever is known."""
        self._is_timed = not self._waits or is_wanted or self._is_new
        self._laps, self.is_running, self._mark = [], True, self._now()

    def lap(self, curve: CostCurve, size: int) -> None:
        """The draft has run a pass of `size` since the last lap."""
        now = self._now()
        self._laps.append((curve, size, now - self._mark))
        self._mark = now

    def stop(self, curve: CostCurve, size: int) -> None:
        """The cycle ends: what it took since the last lap is the target's pass of `size` and all that goes with it."""
        self.lap(curve, size)
        self.is_running = False
        self._is_new = not all(curve.is_frozen(size) for curve, size, _ in self._laps)
        if self._is_timed:
            for curve, size, seconds in self._laps:
                curve.add(size, seconds)

    def invalidate(self) -> None:
        """Measure again what the last cycle ran."""
        for curve, size, _ in self._laps:
            curve.invalidate(size)

    def _now(self) -> float:
        if self._waits and self._is_timed:
            torch.accelerator.synchronize()
        return time.perf_counter()


# By target, then by a module that all views of a draft share.
_tables: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def bucket(number: int, base: int, factor: int) -> int:
    """The smallest of base, base * factor, base * factor², ... that is not below `number`."""
    while base < number:
        base *= factor
    return base


def context_bucket(context: int) -> int:
    """Up to which length of context the costs at `context` tokens are taken to hold."""
    return bucket(context, 512, 4)


def cost_table(
    target: nn.Module, draft: nn.Module, num_sequences: int, context: int, is_static: bool = False
) -> CostTable:
    """
    The table for a batch of `num_sequences` whose longest has `context` tokens, over static shapes or not; the same
    object every time.
    """
    with _LOCK:
        tables = _tables.setdefault(target, weakref.WeakKeyDictionary()).setdefault(draft, {})
    weight = next(target.parameters())
    machine = (weight.device, weight.dtype, torch.get_num_threads())
    key = (*machine, bucket(num_sequences, 1, 4), context_bucket(context), is_static)
    return tables.setdefault(key, CostTable())


def relative_costs(target: nn.Module, draft: nn.Module) -> list[dict]:
    """
    What was measured for a pair: one entry per device, dtype, number of sequences and context, the last two "up to".
    `verify`, `first` and `level` are those of a [`CostTable`], in steps of plain decoding: of the smallest pass.

    Args:
        draft: What the tables are kept by.
    """
    found = []
    for (device, dtype, _, sequences, context, is_static), table in list(
        _tables.get(target, {}).get(draft, {}).items()
    ):
        if not table.verify.points:
            continue
        step = table.verify.points[min(table.verify.points)]
        curves = {"verify": table.verify, "first": table.first, "level": table.level}
        found.append(
            {
                "device": str(device),
                "dtype": str(dtype).removeprefix("torch."),
                "rows": sequences,
                "context": context,
                "static": is_static,
                **{
                    name: {size: seconds / step for size, seconds in sorted(curve.points.items())}
                    for name, curve in curves.items()
                },
            }
        )
    return found


def forget_costs() -> None:
    """Measure anew from here on, for instance after the machine's load has changed."""
    _tables.clear()
