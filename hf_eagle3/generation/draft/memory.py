"""What a draft reads of a prompt, and its memory between calls that share a cache: chat turns.

The memory rides along on the user's cache as one attribute, and is reused only if the token ids match. Without it the
draft starts at the new tokens, at true positions. Kept while no sequence was dropped (so always for one).

Shape letters: B sequences, m entries, F features, H hidden.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch
from transformers import Cache

from ..batch import Batch
from .interface import DraftInputs, Prompt
from .kv import DraftState


if TYPE_CHECKING:
    from .eagle3 import Eagle3Drafter

ATTRIBUTE = "_hf_eagle3_draft_state"


def prompt_inputs(drafter: Eagle3Drafter, batch: Batch, prompt: Prompt) -> DraftInputs:
    """The prompt's features, each paired with the token behind it; first those that an earlier call left unread."""
    features, cached = prompt.features, prompt.num_cached
    end, device, start = batch.prompt_length + batch.cache_shift, features.device, cached
    tokens = torch.cat((batch.ids[:, : batch.prompt_length].to(device), prompt.first_tokens.to(device)), dim=1)
    # An image's tokens may stand beyond the vocabulary; transformers reads row 0 there.
    tokens = tokens.where(tokens < drafter.config.vocab_size, 0)
    remembered = _restore(drafter, batch, prompt)
    if remembered is not None:
        features = torch.cat((remembered.to(features), features), dim=1)
        start = cached - remembered.shape[1]
    embeds = None
    if start + 1 < batch.cache_shift:  # slots without token ids
        if prompt.embeds is not None and start == 0 and drafter.reads_plain_embeddings:
            first = drafter.target.embedding_rows(prompt.first_tokens).to(device)
            embeds = torch.cat((prompt.embeds[:, 1:].to(device), first), dim=1)
        else:
            features, start = features[:, batch.cache_shift - 1 - start :], batch.cache_shift - 1
    slots = torch.arange(start, end, device=device)
    positions, valid = slots.expand(batch.num_sequences, -1), None
    if batch.visible is not None:
        seen = batch.visible[:, :end].to(device)
        positions, valid = (seen.cumsum(1) - 1).clamp(min=0)[:, start:], seen[:, start:]
    return DraftInputs(
        tokens=tokens[:, slots + 1 - batch.cache_shift] if embeds is None else None,
        features=features,
        slots=slots.expand(batch.num_sequences, -1),
        positions=positions,
        counts=[features.shape[1]] * batch.num_sequences,
        last_slot=end - 1,
        first_slot=start,
        valid=valid,
        embeds=embeds,
    )


def attach_state(cache: Cache, drafter: Eagle3Drafter, batch: Batch) -> None:
    """Leave what the draft knows of the cached slots on `cache`; drop what an earlier call left there."""
    vars(cache).pop(ATTRIBUTE, None)
    pending, held = drafter.pending, drafter.cache
    width = max(batch.lengths) - 1 + batch.cache_shift
    is_whole = batch.cache_shift == 0 and held.valid.shape[0] == batch.num_sequences and len(set(batch.lengths)) == 1
    if not is_whole or not pending:
        return
    features = torch.cat([inputs.features[:, : inputs.counts[0]] for inputs in pending], dim=1)
    if any(set(inputs.counts) != {inputs.counts[0]} for inputs in pending) or len(features) != batch.num_sequences:
        return
    state = DraftState(
        keys=[k[:, :, : held.filled].clone() for k in held.keys],
        values=[v[:, :, : held.filled].clone() for v in held.values],
        valid=held.valid[:, : held.filled].clone(),
        ids=batch.ids[:, : width + 1].clone(),
        pending=features,
        dtype=drafter.draft.fc.weight.dtype,
        owner=weakref.ref(drafter.draft.fc.weight),
        dropped=held.dropped,
    )
    setattr(cache, ATTRIBUTE, state)


def _restore(drafter: Eagle3Drafter, batch: Batch, prompt: Prompt) -> torch.Tensor | None:
    """
    Restore an earlier call's entries; returns the features (B, m, F) of the cache's last m slots that were not fed
    yet, or `None` if nothing can be reused.
    """
    state: DraftState | None = vars(prompt.cache).pop(ATTRIBUTE, None)
    if state is None or prompt.num_cached == 0 or batch.cache_shift != 0:
        return None
    width = state.ids.shape[1]  # cached slots then, and the root
    fits = (
        state.belongs_to(drafter.draft)
        and width == prompt.num_cached + 1
        and state.ids.shape[0] == batch.num_sequences
        and batch.prompt_length >= width
        and torch.equal(state.ids, batch.ids[:, :width].to(state.ids.device))
    )
    if not fits:
        return None
    drafter.cache.restore(state)
    return state.pending
