"""Plots of the JSON document: speedup per task, accepted lengths, n-alpha, phases, batch sizes. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import methods, prompts


WIDTH = 0.8  # of a group of bars


def draw(document: Mapping, folder: Path) -> list[Path]:
    """
    Write one PNG file per plot into `folder`, with a panel per temperature; plots without data are skipped. All but
    the throughput plot show the smallest batch size.
    """
    rows = document["rows"]
    if not rows:
        return []
    smallest = [row for row in rows if row["batch_size"] == min(r["batch_size"] for r in rows)]
    pictures = {
        "speedup": (_speedup, [r for r in smallest if r["speedup"] is not None]),
        "accepted_lengths": (_accepted, [r for r in smallest if r["accepted_histogram"]]),
        "n_alpha": (_n_alpha, [r for r in smallest if r["acceptance_rates"]]),
        "phases": (_phases, [r for r in smallest if r["phase_shares"]]),
        "throughput": (
            _throughput,
            [r for r in rows if r["tokens_per_second_ratio"]] if len(_values(rows, "batch_size")) > 1 else [],
        ),
    }
    paths = []
    for name, (panel, chosen) in pictures.items():
        if chosen:
            paths.append(folder / f"{name}.png")
            _panels(chosen, panel).savefig(paths[-1], dpi=150)
    return paths


def _panels(rows: Sequence[Mapping], panel) -> Figure:
    temperatures = _values(rows, "temperature")
    figure = Figure(figsize=(6.4 * len(temperatures), 4.2), layout="constrained")
    for axes, temperature in zip(figure.subplots(1, len(temperatures), squeeze=False)[0], temperatures, strict=True):
        panel(axes, [row for row in rows if row["temperature"] == temperature])
        axes.set_title(f"temperature {temperature:g}")
    return figure


def _speedup(axes: Axes, rows: Sequence[Mapping]) -> None:
    """Bars per task and method with confidence intervals; the line is plain generate."""
    tasks, names = _values(rows, "task"), _values(rows, "method")
    for place, method in enumerate(names):
        chosen = [row for row in rows if row["method"] == method]
        at = [tasks.index(row["task"]) + _offset(place, len(names)) for row in chosen]
        speeds = [row["speedup"] for row in chosen]
        errors = [
            [
                max(abs(row["speedup"] - row["speedup_interval"][side]) if row["speedup_interval"] else 0.0, 0.0)
                for row in chosen
            ]
            for side in (0, 1)
        ]
        axes.bar(at, speeds, WIDTH / len(names), yerr=errors, capsize=2, label=methods.title(method))
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(tasks)), [prompts.title(task) for task in tasks])
    axes.set_ylabel("speedup over plain generate")
    axes.legend(fontsize="small")


def _accepted(axes: Axes, rows: Sequence[Mapping]) -> None:
    """Share of cycles by number of accepted draft tokens, over all tasks."""
    names = _values(rows, "method")
    for place, method in enumerate(names):
        counts: list[int] = []
        for row in rows:
            if row["method"] == method:
                found = row["accepted_histogram"]
                counts = [a + b for a, b in zip(_filled(counts, found), _filled(found, counts), strict=True)]
        at = [n + _offset(place, len(names)) for n in range(len(counts))]
        shares = [count / sum(counts) for count in counts]
        axes.bar(at, shares, WIDTH / len(names), label=methods.title(method))
    axes.set_xlabel("accepted draft tokens")
    axes.set_ylabel("share of cycles")
    axes.legend(fontsize="small")


def _n_alpha(axes: Axes, rows: Sequence[Mapping]) -> None:
    for row in rows:
        label = f"{prompts.title(row['task'])}, {methods.title(row['method'])}"
        axes.plot(range(len(row["acceptance_rates"])), row["acceptance_rates"], marker="o", label=label)
    depth = max(len(row["acceptance_rates"]) for row in rows)
    axes.set_xticks(range(depth), [f"{n}-α" for n in range(depth)])
    axes.set_ylim(0, 1)
    axes.set_ylabel("acceptance rate")
    axes.legend(fontsize="small")


def _phases(axes: Axes, rows: Sequence[Mapping]) -> None:
    """Share of each phase in the time of a call, mean over tasks."""
    names = _values(rows, "method")
    left = [0.0] * len(names)
    for phase in rows[0]["phase_shares"]:
        shares = [mean(r["phase_shares"].get(phase, 0.0) for r in rows if r["method"] == name) for name in names]
        axes.barh(range(len(names)), shares, left=left, label=phase)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.set_yticks(range(len(names)), [methods.title(name) for name in names])
    axes.set_xlabel("share of call time")
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4)


def _throughput(axes: Axes, rows: Sequence[Mapping]) -> None:
    for method in _values(rows, "method"):
        sizes = _values([row for row in rows if row["method"] == method], "batch_size")
        ratios = [
            mean(r["tokens_per_second_ratio"] for r in rows if (r["method"], r["batch_size"]) == (method, size))
            for size in sizes
        ]
        axes.plot(sizes, ratios, marker="o", label=methods.title(method))
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    sizes = _values(rows, "batch_size")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("batch size")
    axes.set_ylabel("tokens per second relative to plain generate")
    axes.legend(fontsize="small")


def _offset(place: int, count: int) -> float:
    """Offset of bar `place` of `count` from the centre of its group."""
    return (place - (count - 1) / 2) * WIDTH / count


def _filled(counts: list[int], other: list[int]) -> list[int]:
    return counts + [0] * (len(other) - len(counts))


def _values(rows: Sequence[Mapping], name: str) -> list:
    """Distinct values in order of appearance."""
    return list(dict.fromkeys(row[name] for row in rows))
