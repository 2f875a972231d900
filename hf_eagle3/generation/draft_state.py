"""A draft's memory between calls that share a cache: chat turns.

Rides along on the user's cache as one attribute, and is believed only if the token ids agree. Without it the draft
starts at the new tokens, at true positions. Kept while no row was dropped (so always for one row).
"""

import torch
from transformers import Cache

from .draft_cache import DraftState
from .drafting import Drafter
from .rows import Rows


ATTRIBUTE = "_hf_eagle3_draft_state"


def attach_state(cache: Cache, drafter: Drafter, rows: Rows, pending: list) -> None:
    """Leave what the draft knows of the cached columns on `cache`; drop what an earlier call left there."""
    vars(cache).pop(ATTRIBUTE, None)
    width = max(rows.lengths) - 1 + rows.cache_shift
    whole = rows.cache_shift == 0 and drafter.cache.valid.shape[0] == rows.num_rows and len(set(rows.lengths)) == 1
    if not whole or not pending:
        return
    features = torch.cat([entries.features[:, : entries.counts[0]] for entries in pending], dim=1)
    if any(set(entries.counts) != {entries.counts[0]} for entries in pending) or features.shape[0] != rows.num_rows:
        return
    state = DraftState(
        keys=[k[:, :, : drafter.filled] for k in drafter.cache.keys],
        values=[v[:, :, : drafter.filled] for v in drafter.cache.values],
        valid=drafter.cache.valid[:, : drafter.filled].clone(),
        ids=rows.ids[:, : width + 1].clone(),
        pending=features,
        owner=id(drafter.draft.fc.weight),
    )
    setattr(cache, ATTRIBUTE, state)


def saved_entries(cache: Cache, drafter: Drafter, rows: Rows, cached: int) -> torch.Tensor | None:
    """
    Restore an earlier call's entries for a cache that held `cached` columns; returns the features (B, m, F) of its
    last m columns that were not fed yet, or `None` if there is nothing to believe.
    """
    state: DraftState | None = vars(cache).pop(ATTRIBUTE, None)
    if state is None or cached == 0 or rows.cache_shift != 0:
        return None
    width = state.ids.shape[1]  # cached columns then, and the root
    fits = (
        state.owner == id(drafter.draft.fc.weight)
        and width == cached + 1
        and state.ids.shape[0] == rows.num_rows
        and rows.prompt_length >= width
        and torch.equal(state.ids, rows.ids[:, :width].to(state.ids.device))
    )
    if not fits:
        return None
    drafter.restore(state)
    return state.pending
