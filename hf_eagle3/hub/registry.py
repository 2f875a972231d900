"""Known public drafts, as data (`drafts.json`): what to suggest for a target.

Every entry has the public page it was taken from. `checked` says whether its files were loaded here; `layers` is
"usual" ([2, n//2, n-3] of `hidden_states`, where the file names none) or absent where the source does not tell.
Knows names only; nothing is looked up on the Hub.
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
        publisher: Who made it.
        source: Page that names the pair.
        checked: Whether it was loaded here.
        layers: "usual", or `None`: not known.
        notes: What a user should know.
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
    """All entries, by target."""
    return tuple(PublicDraft(**entry) for entry in json.loads(DATA.read_text(encoding="utf-8")))


def drafts_for(target: str) -> list[PublicDraft]:
    """Entries for a Hub id, whatever its upper and lower case; the authors' own first, the community's last."""
    found = [entry for entry in public_drafts() if entry.target.lower() == target.lower()]
    order = {"authors of EAGLE-3": 0, "community": 2}
    return sorted(found, key=lambda entry: order.get(entry.publisher, 1))
