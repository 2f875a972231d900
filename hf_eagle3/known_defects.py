"""Wrong values in published configurations (`hub/drafts.json`), replaced when the draft is loaded by its Hub id.

An entry names the field, the published value and the one to use, with the measurement it rests on. It is applied only
while the file still has the published value, and never over the caller's own choice.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path


DATA = Path(__file__).parent / "hub" / "drafts.json"


@dataclass(frozen=True)
class Defect:
    """
    A wrong value in a published `config.json`.

    Attributes:
        field: Of `Eagle3Config`, or "rope_theta".
        published, use: The value in the file, and the one that the draft was trained with.
        why, source: What shows it, and where.
    """

    field: str
    published: object
    use: object
    why: str
    source: str

    def __str__(self) -> str:
        return f"`{self.field}` {self.published} should be {self.use} ({self.why}; {self.source})"


@functools.cache
def entries() -> tuple[dict, ...]:
    """The parsed list of public drafts."""
    return tuple(json.loads(DATA.read_text(encoding="utf-8")))


def defects_of(hub_id: str) -> list[Defect]:
    """Known defects of the draft with this Hub id; of a directory, none."""
    found = [entry.get("defects", ()) for entry in entries() if entry["draft"].lower() == hub_id.lower()]
    return [] if Path(hub_id).is_dir() else [Defect(**defect) for defects in found for defect in defects]


def corrections(hub_id: str, config, overrides: dict) -> dict:
    """
    Fields to replace in `config`, an [`Eagle3Config`], as overrides; each is logged in one line.

    Args:
        hub_id: Where the draft comes from.
        config: As read from the file and `overrides`.
        overrides: The caller's own, which are left alone.
    """
    from transformers.utils import logging  # the command line's options read this file's entries without torch

    logger, out = logging.get_logger(__name__), {}
    for defect in defects_of(hub_id):
        found = config.rope_parameters["rope_theta"] if defect.field == "rope_theta" else vars(config)[defect.field]
        if found == defect.published and defect.field not in overrides:
            out[defect.field] = defect.use
            logger.warning(f"{hub_id}: {defect}, and is replaced; pass {defect.field}={found} to keep it.")
    return out
