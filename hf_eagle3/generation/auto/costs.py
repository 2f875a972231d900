"""What passes cost here: seconds of passes by the tokens they run, measured in use and then frozen.

One table per (target, draft), and in it per device, dtype, number of rows and length of context, the last two in
buckets. A size counts once it was timed `SAMPLES` times after a warm-up, with the lower quartile of its timings; after
`MOST_SAMPLES` that is frozen, so that choices made from the table are reproducible, until somebody doubts it. Does not
know trees.
"""

import threading
import time
import weakref
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import nn


WARM_UPS, SAMPLES, MOST_SAMPLES = 1, 3, 9
OPTIMISM = 0.5  # of the slope over all sizes measured, beyond the largest: enough to try the next, and measure it
NEAR = 2  # a size measured tells what others cost, up to so many times as large or as small


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
    _told: dict[int, float] = field(default_factory=dict)
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
            self._sizes, self._told = [], {}
        if len(timings) == WARM_UPS + MOST_SAMPLES:
            del self._timings[size]

    def is_frozen(self, size: int) -> bool:
        """Whether further timings of `size` are ignored."""
        return size in self.points and size not in self._timings

    def doubt(self, size: int) -> None:
        """Measure `size` anew; until that is done, the old timing holds."""
        with self._lock:
            if self.is_frozen(size):
                self._timings[size] = []

    def __call__(self, size: int) -> float:
        """Seconds at `size`; infinite while nothing is measured."""
        told = self._told.get(size)
        if told is None:
            with self._lock:
                told = self._told[size] = self._between(size)
        return told

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
        return seconds[-1] + slope * OPTIMISM * (size - known[-1])

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
    Sizes are tokens of all rows together: rows differ in number from cycle to cycle.

    Attributes:
        verify: Of a target pass over so many tokens, the roots included, and of choosing and committing.
        first: Of reading what was committed and drafting the first level, by rows.
        level: Of drafting one level more, by nodes expanded.
    """

    verify: CostCurve = field(default_factory=CostCurve)
    first: CostCurve = field(default_factory=CostCurve)
    level: CostCurve = field(default_factory=CostCurve)


class Stopwatch:
    """
    Times the passes of one cycle after another.

    Attributes:
        is_new: Whether the last cycle had a pass whose cost was not frozen yet.
        is_running: Whether a cycle has begun that did not end yet.
    """

    def __init__(self):
        self.is_new, self.is_running = True, False
        self._phases: dict[str, float] = {}
        self._began = self._mark = 0.0  # the clock less the seconds of drafting; seconds of drafting
        self._laps: list[tuple[CostCurve, int, float]] = []

    def start(self, phase_seconds: dict[str, float]) -> None:
        """A cycle begins; `phase_seconds` are counted on while it runs."""
        self._phases, self._laps, self.is_running = phase_seconds, [], True
        self._mark = self._drafted()
        self._began = time.perf_counter() - self._mark

    def lap(self, curve: CostCurve, size: int) -> None:
        """The draft ran a pass of `size` since the last lap; nothing if it did not."""
        now = self._drafted()
        if now > self._mark:
            self._laps.append((curve, size, now - self._mark))
        self._mark = now

    def stop(self, curve: CostCurve, size: int, is_timed: bool) -> None:
        """
        The cycle ends. All but the draft's passes counts as the target's of `size`: what else a cycle takes comes with
        every size.

        Args:
            is_timed: Whether the seconds show what the cycle cost; else they are thrown away.
        """
        self._laps.append((curve, size, time.perf_counter() - self._mark - self._began))
        self.is_running = False
        self.is_new = not all(curve.is_frozen(size) for curve, size, _ in self._laps)
        if is_timed:
            for curve, size, seconds in self._laps:
                curve.add(size, seconds)

    def doubt(self) -> None:
        """Measure anew what the last cycle ran."""
        for curve, size, _ in self._laps:
            curve.doubt(size)

    def _drafted(self) -> float:
        return self._phases["draft_forward"] + self._phases["tree"]


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


def cost_table(target: nn.Module, draft: nn.Module, num_rows: int, context: int, is_static: bool = False) -> CostTable:
    """
    The table for a batch of `num_rows` whose longest row has `context` tokens, over static shapes or not; the same
    object every time.
    """
    with _LOCK:
        tables = _tables.setdefault(target, weakref.WeakKeyDictionary()).setdefault(draft, {})
    weight = next(target.parameters())
    machine = (weight.device, weight.dtype, torch.get_num_threads())
    key = (*machine, bucket(num_rows, 1, 4), context_bucket(context), is_static)
    return tables.setdefault(key, CostTable())


def relative_costs(target: nn.Module, draft: nn.Module) -> list[dict]:
    """
    What was measured for a pair: one entry per device, dtype, rows and context, the last two "up to". `verify`,
    `first` and `level` are those of a [`CostTable`], in steps of plain decoding: of the smallest pass measured.

    Args:
        draft: What the tables are kept by.
    """
    found = []
    for (device, dtype, _, rows, context, is_static), table in list(_tables.get(target, {}).get(draft, {}).items()):
        if not table.verify.points:
            continue
        step = table.verify.points[min(table.verify.points)]
        curves = {"verify": table.verify, "first": table.first, "level": table.level}
        found.append(
            {
                "device": str(device),
                "dtype": str(dtype).removeprefix("torch."),
                "rows": rows,
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
