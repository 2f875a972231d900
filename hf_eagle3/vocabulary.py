"""The draft vocabulary: which target tokens the draft can propose, and the arithmetic of `d2t` and `t2d`.

`d2t` (D,) int64 stores offsets: target id = draft id + d2t[draft id]. `t2d` (V,) bool marks the target tokens in the
draft vocabulary. No other module does this arithmetic; this one does not know models or files.

Shape letters: V target vocabulary, D draft vocabulary.
"""

import torch


def mapping_from_target_ids(target_ids: torch.Tensor, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    (`d2t` (D,) int64, `t2d` (V,) bool) for a draft vocabulary of `target_ids` (D,), in any order, without repeats.

    Raises:
        ValueError: repeated ids, or ids outside 0..vocab_size-1.
    """
    ids = torch.as_tensor(target_ids, dtype=torch.long).sort().values
    if ids.numel() == 0 or ids[0] < 0 or ids[-1] >= vocab_size or (ids[1:] == ids[:-1]).any():
        raise ValueError(
            f"`target_ids` must be one or more distinct ids in 0..{vocab_size - 1}; got {ids.numel()} ids from "
            f"{ids[:1].tolist()} to {ids[-1:].tolist()}."
        )
    t2d = torch.zeros(vocab_size, dtype=torch.bool)
    t2d[ids] = True
    return ids - torch.arange(ids.numel()), t2d


def target_ids(d2t: torch.Tensor) -> torch.Tensor:
    """Target id of every draft id, (D,) int64."""
    return d2t + torch.arange(d2t.numel(), device=d2t.device)


def complete_mapping(
    d2t: torch.Tensor | None,
    t2d: torch.Tensor | None,
    draft_vocab_size: int,
    vocab_size: int,
    source: str = "the draft",
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """
    Validate a stored mapping; a missing `t2d` is derived from `d2t`. `None` if D == V.

    Args:
        source: Its origin, for error messages.

    Raises:
        ValueError: `d2t` is missing, out of range or has repeats, contradicts `t2d`, or is not the identity if D == V.
    """
    if draft_vocab_size == vocab_size:
        if d2t is not None and d2t.any():
            raise ValueError(
                f"`d2t` of {source} is not the identity although `draft_vocab_size` is `vocab_size` ({vocab_size})."
            )
        return None
    if d2t is None:
        raise ValueError(
            f"`d2t` is missing from {source}: the draft predicts {draft_vocab_size} of {vocab_size} tokens, and "
            "the checkpoint does not say which."
        )
    if d2t.shape != (draft_vocab_size,):
        raise ValueError(f"`d2t` of {source} has shape {tuple(d2t.shape)}, `draft_vocab_size` is {draft_vocab_size}.")
    offsets = d2t.long().cpu()
    if fault := _fault(d2t, offsets, t2d, vocab_size):
        raise ValueError(f"`d2t` of {source} {fault}")
    _, derived = mapping_from_target_ids(target_ids(offsets), vocab_size)
    if t2d is not None and not torch.equal(derived, t2d.bool().cpu()):
        raise ValueError(
            f"`t2d` of {source} does not mark the tokens that `d2t` maps to; one of the two belongs to another draft."
        )
    return offsets, derived


def _fault(d2t: torch.Tensor, offsets: torch.Tensor, t2d: torch.Tensor | None, vocab_size: int) -> str | None:
    """What is wrong with stored offsets, or `None`."""
    if not torch.equal(offsets.to(d2t.device, torch.float64), d2t.to(torch.float64)):
        return f"contains fractions ({d2t.dtype}): casting has destroyed it. Use the original file."
    ids = target_ids(offsets)
    # Valid as offsets, and valid when read as plain target ids: `t2d` decides if both are possible.
    is_mapping = bool((ids >= 0).all() and (ids < vocab_size).all()) and ids.unique().numel() == ids.numel()
    is_ids = bool((offsets >= 0).all() and (offsets < vocab_size).all()) and offsets.unique().numel() == ids.numel()
    marked = None if t2d is None else t2d.bool().cpu()
    if is_ids and (
        not is_mapping or (marked is not None and not bool(marked[ids].all()) and bool(marked[offsets].all()))
    ):
        return (
            "contains target ids instead of offsets; subtract 0, 1, 2, ... from it (`d2t - torch.arange(len(d2t))`)."
        )
    if is_mapping:
        return None
    outside = [(place, int(id_)) for place, id_ in enumerate(ids.tolist()) if not 0 <= id_ < vocab_size]
    if outside:
        place, id_ = outside[0]
        return (
            f"maps {len(outside)} draft ids outside the target's 0..{vocab_size - 1}; the first is {place}, mapped "
            f"to {id_}."
        )
    values, counts = ids.unique(return_counts=True)
    return f"maps {int(counts.max())} draft ids to the same token, {int(values[counts.argmax()])}."


def choose_target_ids(counts: torch.Tensor, draft_vocab_size: int) -> torch.Tensor:
    """
    The `draft_vocab_size` most frequent tokens, ascending, (D,) int64.

    Args:
        counts: How often each target token has loss, (V,). Count the assistant's tokens only, preferably in text that
            the target generated.
        draft_vocab_size: If fewer distinct tokens occur, the lowest unused ids are added.

    Raises:
        ValueError: `draft_vocab_size` exceeds V, or all counts are zero.

    Source: the most frequent tokens of the training data, as in the original repository.
    """
    if not 0 < draft_vocab_size <= counts.numel():
        raise ValueError(f"`draft_vocab_size` is {draft_vocab_size}; it must be between 1 and {counts.numel()}.")
    if not counts.any():
        raise ValueError("All token counts are zero: every loss mask is empty.")
    # Stable sort: the lowest id first among ties, unused ids included.
    return counts.sort(descending=True, stable=True).indices[:draft_vocab_size].sort().values
