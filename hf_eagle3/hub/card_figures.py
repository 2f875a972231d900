"""The measured part of a model card: headline, tables, Hub metadata and the plot. Does not know drafts or engines."""

import io
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import EvalResult

from .measured import Measured


MOST_DRAFTED = 7  # k = 1..7, as cards of other drafts list it
OTHERS = ("lookup", "assisted", "suffix", "small", "lookahead")  # methods that do not use the draft
PLOT = "acceptance.png"
METRICS = {"acceptance_length": "acceptance length", "speedup": "speedup over plain generate"}
NOT_MEASURED = "Its acceptance and speed have not been measured."
PATHS = ("--target", "--draft", "--assistant", "--tasks")  # options of the benchmark that may name files


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Lines of a table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table_cell(value: object) -> str:
    """Text from a file, without characters that would end its table cell."""
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    return re.sub(r"[|\n\r<>]", " ", text).strip()


def headline(measured: Measured | None) -> str:
    """
    What a visitor wants to know, in one or two sentences: tokens per pass, and speed by one method at the lowest
    temperature. "Faster" only where every task is, beyond its interval.
    """
    rows = _of_draft(measured)
    if not rows:
        return NOT_MEASURED
    rows = [row for row in rows if row["temperature"] == min(r["temperature"] for r in rows)]
    method = _shown_method(rows)
    rows = [row for row in rows if row["method"] == method]
    prompts = min(row["num_prompts"] for row in rows)
    where = f"`{method}`, temperature {rows[0]['temperature']:g}, {prompts} prompts per task"
    lengths = [row["acceptance_length"] for row in rows if row["acceptance_length"] is not None]
    parts = [f"{_span(lengths)} tokens per pass of the target"] if lengths else []
    speeds = [row["speedup"] for row in rows if row["speedup"] is not None]
    if not speeds:
        return f"Measured: {' and '.join(parts)} ({where}); no speed is given, as the text differed."
    device = table_cell(measured.hardware.get("device_name") or measured.hardware.get("device") or "one machine")
    lowest = min((row.get("speedup_interval") or [row["speedup"]])[0] for row in rows if row["speedup"] is not None)
    if len(speeds) == len(rows) and lowest > 1:
        what = f"faster than plain `generate` on every task, {_span(speeds)}x"
    else:
        what = f"{_span(speeds)}x the speed of plain `generate`"
    return f"Measured: {' and '.join([*parts, what])} on {device} ({where})."


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _of_draft(measured: Measured | None) -> list[dict]:
    """Rows of methods with the draft, at the smallest batch size."""
    rows = [] if measured is None else [row for row in measured.rows if not row["method"].startswith(OTHERS)]
    return [row for row in rows if row["batch_size"] == min(r["batch_size"] for r in rows)]


def _shown_method(rows: Sequence[dict]) -> str:
    """The default mode if it was measured, else the first method."""
    names = [row["method"] for row in rows]
    return "auto" if "auto" in names else names[0]


def lengths_by_drafted(row: dict) -> list[float]:
    """Acceptance length with k = 1, 2, ... drafted tokens, from the acceptance rates of a deeper chain."""
    lengths, reached = [], 1.0
    for rate in row["acceptance_rates"][:MOST_DRAFTED]:
        reached *= rate
        lengths.append((lengths[-1] if lengths else 1.0) + reached)
    return lengths


def _deepest_chains(measured: Measured | None) -> list[dict]:
    """Per task and temperature, the row of the longest chain."""
    found: dict[tuple, dict] = {}
    for row in _of_draft(measured):
        key, rates = (row["task"], row["temperature"]), row.get("acceptance_rates") or []
        if len(rates) > len(found.get(key, {}).get("acceptance_rates") or []):
            found[key] = row
    return list(found.values())


def figures_section(measured: Measured | None, plot: str | None = None) -> str:
    """
    Args:
        measured: The benchmark's figures, if any.
        plot: File name of the plot beside the card, if there is one.
    """
    if measured is None:
        return "## Figures\n\nNot measured."
    parts = ["## Figures", _speeds(measured)]
    chains = _deepest_chains(measured)
    if chains:
        parts.append(_by_drafted(chains))
    if plot is not None:
        parts.append(f"![Acceptance length by number of drafted tokens]({plot})")
    return "\n\n".join([*parts, *_conditions(measured)])


def _speeds(measured: Measured) -> str:
    rows = []
    for row in measured.rows:
        speedup, interval = row["speedup"], row.get("speedup_interval")
        spread = f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
        cells = (row["task"], row["method"], f"{row['temperature']:g}", row["batch_size"])
        cells += ("text differs" if speedup is None else f"{speedup:.2f}x{spread}",)
        cells += ("-" if row["acceptance_length"] is None else f"{row['acceptance_length']:.2f}", row["num_prompts"])
        rows.append((*map(table_cell, cells), "yes" if row["identical"] else "no"))
    head = ("task", "method", "temperature", "batch", "speedup", "acceptance length", "prompts", "identical text")
    return (
        "Measured by `hf-eagle3 benchmark`: speedup over plain `generate` in the same run, acceptance length in "
        f"committed tokens per cycle, the target's own included.\n\n{markdown_table(head, rows)}"
    )


def _by_drafted(chains: Sequence[dict]) -> str:
    depth = max(len(lengths_by_drafted(row)) for row in chains)
    rows = []
    for row in chains:
        lengths = [f"{length:.2f}" for length in lengths_by_drafted(row)]
        cells = (row["task"], f"{row['temperature']:g}", *lengths, *["-"] * (depth - len(lengths)))
        rows.append(map(table_cell, cells))
    head = ("task", "temperature", *(f"k={k}" for k in range(1, depth + 1)))
    return (
        "Acceptance length by the number k of drafted tokens, for engines that draft a chain (vLLM's "
        f"`num_speculative_tokens`), from the acceptance rates of a chain of {depth}:\n\n" + markdown_table(head, rows)
    )


def _conditions(measured: Measured) -> list[str]:
    """Hardware, versions, settings and the command."""
    names = ("dtype", "max_new_tokens", "chat_template_kwargs")
    chosen = {name: measured.settings.get(name) or None for name in names}
    parts = [(k, v) for part in (measured.hardware, measured.versions, chosen) for k, v in part.items()]
    shown = [f"{table_cell(k).replace('_', ' ')} {table_cell(v)}" for k, v in parts if v is not None]
    out = [f"On {'; '.join(shown)}."]
    if command := measured.settings.get("command"):
        out.append(f"```bash\n{public_command(str(command))}\n```")
    return out


def public_command(command: str) -> str:
    """The benchmark's command on one line, with the last part of each path of the machine that measured."""
    words, option = [], ""
    for word in shlex.split(" ".join(command.split())):
        option = word if word.startswith("--") else option
        is_path = option in PATHS and (Path(word).is_absolute() or Path(word).exists() or len(Path(word).parts) > 2)
        words.append(Path(word).name if is_path else word)
    return shlex.join(words)


def eval_results(measured: Measured | None) -> list[EvalResult]:
    """Results for the metadata `model-index`: what the draft reached, by task, method and temperature."""
    out = []
    for row in _of_draft(measured):
        where = f"{row['method']}, temperature {row['temperature']:g}, batch {row['batch_size']}"
        for metric, name in METRICS.items():
            if row[metric] is None:
                continue
            out.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=table_cell(row["task"]),
                    dataset_name=table_cell(row["task"]),
                    metric_type=metric,
                    metric_name=f"{name} ({where})",
                    metric_value=round(row[metric], 3),
                )
            )
    return out


def draw(measured: Measured | None) -> bytes | None:
    """
    The plot of acceptance length over k, as a PNG file.

    Returns:
        `None` without a measured chain of two or more, or without matplotlib.
    """
    chains = [row for row in _deepest_chains(measured) if len(row["acceptance_rates"]) > 1]
    if not chains:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:  # the bench extra
        return None
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for row in chains:
        lengths = lengths_by_drafted(row)
        label = f"{row['task']}, T={row['temperature']:g}".replace("$", r"\$")
        axes.plot(range(1, len(lengths) + 1), lengths, marker="o", label=label)
    axes.set_xlabel("drafted tokens k")
    axes.set_ylabel("tokens per pass of the target")
    axes.set_xticks(range(1, max(len(lengths_by_drafted(row)) for row in chains) + 1))
    axes.set_ylim(bottom=1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()
