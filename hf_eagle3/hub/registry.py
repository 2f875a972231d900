"""Known public drafts (`drafts.json`), to suggest one for a target.

Every entry names its public source. `checked`: its files were loaded with this package. `layers`: "usual" for
[2, n//2, n-3] of `hidden_states` if the file names none; absent if the source does not say. Knows names only and does
not access the Hub.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path


DATA = Path(__file__).with_name("drafts.json")


@dataclass(frozen=True)
class PublicDraft:
    """
    One entry.

    Args:
        draft, target: Hub ids.
        publisher: Its author.
        source: Page that names draft and target.
        checked: Whether its files were loaded with this package.
        layers: "usual", or `None` if unknown.
        notes: Remarks for users.
    """

    draft: str
    target: str
    publisher: str
    source: str
    checked: bool
    layers: str | None = None
    notes: str | None = None


@functools.cache
def public_drafts() -> tuple[PublicDraft, ...]:
    """All entries, sorted by target."""
    return tuple(PublicDraft(**entry) for entry in json.loads(DATA.read_text(encoding="utf-8")))


def drafts_for(target: str) -> list[PublicDraft]:
    """Entries for a Hub id, case-insensitive; those of EAGLE-3's authors first, the community's last."""
    found = [entry for entry in public_drafts() if entry.target.lower() == target.lower()]
    order = {"authors of EAGLE-3": 0, "community": 2}
    return sorted(found, key=lambda entry: order.get(entry.publisher, 1))
