"""Training-time test: unrolls the draft over its own outputs, as it runs when drafting.

Step 0 reads the target's features; step k reads the states that the draft fed back at step k - 1. At index i of step k
the draft reads token x[i+1+k] at RoPE position i + k and predicts x[i+2+k]. Does not know losses or targets.

A later step at index i attends to earlier steps at index i only, and to step 0's keys up to i. Later steps therefore
run only at the indices that a loss reads, and prompt tokens cost one pass instead of S.

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
    later_indices: Tensor | None = None,
    gradient_checkpointing: bool = False,
) -> list[Tensor]:
    """
    Unroll the draft over a batch of right-padded sequences.

    Args:
        draft_model: The draft.
        inputs_embeds: The target's embedding later_indices of x_0..x_{L-1}, (B, L, H).
        target_features: Outputs of the tapped layers at the same positions, (B, L, F).
        num_steps: Training-time-test steps (S); 1 is EAGLE's ordinary training.
        position_ids: Positions of x_0..x_{L-1}, (B, L) or (1, L), restarting at every packed document. Default:
            0..L-1.
        segments: Packed documents, see `training_time_test_attention`.
        later_indices: Flat indices b * L + i at which steps after the first run, ascending, (M,). Default: all.
        gradient_checkpointing: Store only each step's outputs and recompute the rest in the backward pass.

    Returns:
        Normed states for the head, one (B, L, H) tensor per step. Index i of step k predicts x[i+2+k] and is valid
        where that token belongs to the same document, so never at the last 1 + k indices. Later steps are zero outside
        `later_indices`.

    Source: EAGLE-3 (arXiv 2503.01840), section 3.2; alignment as in the original repository's `cnets.py`.
    """
    batch_size, length = inputs_embeds.shape[:2]
    if position_ids is None:
        position_ids = torch.arange(length, device=inputs_embeds.device)[None]
    position_ids = position_ids.expand(batch_size, -1)
    hidden = draft_model.fuse(target_features)
    earlier: list[dict[int, tuple[Tensor, Tensor]]] = []  # keys and values of each step so far, by layer
    normed_states = []
    for step in range(num_steps):
        # Shifted left by 1 + step: index i holds the embedding of x[i+1+step]. Zeros past the end are never read.
        embeds = F.pad(inputs_embeds[:, 1 + step :], (0, 0, 0, min(1 + step, length)))
        if step and later_indices is not None:
            if step == 1:  # from here on `hidden` is what a step at `later_indices` returned
                position_ids, hidden = take_indices(position_ids, later_indices), take_indices(hidden, later_indices)
            embeds = take_indices(embeds, later_indices)
        rotary = draft_model.rotary(position_ids + step, inputs_embeds.dtype)
        arguments = (draft_model, embeds, hidden, rotary, tuple(earlier), segments, later_indices)
        if gradient_checkpointing and torch.is_grad_enabled():
            hidden, normed, own = checkpoint(one_step, *arguments, use_reentrant=False)
        else:
            hidden, normed, own = one_step(*arguments)
        earlier.append(own)
        if step and later_indices is not None:
            # Back to (B, L, H), so that losses index all steps alike.
            normed = normed.new_zeros(batch_size * length, normed.shape[2]).index_copy(0, later_indices, normed[0])
            normed = normed.unflatten(0, (batch_size, length))
        normed_states.append(normed)
    return normed_states


def take_indices(x: Tensor, indices: Tensor) -> Tensor:
    """Entries of x (B, L, ...) at flat indices (M,), as (1, M, ...)."""
    return x.flatten(0, 1)[indices][None]


def one_step(draft_model, embeds, hidden, rotary, earlier, segments, later_indices):
    """(fed-back states, normed states, this step's keys and values by layer). Pure, so that it can be recomputed."""
    own: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(query: Tensor, key: Tensor, value: Tensor, layer_index: int) -> Tensor:
        query, key, value = same_dtype(query, key, value)
        # RoPE is applied already, so a stored key keeps the position of its step.
        own[layer_index] = (key, value)
        stored = [step[layer_index] for step in earlier] + [own[layer_index]]
        keys, values = [k for k, _ in stored], [v for _, v in stored]
        return training_time_test_attention(query, keys, values, segments, later_indices if earlier else None)

    fed_back, normed = draft_model.decode(embeds, hidden, rotary, attend)
    return fed_back, normed, own


def same_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One dtype for attention: under autocast, projections are in half precision but RoPE may promote q and k."""
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)
