"""Live plots as SVG: tokens per second, accepted tokens per cycle with the running tau, histogram, phases at the end.

Generated as text, because the page redraws them several times per second during generation, where matplotlib would
take about 100 ms each time, and so that they follow the theme and width of the page. Colours are defined in the style
sheet. Does not know models.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from progress import Progress

from hf_eagle3 import metrics


WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 28, 34
WINDOW = 12  # tokens over which speed is averaged
MAX_MARKS = 240  # points or bars of a plot
PHASE_NAMES = {
    "prefill": "prompt",
    "draft_forward": "drafting",
    "tree": "tree building",
    "verify_forward": "verification",
    "walk": "token choice",
    "commit": "commit",
}


def plots(progress: Progress) -> str:
    """All plots; empty frames are shown from the start, so that the layout is stable."""
    cycles = progress.speculated
    counts = [cycle.num_accepted_tokens for cycle in cycles]
    plain = [event.seconds for event in progress.plain]
    ours = [cycle.seconds for cycle in progress.cycles for _ in cycle.tokens]
    parts = [
        speed_plot(plain, ours),
        accepted_plot(progress.drafted_levels, counts, [len(cycle.tokens) for cycle in cycles]),
        histogram_plot(counts, sum(len(cycle.tree_tokens) - 1 for cycle in cycles)),
    ]
    for done in progress.finished.values():
        if done.phase_seconds:
            parts.append(phases_plot(done.phase_seconds, done.is_asynchronous))
    return f'<div class="plots">{"".join(parts)}</div>'


def speed_plot(plain: Sequence[float], ours: Sequence[float]) -> str:
    """Recent speed over time; the inputs are the seconds of each token since the start of its call."""
    lines = {"plain": rates(plain), "ours": rates(ours)}
    most = max([rate for line in lines.values() for _, rate in line], default=1.0)
    axes = Axes(max([*plain, *ours], default=1.0), most, "seconds", is_continuous=True)
    for kind, line in lines.items():
        axes.line(line, kind)
    names = [(kind, name) for kind, name in (("plain", "plain"), ("ours", "with the draft")) if lines[kind]]
    return axes.svg("Speed, tokens/s", "speed", names)


def rates(seconds: Sequence[float]) -> list[tuple[float, float]]:
    """(seconds, tokens per second over the last `WINDOW` tokens, or pass) by pass, from the time of each token."""
    passes = [(at, place + 1) for place, at in enumerate(seconds) if seconds[place + 1 : place + 2] != [at]]
    found, first = [], 0
    for (before, _), (at, count) in pairwise(passes):
        while passes[first][0] < before and count - passes[first][1] > WINDOW:
            first += 1
        found.append((at, (count - passes[first][1]) / (at - passes[first][0])))
    return found


def accepted_plot(levels: Sequence[int], accepted: Sequence[int], committed: Sequence[int]) -> str:
    """A bar of accepted draft tokens per cycle, in front of one of drafted levels; the line is the running tau."""
    taus = [total / (place + 1) for place, total in enumerate(accumulate(committed))]
    axes = Axes(len(accepted), max([*levels, *taus], default=1.0), "cycle")
    axes.bars(list(levels), "levels")
    axes.bars(list(accepted), "accepted")
    axes.line([(place + 0.5, tau) for place, tau in enumerate(taus)], "tau")
    keys = []
    if taus:
        keys = [("levels", "levels drafted"), ("accepted", "accepted"), ("tau", f"τ so far {taus[-1]:.2f}")]
    return axes.svg("Accepted draft tokens per cycle", "accepted", keys)


def histogram_plot(accepted: Sequence[int], drafted: int) -> str:
    """Histogram of cycles by accepted draft tokens; `drafted` is the total number of draft tokens."""
    counts = metrics.histogram(accepted)
    axes = Axes(len(counts), max(counts, default=1), "accepted draft tokens", is_categories=True)
    axes.bars(counts, "accepted")
    keys = [("accepted", f"{sum(accepted)} of {drafted} draft tokens in {len(accepted)} cycles")] if accepted else []
    return axes.svg("Cycles by accepted draft tokens", "histogram", keys)


def phases_plot(seconds: dict[str, float], is_asynchronous: bool) -> str:
    """Shares of the phases of the speculative call; `is_asynchronous`: times are CPU times, not device times."""
    total = sum(seconds.values()) or 1.0
    x, bars, rows = 0.0, [], []
    for place, (phase, spent) in enumerate(seconds.items()):
        width = spent / total * (WIDTH - 20)
        bars.append(f'<rect class="phase{place}" x="{10 + x:.1f}" y="34" width="{width:.1f}" height="22"/>')
        row, column = divmod(place, 2)
        at = f'x="{10 + column * 170}" y="{78 + row * 26}"'
        name = PHASE_NAMES.get(phase, phase)
        rows.append(
            f'<rect class="phase{place}" {at} width="11" height="11" rx="2"/>'
            f'<text x="{27 + column * 170}" y="{88 + row * 26}">{name} {spent / total:.0%}</text>'
        )
        x += width
    legend = [("none", f"{total:.2f} s" + " of CPU time; the device runs asynchronously" * is_asynchronous)]
    return _framed("Time per phase with the draft", "phases", "".join(bars + rows), legend)


class Axes:
    """Axes from 0 to `max_x` and `max_y`; `is_continuous`: x is no count, so its ticks may be closer than 1."""

    def __init__(
        self, max_x: float, max_y: float, x_title: str, is_categories: bool = False, is_continuous: bool = False
    ):
        self.least_step_x = 0.0 if is_continuous else 1.0
        self.max_x, self.x_title = max_x if is_continuous and max_x > 0 else max(max_x, 1), x_title
        self.step_y = tick_step(max_y, 4)
        self.max_y = max(self.step_y * math.ceil(max_y / self.step_y - 1e-9), self.step_y)
        self.is_categories = is_categories
        self.marks: list[str] = []

    def x(self, value: float) -> float:
        """Horizontal position of a value in px."""
        return LEFT + value / self.max_x * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Vertical position of a value in px from the top."""
        return HEIGHT - BOTTOM - value / self.max_y * (HEIGHT - TOP - BOTTOM)

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """Add a line of CSS class `kind`."""
        if points:
            path = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in thinned(points))
            self.marks.append(f'<polyline class="line {kind}" points="{path}"/>')

    def bars(self, heights: Sequence[float], kind: str) -> None:
        """Add a bar per unit, at most the last `MAX_MARKS`, of CSS class `kind`."""
        unit = (WIDTH - LEFT - RIGHT) / self.max_x
        gap = min(0.2 * unit, 6)
        for place, height in enumerate(heights[-MAX_MARKS:], start=max(0, len(heights) - MAX_MARKS)):
            top = self.y(height)
            self.marks.append(
                f'<rect class="bar {kind}" x="{self.x(place) + gap / 2:.1f}" y="{top:.1f}" '
                f'width="{max(unit - gap, 0.5):.1f}" height="{self.y(0) - top:.1f}"/>'
            )

    def svg(self, title: str, name: str, legend: Sequence[tuple[str, str]]) -> str:
        """The figure; `legend` has (CSS class, text) per kind of mark."""
        grid = []
        for step in range(round(self.max_y / self.step_y) + 1):
            value = step * self.step_y
            y = self.y(value)
            grid.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            grid.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        step = 1 if self.is_categories else tick_step(self.max_x, 6, self.least_step_x)
        shift = 0.5 if self.is_categories else 0.0
        for place in range(int((self.max_x - shift) / step) + 1):
            at = self.x(place * step + shift)
            grid.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{place * step:g}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        grid.append(f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{self.x_title}</text>')
        return _framed(title, name, "".join(grid + self.marks), legend)


def tick_step(most: float, ticks: int, least: float = 1.0) -> float:
    """Tick distance: 1, 2 or 5 times a power of ten, at least `least`, for about `ticks` ticks up to `most`."""
    rough = max(most / ticks, 1e-9)
    power = 10.0 ** math.floor(math.log10(rough))
    return max(least, next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough - 1e-9))


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_MARKS` of the points, including the last one."""
    every = math.ceil(len(points) / MAX_MARKS)
    return [*points[:-1:every], points[-1]]


def _framed(title: str, name: str, content: str, legend: Sequence[tuple[str, str]] = ()) -> str:
    keys = "".join(f'<span class="key {kind}">{text}</span>' for kind, text in legend)
    box = f"0 {TOP - 10} {WIDTH} {HEIGHT - TOP + 10}"
    return (
        f'<figure class="plot" data-plot="{name}"><figcaption><b>{title}</b>{keys}</figcaption>'
        f'<svg role="img" aria-label="{title}" viewBox="{box}">{content}</svg></figure>'
    )
