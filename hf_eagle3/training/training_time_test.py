"""Training-time test: the draft unrolled over its own outputs, as it will run when it drafts.

Step 0 reads the target's features; step k reads what the draft fed back at step k - 1. At index i of step k the draft
reads token x[i+1+k] at RoPE position i + k and predicts x[i+2+k]. Does not know losses or targets.

An index of a later step reads earlier steps at that same index only, and step 0's keys before it. So later steps run
for the indices that some loss reads, and prompts cost one pass instead of S.

Shape letters: B batch, L sequence, M indices of later steps, H draft hidden, F tapped features, S steps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..modeling_eagle3 import Eagle3DraftModel
from .attention import Segments, training_time_test_attention


def training_time_test(
    draft_model: Eagle3DraftModel,
    inputs_embeds: Tensor,
    target_features: Tensor,
    num_steps: int,
    position_ids: Tensor | None = None,
    segments: Segments = None,
    rows: Tensor | None = None,
    gradient_checkpointing: bool = False,
) -> list[Tensor]:
    """
    Unroll the draft over a batch of sequences padded on the right.

    Args:
        draft_model: The draft.
        inputs_embeds: The target's embedding rows of x_0..x_{L-1}, (B, L, H).
        target_features: Outputs of the tapped layers at the same positions, (B, L, F).
        num_steps: Training-time-test steps (S); 1 is EAGLE's ordinary training.
        position_ids: Positions of x_0..x_{L-1}, (B, L) or (1, L); they start again with every packed document. Default
            0..L-1.
        segments: Packed documents, see `training_time_test_attention`.
        rows: Flat indices b * L + i that steps after the first are wanted at, ascending, (M,). Default: all.
        gradient_checkpointing: Keep only each step's outputs and compute the rest again in the backward pass.

    Returns:
        Normed states for the head, one (B, L, H) tensor per step. Index i of step k predicts x[i+2+k]; it means
        something where that token is in the same document. The last 1 + k indices never do. Zeros outside `rows`.

    Source: EAGLE-3 (arXiv 2503.01840), section 3.2; alignment as in the original repository's `cnets.py`.
    """
    num_rows, length = inputs_embeds.shape[:2]
    if position_ids is None:
        position_ids = torch.arange(length, device=inputs_embeds.device)[None]
    position_ids = position_ids.expand(num_rows, -1)
    hidden = draft_model.fuse(target_features)
    memory: list[dict[int, tuple[Tensor, Tensor]]] = []  # keys and values of the steps so far, by layer
    normed_states = []
    for step in range(num_steps):
        embeds = F.pad(inputs_embeds[:, 1 + step :], (0, 0, 0, min(1 + step, length)))
        if step and rows is not None:
            if step == 1:
                position_ids, hidden = picked(position_ids, rows), picked(hidden, rows)
            embeds = picked(embeds, rows)
        rotary = draft_model.rotary(position_ids + step, inputs_embeds.dtype)
        arguments = (draft_model, embeds, hidden, rotary, tuple(memory), segments, rows)
        if gradient_checkpointing and torch.is_grad_enabled():
            hidden, normed, own = checkpoint(one_step, *arguments, use_reentrant=False)
        else:
            hidden, normed, own = one_step(*arguments)
        memory.append(own)
        if step and rows is not None:
            normed = normed.new_zeros(num_rows * length, normed.shape[2]).index_copy(0, rows, normed[0])
            normed = normed.unflatten(0, (num_rows, length))
        normed_states.append(normed)
    return normed_states


def picked(x: Tensor, rows: Tensor) -> Tensor:
    """(1, M, ...): the flat indices `rows` of (B, L, ...)."""
    return x.flatten(0, 1)[rows][None]


def one_step(draft_model, embeds, hidden, rotary, memory, segments, rows):
    """(fed-back states, normed states, this step's keys and values by layer). A pure function, so that it can be
    computed again."""
    own: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(query: Tensor, key: Tensor, value: Tensor, layer_index: int) -> Tensor:
        query, key, value = same_dtype(query, key, value)
        own[layer_index] = (key, value)
        stored = [step[layer_index] for step in memory] + [own[layer_index]]
        keys, values = [k for k, _ in stored], [v for _, v in stored]
        return training_time_test_attention(query, keys, values, segments, rows if memory else None)

    fed_back, normed = draft_model.decode(embeds, hidden, rotary, attend)
    return fed_back, normed, own


def same_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under autocast the projections are in half precision and RoPE's sines may not be."""
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)
