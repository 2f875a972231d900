"""`training.json` beside a draft, as the model card shows it. `training/record.py` writes it."""

import json
from pathlib import Path


NAME = "training.json"
REMEDY = "Delete it, or train again."
THINKING = "enable_thinking"  # the argument of chat templates of models that reason


def read_training(folder: str | None) -> dict | None:
    """
    The record of a draft's training; `None` if `folder` is not a directory that has one.

    Raises:
        ValueError: the file is not a record of `hf-eagle3 train`.
    """
    path = Path(folder or "", NAME)
    if not folder or not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}). {REMEDY}") from None
    if not isinstance(record, dict) or not all(
        isinstance(record.get(n), dict) for n in ("data", "target", "hardware")
    ):
        raise ValueError(f"{path} is not a record of `hf-eagle3 train`. {REMEDY}")
    return record


def training_rows(record: dict) -> list[tuple[str, str]]:
    """(what, value) of each line of the card's table; what is not recorded is left out. Paths stay private."""
    data, hardware = record["data"], record["hardware"]
    counts = [
        (data.get("samples"), "samples"),
        (data.get("tokens"), "tokens"),
        (data.get("answer_tokens"), "answer tokens"),
    ]
    steps = [
        (record.get("epochs"), "epochs"),
        (record.get("steps"), "steps"),
        (record.get("batch_tokens"), "tokens per step"),
    ]
    kept = record.get("kept_step")
    unrolled = _count(record.get("training_time_test_steps"), "steps of training-time test")
    rows = [
        ("data", ", ".join(map(_public_name, data.get("names", ())))),
        ("amount", _listed(counts)),
        ("length", _listed(steps) + (f"; kept: step {kept}" if kept not in (None, record.get("steps")) else "")),
        ("learning rate", _joined(record.get("learning_rate"), record.get("lr_scheduler_type"))),
        ("loss", _joined(record.get("loss", record.get("block_loss")), unrolled)),
        ("chat template", _template(record)),
        ("thinking", _thinking(record)),
        ("device", _joined(hardware.get("device_name") or hardware.get("device"), _hours(record.get("seconds")))),
        ("target's weights", f"fingerprint {record['target'].get('fingerprint')}"),
        ("versions", _joined(*(f"{name} {version}" for name, version in _versions(record).items() if version))),
    ]
    return [(what, value) for what, value in rows if value]


def _template(record: dict) -> str | None:
    """How conversations became text; `None` if an older record does not say it."""
    given = record.get("chat_template_kwargs")
    if given:
        return f"the target's, with {json.dumps(given)}"
    return "the target's, with its default arguments" if record.get("chat_template") else None


def _thinking(record: dict) -> str | None:
    """Whether the answers have reasoning; `None` for targets whose template does not know it."""
    given = (record.get("chat_template_kwargs") or {}).get(THINKING)
    if given is not None:
        return "on" if given else "off"
    return "not set: the template's default" if (record.get("chat_template") or {}).get("takes_thinking") else None


def _versions(record: dict) -> dict:
    found = record.get("versions")
    return found if isinstance(found, dict) else {}


def _public_name(name: str) -> str:
    """A Hub id or preset as it is; of a file or folder its last part only."""
    path = Path(name)
    is_hub_id = len(path.parts) <= 2 and not path.suffix and not path.is_absolute() and not path.exists()
    return name if is_hub_id else path.name


def _count(number: int | float | None, what: str) -> str | None:
    return None if number is None else f"{number:,} {what}"


def _listed(counts: list) -> str:
    return ", ".join(f"{number:,} {what}" for number, what in counts if number is not None)


def _joined(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part is not None)


def _hours(seconds: float | None) -> str | None:
    return (
        None
        if seconds is None
        else f"{seconds / 3600:.1f} hours"
        if seconds >= 3600
        else f"{seconds / 60:.0f} minutes"
    )
