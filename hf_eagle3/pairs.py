"""The pairs whose drafts ship with the package, by name.

"embedded" is whole and works offline; of "smollm2" the target is fetched once (see `smollm2.locate`).
"""

from dataclasses import dataclass
from pathlib import Path

from . import embedded, smollm2
from .smollm2.fetch import FetchError


EMBEDDED, SMOLLM2 = "embedded", "smollm2"
NAMES = (EMBEDDED, SMOLLM2)
DRAFTS = {EMBEDDED: embedded.DRAFT, SMOLLM2: smollm2.DRAFT}
PROMPTS = {EMBEDDED: embedded.prompts, SMOLLM2: smollm2.prompts}  # functions of a domain or `None`


@dataclass(frozen=True)
class ShippedPair:
    """
    A pair that can be loaded.

    Attributes:
        name: One of `NAMES`.
        title: For people.
        target, draft: Their folders.
        prompts: Rows {"domain", "prompt"} to try it on, interleaved by domain.
        note: Why it is not the pair that was asked for, in one line; `None`: it is.
    """

    name: str
    title: str
    target: Path
    draft: Path
    prompts: list[dict[str, str]]
    note: str | None = None


def shipped_pair(name: str) -> ShippedPair:
    """
    The pair of that name; the embedded one, with a note, where its target cannot be had.

    Raises:
        ValueError: there is no such pair.
    """
    if name not in NAMES:
        raise ValueError(f"`pair` is {name!r}; choose from {', '.join(NAMES)}.")
    note = None
    if name == SMOLLM2:
        try:
            return ShippedPair(name, "SmolLM2-135M-Instruct", smollm2.locate(), smollm2.DRAFT, smollm2.prompts())
        except (FetchError, OSError) as error:
            note = f"The target of `smollm2` is not at hand, the embedded pair is used instead. {error}"
    return ShippedPair(EMBEDDED, "the embedded pair", embedded.TARGET, embedded.DRAFT, embedded.prompts(), note)
