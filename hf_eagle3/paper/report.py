"""The page: our tables beside the paper's, with a sentence on agreement under each. Pure text, no models."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from statistics import mean

from ..benchmarks.report import DIFFERS, NONE, OTHER_STREAM, grid
from .drafts import TOP
from .measure import CHAIN, title
from .numbers import TABLE_1, TABLE_2, TABLE_3


ABLATION = {"EAGLE-2": "eagle2:eagle2", "+ remove fea con": TOP, "+ fused features": "tree:59,8,10"}


def page(pieces: Mapping[str, dict], facts: Mapping) -> str:
    """
    The page in Markdown.

    Args:
        pieces: Documents by name: "table-1", "figure-7", "table-3", "scaling", "quality"; those that are missing are
            left out.
        facts: `target`, `steps`, `batch_size`, `hardware`, `versions`, `command`, `trained` (name -> training.json).
    """
    parts = ["# The paper's tables, here", _introduction(facts)]
    if "table-1" in pieces:
        rows = pieces["table-1"]["rows"]
        parts += ["## Table 1: speedup and τ", *_table_1(rows)]
        parts += [f"Not measured: {line}." for line in pieces["table-1"]["skipped"]]
        parts += ["## Table 2: from EAGLE-2 to EAGLE-3 on equal data", *_table_2(rows)]
    if "scaling" in pieces:
        parts += ["## Figures 1 and 4: τ against training data", *_scaling(pieces["scaling"]["rows"])]
    if "figure-7" in pieces:
        parts += ["## Figure 7: acceptance of the n-th draft token", *_figure_7(pieces["figure-7"]["rows"])]
    if "table-3" in pieces:
        parts += ["## Table 3: throughput by batch size", *_table_3(pieces["table-3"]["rows"])]
    if "quality" in pieces or "table-1" in pieces:
        parts += ["## Quality", *_quality(pieces.get("quality"), pieces.get("table-1"))]
    parts += ["## How it was made", _made(facts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(facts: Mapping) -> str:
    return (
        f"Target `{facts['target']}`. Every draft was trained here on the same answers of that target, for "
        f"{facts['steps']} optimiser steps of {facts['batch_size']} answers (the paper: about half a million "
        "conversations). The paper's numbers are for other targets on a GPU, so that order and signs can be compared, "
        "sizes cannot. Intervals are 95 %, by bootstrap over prompts and rounds."
    )


def _means(rows: Sequence[Mapping], method: str, temperature: float, field: str) -> float | None:
    values = [r[field] for r in rows if (r["method"], r["temperature"]) == (method, temperature)]
    return mean(values) if values and None not in values else None


def _table_1(rows: Sequence[Mapping]) -> Iterable[str]:
    tasks, names = _distinct(rows, "task"), [name for name in _distinct(rows, "method") if name != TOP]
    header = ["Method", *(f"{task} {what}" for task in tasks for what in ("speedup", "τ"))]
    header += ["Mean speedup", "Mean τ", "Paper's mean speedup", "Paper's mean τ"]
    for temperature in _distinct(rows, "temperature"):
        lines, ours = [], {}
        theirs = TABLE_1.get(temperature, {})
        for name in names:
            cells = []
            for task in tasks:
                found = [r for r in rows if (r["task"], r["method"], r["temperature"]) == (task, name, temperature)]
                cells += _cells(found[0]) if found else [NONE, NONE]
            if cells == [NONE] * len(cells):
                continue
            speed, tau = (_means(rows, name, temperature, f) for f in ("speedup", "acceptance_length"))
            paper = theirs.get(title(name))
            beside = (_times(paper[0]), _plain(paper[1])) if paper else (NONE, NONE)
            lines.append([title(name), *cells, _times(speed), _plain(tau), *beside])
            if tau is not None:
                ours[title(name)] = tau
        yield f"Temperature {temperature:g} (the paper's: Vicuna 13B):\n\n{grid(header, lines)}"
        yield _order(ours, {name: tau for name, (_, tau) in theirs.items()}, f"τ at temperature {temperature:g}")
    if any(not row["same_text_promised"] for row in rows):
        yield f"{OTHER_STREAM} transformers' own loop draws other random numbers: the same distribution, another text."


def _cells(row: Mapping) -> list[str]:
    speed, interval = row["speedup"], row["speedup_interval"]
    text = DIFFERS if speed is None else f"{speed:.2f}x"
    if speed is not None and interval is not None:
        text += f" ({interval[0]:.2f} to {interval[1]:.2f})"
    return [text + ("" if row["same_text_promised"] else OTHER_STREAM), _plain(row["acceptance_length"])]


def _order(ours: Mapping[str, float], theirs: Mapping[str, float], what: str) -> str:
    """In how many pairs of methods the order is the paper's, and which are not."""
    pairs = [(a, b) for a, b in combinations([name for name in theirs if name in ours], 2)]
    if not pairs:
        return ""
    other = [(a, b) for a, b in pairs if (ours[a] - ours[b]) * (theirs[a] - theirs[b]) <= 0]
    ranking = " > ".join(sorted(ours, key=ours.get, reverse=True))
    same = len(pairs) - len(other)
    text = f"Order of {what}: {ranking}. Of {len(pairs)} pairs that the paper has too, {same} stand in its order"
    return text + (f"; not {', '.join(f'{a} and {b}' for a, b in other)}." if other else ".")


def _table_2(rows: Sequence[Mapping]) -> Iterable[str]:
    present = [(label, method) for label, method in ABLATION.items() if any(r["method"] == method for r in rows)]
    temperature = _distinct(rows, "temperature")[0]
    taus, lines = [], []
    for label, method in present:
        speed, tau = (_means(rows, method, temperature, f) for f in ("speedup", "acceptance_length"))
        taus.append(tau)
        paper = TABLE_2[label]
        lines.append([label, _times(speed), _plain(tau), *(x for s, t in paper for x in (_times(s), _plain(t)))])
    header = ["Method", "Mean speedup", "Mean τ"]
    header += [f"Paper's {task} {what}" for task in ("MT-bench", "GSM8K") for what in ("speedup", "τ")]
    yield f"Temperature {temperature:g}, the same tree:\n\n{grid(header, lines)}"
    if None not in taus and len(taus) == len(ABLATION):
        rises = [later > earlier for earlier, later in pairwise(taus)]
        labels = [label for label, _ in present[1:]]
        each = (f"{label} {'yes' if rise else 'no'}" for label, rise in zip(labels, rises, strict=True))
        yield "Both rises of τ come out." if all(rises) else f"Rises of τ: {', '.join(each)}."


def _scaling(rows: Sequence[Mapping]) -> Iterable[str]:
    shares = (8, 4, 2, 1)
    lines, grows = [], {}
    for kind, name in (("eagle", "EAGLE-2"), ("eagle3", "EAGLE-3")):
        taus = [_means(rows, f"{kind}@{share}" if share > 1 else kind, 0.0, "acceptance_length") for share in shares]
        lines.append([name, *map(_plain, taus)])
        if None not in taus:
            grows[name] = taus[-1] - taus[0]
    yield grid(["Method", *(f"{8 // share}x" for share in shares)], lines)
    if len(grows) == 2:
        gains = ", ".join(f"{name} gains {value:+.2f}" for name, value in grows.items())
        verdict = "as in the paper" if grows["EAGLE-3"] > grows["EAGLE-2"] else "unlike in the paper"
        more = "more" if verdict == "as in the paper" else "no more"
        yield f"From 1x to 8x {gains}: EAGLE-3 gains {more}, {verdict}."


def _figure_7(rows: Sequence[Mapping]) -> Iterable[str]:
    lines, falls = [], {}
    for method in _distinct(rows, "method"):
        rates = [r["acceptance_rates"] for r in rows if r["method"] == method]
        depth = min(map(len, rates), default=0)
        means = [mean(each[n] for each in rates) for n in range(depth)]
        lines.append([title(method), *(f"{x:.2f}" for x in means), *[NONE] * (CHAIN - depth)])
        if depth > 1:
            falls[title(method)] = means[0] - means[depth - 1]
    table = grid(["Method", *(f"{n}-α" for n in range(CHAIN))], lines)
    yield f"Chains of {CHAIN}, temperature 0, mean over tasks:\n\n{table}"
    if "EAGLE" in falls and "EAGLE-3" in falls:
        agrees = falls["EAGLE-3"] < falls["EAGLE"]
        each = ", ".join(f"{name} {value:+.2f}" for name, value in falls.items())
        yield (
            f"Fall from the first rate to the last: {each}. The paper has EAGLE falling and EAGLE-3 nearly flat; "
            + ("here, too, EAGLE-3 falls less." if agrees else "here EAGLE-3 does not fall less.")
        )


def _table_3(rows: Sequence[Mapping]) -> Iterable[str]:
    sizes, lines, above = _distinct(rows, "batch_size"), [], []
    for method in _distinct(rows, "method"):
        own = [row for row in rows if row["method"] == method]
        found = {size: [r["tokens_per_second_ratio"] for r in own if r["batch_size"] == size] for size in sizes}
        values = {size: mean(x) if x and None not in x else None for size, x in found.items()}
        lines.append([title(method), *(_times(values[size]) for size in sizes)])
        paper = TABLE_3.get(title(method), {})
        lines.append([f"{title(method)} in the paper", *(_times(paper.get(size)) for size in sizes)])
        above.append(values)
    table = grid(["Method", *map(str, sizes)], lines)
    yield f"Chains of 2, temperature 0, over plain `generate` at the same batch size:\n\n{table}"
    if len(above) == 2 and all(None not in values.values() for values in above):
        eagle, eagle3 = above
        better = [size for size in sizes if eagle3[size] > eagle[size]]
        faster = [size for size in sizes if eagle3[size] > 1]
        yield (
            f"EAGLE-3 above EAGLE at {len(better)} of {len(sizes)} batch sizes, above 1.0x at {len(faster)}; in the "
            "paper at all."
        )


def _quality(quality: Mapping | None, table_1: Mapping | None) -> Iterable[str]:
    if table_1 is not None:
        greedy = [r for r in table_1["rows"] if r["temperature"] == 0 and r["same_text_promised"]]
        differing = sum(r["num_differing"] for r in greedy)
        yield (
            f"Exact match of greedy texts: {sum(r['num_prompts'] for r in greedy) - differing} of "
            f"{sum(r['num_prompts'] for r in greedy)} pairs of prompt and method."
        )
    if quality is not None:
        settings = quality["settings"]
        lines = [[task, f"{p:.3f}"] for task, p in quality["p_values"].items()]
        yield (
            f"At temperature 1, {settings['texts']} texts of {settings['tokens']} tokens behind one prompt per task, "
            "with EAGLE-3 and without, drawn from different seeds: p-values of a permutation test on token counts by "
            f"position (values near 0 would show another distribution).\n\n{grid(['Task', 'p'], lines)}"
        )


def _made(facts: Mapping) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    lines = [f"- `{facts['command']}`", f"- {facts['hardware']}", f"- {versions}"]
    for name, record in facts["trained"].items():
        seconds = "" if record["seconds"] is None else f", {record['seconds']:.0f} s"
        lines.append(
            f"- draft `{name}`: {record['steps']} steps of about {record['batch_tokens']} tokens, learning rate "
            f"{record['learning_rate']:g}{seconds}"
        )
    return "\n".join(lines)


def _times(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}x"


def _plain(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _distinct(rows: Iterable[Mapping], name: str) -> list:
    return list(dict.fromkeys(row[name] for row in rows))
