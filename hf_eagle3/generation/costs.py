"""What passes cost here: seconds of verifying n nodes and of drafting d levels, measured in use and then frozen.

One table per (target, draft), and in it per device, dtype, number of rows and length of context, the last two in
buckets. A size counts once it was timed `SAMPLES` times after a warm-up; from then on its timing never changes,
so that a choice made from the table is reproducible. Does not know trees.
"""

import weakref
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import nn


WARM_UPS, SAMPLES = 1, 3
OPTIMISM = 0.5  # of the slope beyond the sizes measured: enough to try the next, and measure it


@dataclass
class CostCurve:
    """
    Seconds as a function of a size: piecewise linear between sizes measured.

    Attributes:
        points: Seconds of the sizes measured.
    """

    points: dict[int, float] = field(default_factory=dict)
    _timings: dict[int, list[float]] = field(default_factory=dict)
    _sizes: list[int] = field(default_factory=list)
    _seconds: list[float] = field(default_factory=list)

    def add(self, size: int, seconds: float) -> None:
        """One timing; ignored once the size is measured."""
        if size in self.points:
            return
        timings = self._timings.setdefault(size, [])
        timings.append(seconds)
        if len(timings) == WARM_UPS + SAMPLES:
            self.points[size] = min(self._timings.pop(size)[WARM_UPS:])

    def __call__(self, size: int) -> float:
        """Seconds at `size`; infinite while nothing is measured."""
        known, seconds = self._rising()
        if not known:
            return float("inf")
        if size <= known[0]:
            return seconds[0]
        place = bisect_left(known, size)
        if place < len(known):
            share = (size - known[place - 1]) / (known[place] - known[place - 1])
            return seconds[place - 1] + share * (seconds[place] - seconds[place - 1])
        return seconds[-1] + self.slope(known[-1]) * OPTIMISM * (size - known[-1])

    def slope(self, size: int) -> float:
        """Seconds per unit around `size`, never negative."""
        known, seconds = self._rising()
        if len(known) < 2:
            return 0.0
        place = min(max(bisect_left(known, size), 1), len(known) - 1)
        return (seconds[place] - seconds[place - 1]) / (known[place] - known[place - 1])

    def _rising(self) -> tuple[list[int], list[float]]:
        """Sizes and their seconds. No size costs more than a larger one: what did was timed in a slow moment."""
        if len(self._sizes) != len(self.points):
            self._sizes = sorted(self.points)
            from_the_end = accumulate((self.points[size] for size in reversed(self._sizes)), min)
            self._seconds = list(from_the_end)[::-1]
        return self._sizes, self._seconds


@dataclass
class CostTable:
    """
    Attributes:
        verify: Of a target pass over n tokens, the root included, and of choosing and committing; 1 is a plain step.
        draft: Of drafting d levels.
    """

    verify: CostCurve = field(default_factory=CostCurve)
    draft: CostCurve = field(default_factory=lambda: CostCurve({0: 0.0}))


# By target, then by a module that all views of a draft share.
_tables: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def bucket(number: int, base: int, factor: int) -> int:
    """The smallest of base, base * factor, base * factor², ... that is not below `number`."""
    while base < number:
        base *= factor
    return base


def cost_table(target: nn.Module, draft: nn.Module, num_rows: int, context: int, is_static: bool = False) -> CostTable:
    """
    The table for a batch of `num_rows` whose longest row has `context` tokens, over static shapes or not; the same
    object every time.
    """
    by_draft = _tables.setdefault(target, weakref.WeakKeyDictionary())
    tables = by_draft.setdefault(draft, {})
    weight = next(target.parameters())
    machine = (weight.device, weight.dtype, torch.get_num_threads())
    key = (*machine, bucket(num_rows, 1, 2), bucket(context, 512, 4), is_static)
    return tables.setdefault(key, CostTable())


def relative_costs(target: nn.Module, draft: nn.Module) -> list[dict]:
    """
    What was measured for a pair, in plain steps: one entry per device, dtype, rows and context where the plain step
    itself is measured. `draft` is what the tables are kept by.
    """
    found = []
    for (device, dtype, _, rows, context, is_static), table in _tables.get(target, {}).get(draft, {}).items():
        if (step := table.verify.points.get(1)) is not None:
            found.append(
                {
                    "device": str(device),
                    "dtype": str(dtype).removeprefix("torch."),
                    "rows": rows,
                    "context": context,
                    "static": is_static,
                    "verify": {size: seconds / step for size, seconds in sorted(table.verify.points.items())},
                    "draft": {levels: seconds / step for levels, seconds in sorted(table.draft.points.items())},
                }
            )
    return found


def forget_costs() -> None:
    """Measure anew from here on, for instance after the machine's load has changed."""
    _tables.clear()
