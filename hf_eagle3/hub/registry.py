"""Known public drafts (`drafts.json`), to suggest one for a target.

Every entry names its public source. `checked`: "layout" if a replica of its published layout loads in the tests,
"refused" if it is refused by name there, "files" if its own files were loaded, else false. `layers`: "usual" for
[2, n//2, n-3] of `hidden_states` if the file names none; absent if the source does not say. Knows names only and does
not access the Hub.
"""

import difflib
import functools
from dataclasses import dataclass
from pathlib import Path

from ..known_defects import Defect, entries


# By path, as importing these packages imports torch.
EMBEDDED, SMOLLM2 = (Path(__file__).parents[1] / name for name in ("embedded", "smollm2"))
SMOLLM2_TARGET, SMOLLM2_RECORD = "HuggingFaceTB/SmolLM2-135M-Instruct", "source.json"  # as in smollm2/fetch.py
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


def shipped(target: str) -> Path | None:
    """The folder of this package that has a draft for the target."""
    if (EMBEDDED / "target").resolve() == Path(target).resolve():
        return EMBEDDED
    is_smollm2 = target.lower() == SMOLLM2_TARGET.lower() or (Path(target) / SMOLLM2_RECORD).is_file()
    return SMOLLM2 if is_smollm2 else None


def known_draft(target: str) -> PublicDraft:
    """
    The first of `drafts_for` a target, or the draft that ships with the package.

    Args:
        target: Hub id, or the directory of a target whose draft ships with the package.

    Raises:
        ValueError: none is known; the message lists targets of similar names.
    """
    if (folder := shipped(target)) is not None:
        return PublicDraft(str(folder / "draft"), target, "hf_eagle3", str(folder / "README.md"), checked="files")
    if known := [entry for entry in drafts_for(target) if entry.checked != "refused"]:
        return known[0]
    near = near_targets(target)
    hint = f" Similar names: {', '.join(near)}." if near else ""
    raise ValueError(
        f"No draft is known for the target {target!r}.{hint} Name its draft (`--draft`, `draft`), or train one: "
        f"`hf-eagle3 train --target {target}`."
    )


def near_targets(target: str, most: int = 3) -> list[str]:
    """Targets with a known draft whose name, with or without the user's, is similar; the most similar first."""
    names = sorted({entry.target for entry in public_drafts() if entry.checked != "refused"})
    by_name = {name.lower(): name for name in names} | {name.split("/")[-1].lower(): name for name in names}
    words = (target.lower(), target.rstrip("/").split("/")[-1].lower())
    found = (by_name[match] for word in words for match in difflib.get_close_matches(word, by_name, n=most))
    return list(dict.fromkeys(found))[:most]
