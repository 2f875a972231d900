"""`DraftingTraits`: what the mode "auto" takes for granted of a kind of draft. Does not know drafts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DraftingTraits:
    """
    What need not be measured.

    Attributes:
        assumed: What the draft's probabilities are worth at first, as in [`Calibration`]; `None`: by how the call
            chooses.
        is_free: Whether proposing costs next to nothing: it is then never paused.
        in_one_pass: Whether all levels of a tree come from one pass, so that no level has a cost of its own.
    """

    assumed: tuple[float, float] | None = None
    is_free: bool = False
    in_one_pass: bool = False


MEASURED = DraftingTraits()  # nothing is taken for granted
