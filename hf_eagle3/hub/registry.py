"""Known public drafts (`drafts.json`), to suggest one for a target.

Every entry names its public source. `checked`: "layout" if a replica of its published layout loads in the tests,
"refused" if it is refused by name there, "files" if its own files were loaded, else false. `layers`: "usual" for
[2, n//2, n-3] of `hidden_states` if the file names none; absent if the source does not say. Knows names only and does
not access the Hub.
"""

import functools
from dataclasses import dataclass

from ..known_defects import Defect, entries


CHECKED = {
    "files": "its files were loaded",
    "layout": "its layout is tested",
    "refused": "cannot be used: see the note",
    False: "not tested",
}


@dataclass(frozen=True)
class PublicDraft:
    """
    One entry.

    Args:
        draft, target: Hub ids.
        publisher: Its author.
        source: Page that names draft and target.
        checked: A key of `CHECKED`.
        layers: "usual", or `None` if unknown.
        notes: Remarks for users.
        defects: Wrong values in its file, which loading replaces.
    """

    draft: str
    target: str
    publisher: str
    source: str
    checked: str | bool
    layers: str | None = None
    notes: str | None = None
    defects: tuple[Defect, ...] = ()


@functools.cache
def public_drafts() -> tuple[PublicDraft, ...]:
    """All entries, sorted by target."""
    return tuple(
        PublicDraft(**entry | {"defects": tuple(Defect(**defect) for defect in entry.get("defects", ()))})
        for entry in entries()
    )


def drafts_for(target: str) -> list[PublicDraft]:
    """Entries for a Hub id, case-insensitive: usable ones first, of EAGLE-3's authors first, the community's last."""
    found = [entry for entry in public_drafts() if entry.target.lower() == target.lower()]
    order = {"authors of EAGLE-3": 0, "community": 2}
    return sorted(found, key=lambda entry: (entry.checked == "refused", order.get(entry.publisher, 1)))
