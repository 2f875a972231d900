"""Figures for a model card, read from the JSON file of `hf-eagle3 benchmark`.

A file about another draft or target is refused: by fingerprints of the weights if the file has them, else by name.
Does not know how figures are measured or displayed.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


ROW_FIELDS = (
    "task",
    "method",
    "temperature",
    "batch_size",
    "speedup",
    "acceptance_length",
    "num_prompts",
    "identical",
)
NUMBERS = ("temperature", "batch_size", "speedup", "acceptance_length", "num_prompts")


@dataclass(frozen=True)
class Measured:
    """
    Benchmark results of one draft and target.

    Args:
        versions, hardware, settings: As in the file.
        rows: One dictionary per task, method, temperature and batch size, with `ROW_FIELDS` and optionally
            `speedup_interval` and `acceptance_rates`.
    """

    versions: dict
    hardware: dict
    settings: dict
    rows: list[dict]


def read_benchmark(
    path: str | Path,
    drafts: Iterable[str | None],
    targets: Iterable[str | None],
    draft_fingerprint: str | None = None,
    target_fingerprint: Callable[[], str] | None = None,
) -> Measured:
    """
    Read and validate a benchmark file.

    Args:
        path: The JSON file of `hf-eagle3 benchmark`.
        drafts: Known names of the draft: the directory it was loaded from, its Hub id.
        targets: Known names of the target.
        draft_fingerprint: Fingerprint of the draft's weights, decisive if the file has one.
        target_fingerprint: Computes the target's fingerprint, decisive if the names do not match.

    Raises:
        ValueError: not a benchmark file, a row with a missing figure, or figures of another draft or target.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"`--benchmark {path}` is not JSON ({error}); pass the file of `hf-eagle3 benchmark`."
        ) from None
    parts = {"versions": dict, "hardware": dict, "settings": dict, "rows": list}
    for name, kind in parts.items():
        if not isinstance(raw, dict) or not isinstance(raw.get(name), kind):
            raise ValueError(f"`--benchmark {path}` has no `{name}`; pass the file of `hf-eagle3 benchmark`.")
    for role, known in (("draft", tuple(drafts)), ("target", tuple(targets))):
        found, stored = raw["settings"].get(role), raw["settings"].get(f"{role}_fingerprint")
        is_same = any(_same(found, name) for name in known)
        if stored is not None and role == "draft" and draft_fingerprint is not None:
            if is_same and stored != draft_fingerprint:
                raise ValueError(
                    f"`--benchmark {path}` measured the draft `{found}` with other weights. Measure it again."
                )
            is_same = stored == draft_fingerprint
        elif stored is not None and role == "target" and not is_same and target_fingerprint is not None:
            is_same = stored == target_fingerprint()
        if not is_same:
            names = ", ".join(dict.fromkeys(str(name) for name in known if name)) or "unknown"
            raise ValueError(
                f"`--benchmark {path}` measured the {role} `{found}`; this {role} is {names}. Measure this one."
            )
    for number, row in enumerate(raw["rows"]):
        _check_row(row, f"`--benchmark {path}`, row {number}")
    return Measured(raw["versions"], raw["hardware"], raw["settings"], raw["rows"])


def _same(found: str | None, name: str | None) -> bool:
    if not found or not name:
        return False
    if found == name:
        return True
    return Path(found).exists() and Path(name).exists() and Path(found).resolve() == Path(name).resolve()


def _check_row(row: dict, where: str) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {row!r}; it must hold {', '.join(ROW_FIELDS)}.")
    # The benchmark reports no speedup if the text differs, and no acceptance length if nothing was drafted.
    allowed = ("acceptance_length", "speedup") if row.get("identical") is False else ("acceptance_length",)
    for name in ROW_FIELDS:
        if name not in row or (row[name] is None and name not in allowed):
            raise ValueError(f"{where} has no `{name}`. Measure again.")
    for name in NUMBERS:
        value = row[name]
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{where}: `{name}` is {value!r}, not a number. Measure again.")
    rates = row.get("acceptance_rates") or []  # of chains
    if not isinstance(rates, list) or not all(isinstance(rate, (int, float)) and 0 <= rate <= 1 for rate in rates):
        raise ValueError(f"{where}: `acceptance_rates` is {rates!r}, not a list of shares. Measure again.")
    interval = row.get("speedup_interval")
    if (interval is not None and row["speedup"] is not None) and not (
        isinstance(interval, list) and len(interval) == 2 and interval[0] <= row["speedup"] <= interval[1]
    ):
        raise ValueError(f"{where}: `speedup_interval` {interval} does not contain its `speedup` {row['speedup']}.")
