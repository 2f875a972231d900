"""The JSON document as Markdown: the paper's Table 1, intervals, n-alpha, throughput. Pure text, ratios only.

Seconds stay in the document's records, as they depend on the machine.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean

from . import methods, prompts


NONE = "–"
DIFFERS = "differs"
OTHER_STREAM = "\\*"


def markdown(document: Mapping) -> str:
    """The report on a JSON document of `hf-eagle3 benchmark`."""
    parts = ["# Speed of speculative decoding", _introduction(document)]
    if document["ceiling"]["methods"]:
        parts += ["## Ceiling", _ceiling(document["ceiling"])]
    rows = document["rows"]
    for size in _distinct(rows, "batch_size"):
        chosen = [row for row in rows if row["batch_size"] == size]
        parts += [f"## Speedup and acceptance length τ, batch size {size}", _table(document, chosen), _notes(chosen)]
    parts += ["## Details", _details(rows)] if rows else ["Nothing was measured."]
    if len(_distinct(rows, "batch_size")) > 1:
        parts += ["## Throughput by batch size", _throughput(rows)]
    if any(row["acceptance_rates"] for row in rows):
        parts += ["## Acceptance rates n-α on chains", _rates(rows)]
    parts += ["## Settings", _settings(document)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(document: Mapping) -> str:
    settings, hardware = document["settings"], document["hardware"]
    text = (
        f"Target `{settings['target']}`, draft `{settings['draft']}`, {settings['dtype']}, on "
        f"{hardware['device_name']} ({hardware['device']}). Speedup is the time of plain `generate` divided by the "
        "method's time for equally many tokens of the same prompts in the same run; τ is committed tokens per cycle."
    )
    if settings["interrupted"]:
        text += " **Interrupted: only the part measured so far is shown.**"
    return text


def _ceiling(ceiling: Mapping) -> str:
    text = (
        "τ / (1 + relative cost of verification and drafting): the speedup if only the two models took time, from a "
        f"probe of {ceiling['new_tokens']} tokens. Costs are in steps of plain `generate`."
    )
    cells = [
        (
            f"{c['temperature']:g}",
            str(c["batch_size"]),
            methods.title(c["method"]),
            f"{c['acceptance_length']:.2f}",
            f"{c['verification']:.2f}",
            f"{c['drafting']:.2f}",
            f"{c['ceiling']:.2f}x",
        )
        for c in ceiling["methods"]
    ]
    header = ("T", "Batch", "Method", "τ", "Verification", "Drafting", "Ceiling")
    return f"{text}\n\n{grid(header, cells)}"


def _table(document: Mapping, rows: Sequence[Mapping]) -> str:
    """The paper's Table 1: a line per method, two columns per task, means on the right."""
    tasks = _distinct(rows, "task")
    header = ["Model", "Method"]
    for name in [*map(prompts.title, tasks), "Mean"]:
        header += [f"{name} speedup", f"{name} τ"]
    model = document["settings"]["target"].rstrip("/\\").replace("\\", "/").split("/")[-1]
    lines = []
    for temperature in _distinct(rows, "temperature"):
        lines.append([f"**Temperature={temperature:g}**", *[""] * (len(header) - 1)])
        for method in _distinct(rows, "method"):
            found = {r["task"]: r for r in rows if (r["method"], r["temperature"]) == (method, temperature)}
            if not found:
                continue
            cells = [cell for task in tasks for cell in _pair(found.get(task))]
            values = [found[task]["speedup"] for task in tasks if task in found]
            has_speedups = len(values) == len(tasks) and None not in values
            lengths = [found[task]["acceptance_length"] for task in tasks if task in found]
            has_lengths = len(lengths) == len(tasks) and None not in lengths
            means = [f"{mean(values):.2f}x" if has_speedups else NONE, f"{mean(lengths):.2f}" if has_lengths else NONE]
            promised = all(row["same_text_promised"] for row in found.values())
            lines.append([model, methods.title(method) + ("" if promised else OTHER_STREAM), *cells, *means])
    return grid(header, lines)


def _pair(row: Mapping | None) -> list[str]:
    if row is None:
        return [NONE, NONE]
    length = row["acceptance_length"]
    return [
        DIFFERS if row["speedup"] is None else f"{row['speedup']:.2f}x",
        NONE if length is None else f"{length:.2f}",
    ]


def _notes(rows: Sequence[Mapping]) -> str:
    notes = []
    if any(not row["same_text_promised"] for row in rows):
        notes.append(
            f"{OTHER_STREAM} Draws other random numbers than plain `generate`: the same distribution and number of "
            "tokens, but another text."
        )
    if any(row["speedup"] is None for row in rows):
        notes.append(f'"{DIFFERS}": the text differs from plain `generate`\'s, so no speedup is reported.')
    differing = [row for row in rows if row["num_differing"] and row["same_text_promised"]]
    if differing:
        share = max(row["num_differing"] / row["num_prompts"] for row in differing)
        notes.append(
            f"Texts differ from plain `generate`'s for up to {share:.0%} of a row's prompts (counts below): forward "
            "passes over several tokens round differently from single steps, so near-ties may flip."
        )
    return "\n\n".join(notes)


def _details(rows: Sequence[Mapping]) -> str:
    cells = []
    for row in rows:
        interval, speed = row["speedup_interval"], row["speedup"]
        cells.append(
            (
                prompts.title(row["task"]),
                methods.title(row["method"]),
                f"{row['temperature']:g}",
                str(row["batch_size"]),
                DIFFERS if speed is None else f"{speed:.2f}x",
                NONE if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}",
                NONE if row["decode_speedup"] is None else f"{row['decode_speedup']:.2f}x",
                NONE if row["ceiling"] is None else f"{row['ceiling']:.2f}x",
                f"{row['num_differing']} of {row['num_prompts']}"
                + ("" if row["same_text_promised"] else OTHER_STREAM),
            )
        )
    header = ("Task", "Method", "T", "Batch", "Speedup", "95 %", "Decoding", "Decoding ceiling", "Differing")
    text = (
        '"Decoding" is the speedup without prefill; its ceiling is that speedup if only the forward passes of the two '
        "models took time. Differing: prompts whose text differs from plain `generate`'s."
    )
    return f"{text}\n\n{grid(header, cells)}"


def _throughput(rows: Sequence[Mapping]) -> str:
    """The paper's Table 3: tokens per second relative to plain `generate` at the same batch size."""
    sizes = _distinct(rows, "batch_size")
    cells = []
    for temperature in _distinct(rows, "temperature"):
        for method in _distinct(rows, "method"):
            line = [f"{temperature:g}", methods.title(method)]
            for size in sizes:
                ratios = [
                    row["tokens_per_second_ratio"]
                    for row in rows
                    if (row["method"], row["temperature"], row["batch_size"]) == (method, temperature, size)
                ]
                line.append(f"{mean(ratios):.2f}x" if ratios and None not in ratios else NONE)
            cells.append(line)
    text = "Tokens per second relative to plain `generate` at the same batch size; mean over tasks."
    return f"{text}\n\n{grid(('T', 'Method', *map(str, sizes)), cells)}"


def _rates(rows: Sequence[Mapping]) -> str:
    """The paper's Figure 7 as a table."""
    chains = [row for row in rows if row["acceptance_rates"]]
    depth = max(len(row["acceptance_rates"]) for row in chains)
    cells = [
        (
            prompts.title(row["task"]),
            methods.title(row["method"]),
            f"{row['temperature']:g}",
            str(row["batch_size"]),
            *(f"{rate:.2f}" for rate in row["acceptance_rates"]),
            *[NONE] * (depth - len(row["acceptance_rates"])),
        )
        for row in chains
    ]
    text = (
        "The probability that a draft token is accepted, given that the n draft tokens before it were accepted (they "
        "are the draft's own outputs); cycles cut off by the end of a text are excluded."
    )
    return f"{text}\n\n{grid(('Task', 'Method', 'T', 'Batch', *(f'{n}-α' for n in range(depth))), cells)}"


def _settings(document: Mapping) -> str:
    settings = document["settings"]
    lines = [
        f"- rounds of plain `generate` and every method per call: {settings['repetitions']}, the first one "
        f"rotating; untimed warm-up calls of each: {settings['warm_up']}",
        f"- up to {settings['max_new_tokens']} new tokens per answer, as many as plain `generate` needs until EOS"
        + (" (EOS ignored here)" if settings["ignore_eos"] else "")
        + "; later turns follow plain `generate`'s answers",
        "- speedup: median of the paired ratios per call, weighted by plain time; 95 % interval by bootstrap over "
        "prompts and rounds",
        *(f"- {task}: {count} turns skipped, too long for the target" for task, count in settings["left_out"].items()),
        *(
            f"- {task}: {count} prompts skipped: unreadable, or rejected by the chat template"
            for task, count in settings.get("unreadable", {}).items()
        ),
        *(f"- not measured: {line}" for line in settings["skipped"]),
        "- " + ", ".join(f"{name} {version}" for name, version in document["versions"].items() if version),
        f"- `{settings['command']}`",
    ]
    return "\n".join(lines)


def grid(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _distinct(rows: Iterable[Mapping], name: str) -> list:
    """Distinct values in order of appearance."""
    return list(dict.fromkeys(row[name] for row in rows))
