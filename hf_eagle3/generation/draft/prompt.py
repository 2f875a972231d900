"""What a draft reads of a prompt, and its memory between calls that share a cache: chat turns.

Rides along on the user's cache as one attribute, and is believed only if the token ids agree. Without it the draft
starts at the new tokens, at true positions. Kept while no row was dropped (so always for one row).
"""

import weakref

import torch
from transformers import Cache

from ..batch import Rows
from .drafter import Drafter, Entries
from .kv import DraftState


ATTRIBUTE = "_hf_eagle3_draft_state"


def prompt_entries(
    drafter: Drafter,
    rows: Rows,
    cache: Cache,
    features: torch.Tensor,
    cached: int,
    first_tokens: torch.Tensor,
    prompt_embeds: torch.Tensor | None,
) -> Entries:
    """
    The prompt's features, each paired with the token after it.

    Args:
        features: Of the columns that this call's prefill ran, (B, m, F).
        cached: Columns that the cache held before; the draft may remember them.
        first_tokens: The tokens chosen after the prompt, (B, 1).
        prompt_embeds: The prompt as embeddings, for columns without token ids; `None` if it had ids.
    """
    columns, device, start = rows.prompt_length + rows.cache_shift, features.device, cached
    tokens = torch.cat((rows.ids[:, : rows.prompt_length].to(device), first_tokens.to(device)), dim=1)
    # An image's tokens may stand beyond the vocabulary; the host reads row 0 there.
    tokens = tokens.where(tokens < drafter.config.vocab_size, 0)
    remembered = _restore(cache, drafter, rows, cached)
    if remembered is not None:
        features = torch.cat((remembered.to(features), features), dim=1)
        start = cached - remembered.shape[1]
    embeds = None
    if start + 1 < rows.cache_shift:  # columns whose token ids nobody knows
        if prompt_embeds is not None and start == 0 and drafter.reads_plain_embeddings:
            first = drafter.target.embedding_rows(first_tokens).to(device)
            embeds = torch.cat((prompt_embeds[:, 1:].to(device), first), dim=1)
        else:
            features, start = features[:, rows.cache_shift - 1 - start :], rows.cache_shift - 1
    places = torch.arange(start, columns, device=device)
    positions, valid = places.expand(rows.num_rows, -1), None
    if rows.visible is not None:
        seen = rows.visible[:, :columns].to(device)
        positions, valid = (seen.cumsum(1) - 1).clamp(min=0)[:, start:], seen[:, start:]
    return Entries(
        tokens=tokens[:, places + 1 - rows.cache_shift] if embeds is None else None,
        features=features,
        columns=places.expand(rows.num_rows, -1),
        positions=positions,
        counts=[features.shape[1]] * rows.num_rows,
        last_column=columns - 1,
        valid=valid,
        embeds=embeds,
    )


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
        keys=[k[:, :, : drafter.filled].clone() for k in drafter.cache.keys],
        values=[v[:, :, : drafter.filled].clone() for v in drafter.cache.values],
        valid=drafter.cache.valid[:, : drafter.filled].clone(),
        ids=rows.ids[:, : width + 1].clone(),
        pending=features,
        dtype=drafter.draft.fc.weight.dtype,
        owner=weakref.ref(drafter.draft.fc.weight),
    )
    setattr(cache, ATTRIBUTE, state)


def _restore(cache: Cache, drafter: Drafter, rows: Rows, cached: int) -> torch.Tensor | None:
    """
    Restore an earlier call's entries for a cache that held `cached` columns; returns the features (B, m, F) of its
    last m columns that were not fed yet, or `None` if there is nothing to believe.
    """
    state: DraftState | None = vars(cache).pop(ATTRIBUTE, None)
    if state is None or cached == 0 or rows.cache_shift != 0:
        return None
    width = state.ids.shape[1]  # cached columns then, and the root
    fits = (
        state.belongs_to(drafter.draft)
        and width == cached + 1
        and state.ids.shape[0] == rows.num_rows
        and rows.prompt_length >= width
        and torch.equal(state.ids, rows.ids[:, :width].to(state.ids.device))
    )
    if not fits:
        return None
    drafter.restore(state)
    return state.pending
