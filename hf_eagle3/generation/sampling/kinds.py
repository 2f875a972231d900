"""What logits processors and stopping criteria look at: whether sequences of different lengths can share a call."""

import enum
from collections.abc import Sequence

from ...compat import processors as known


class Kind(enum.IntEnum):
    """What a processor or criterion needs of its call; a list needs the most of its members."""

    NONE = 0  # the list is empty
    PREFIX_FREE = 1  # looks at scores only, each sequence alone
    ROW_WISE = 2  # looks at its sequence's prefix
    ROW_IN_PLACE = 3  # looks at its sequence's prefix and its number in the batch
    STEPWISE = 4  # may hold state or look at other sequences: called once per step, all of them at one length


_KINDS: dict[type, Kind] = {
    **dict.fromkeys(known.PREFIX_FREE, Kind.PREFIX_FREE),
    **dict.fromkeys(known.SEQUENCE_WISE, Kind.ROW_WISE),
    **dict.fromkeys(known.SEQUENCE_IN_PLACE, Kind.ROW_IN_PLACE),
}


def declare_row_wise(cls: type) -> type:
    """
    Declare that your own logits processor's result for a sequence depends on that sequence's prefix and scores alone,
    or your stopping criterion's on the prefix alone (it is given no scores), and that it keeps no state. Sequences
    then need not wait for each other, and it may be called with tokens behind a sequence's end. Usable as a class
    decorator.
    """
    _KINDS[cls] = Kind.ROW_WISE
    return cls


def kind_of(members: Sequence) -> Kind:
    """
    The most demanding kind in a list of processors or criteria; exact types only, since a subclass may do anything.
    """
    return max((_KINDS.get(type(member), Kind.STEPWISE) for member in members), default=Kind.NONE)
