"""Pictures of the page: Table 1 as bars, n-alpha over n, tau against data, throughput against batch size."""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from .measure import title


def draw(pieces: Mapping[str, dict], folder: Path) -> list[Path]:
    """One PNG per piece that was measured; returns their paths."""
    pictures = {"table-1": _tau, "figure-7": _rates, "scaling": _scaling, "table-3": _throughput}
    paths = []
    for name, picture in pictures.items():
        if name in pieces and pieces[name]["rows"]:
            figure = Figure(figsize=(7.2, 4.2), layout="constrained")
            axes = figure.subplots()
            picture(axes, pieces[name]["rows"])
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=150)
    return paths


def _of(rows: list[dict], method: str, field: str) -> list:
    return [row[field] for row in rows if row["method"] == method and row[field] is not None]


def _tau(axes, rows: list[dict]) -> None:
    names = list(dict.fromkeys(row["method"] for row in rows))
    axes.barh([title(name) for name in names], [mean(_of(rows, name, "acceptance_length") or [0]) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("acceptance length τ, mean over tasks and temperatures")


def _rates(axes, rows: list[dict]) -> None:
    for name in dict.fromkeys(row["method"] for row in rows):
        rates = _of(rows, name, "acceptance_rates")
        depth = min(map(len, rates), default=0)
        axes.plot(range(depth), [mean(each[n] for each in rates) for n in range(depth)], marker="o", label=title(name))
    axes.set_ylim(0, 1)
    axes.set_xlabel("n")
    axes.set_ylabel("n-α")
    axes.legend()


def _scaling(axes, rows: list[dict]) -> None:
    for kind in ("eagle", "eagle3"):
        names = [name for name in dict.fromkeys(row["method"] for row in rows) if name.partition("@")[0] == kind]
        points = {8 // int(name.partition("@")[2] or 1): _of(rows, name, "acceptance_length") for name in names}
        scales = sorted(points)
        axes.plot(
            scales, [mean(points[x]) for x in scales], marker="o", label={"eagle": "EAGLE-2"}.get(kind, "EAGLE-3")
        )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("training data, in eighths")
    axes.set_ylabel("acceptance length τ")
    axes.legend()


def _throughput(axes, rows: list[dict]) -> None:
    for name in dict.fromkeys(row["method"] for row in rows):
        sizes = list(dict.fromkeys(row["batch_size"] for row in rows if row["method"] == name))
        each = [
            mean(r["tokens_per_second_ratio"] for r in rows if (r["method"], r["batch_size"]) == (name, size))
            for size in sizes
        ]
        axes.plot(sizes, each, marker="o", label=title(name))
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xlabel("batch size")
    axes.set_ylabel("throughput over plain generate")
    axes.legend()
