"""The additive masks of a verification: what every node sees of its sequence and of its tree.

Shape letters: A active sequences, N drafted nodes.
"""

import torch

from ...target.layer_inputs import Reach
from ..ops.transfer import additive
from .slots import Span


def verification_masks(
    kinds: dict[str, tuple[Span, Reach]],
    lengths: torch.Tensor,
    visible: torch.Tensor | None,
    depths: torch.Tensor,
    ancestors: torch.Tensor,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """
    Additive masks per kind of attention, each (A, 1, N + 1, slots + N + 1).

    Args:
        kinds: Of each kind of attention, where its layers stand and how far back it attends.
        lengths: Tokens cached of each sequence, (A,). A node stands for token length + depth.
        visible: Which slots are no padding, (A, at least the longest length); `None`: all.
        depths: (A, N + 1).
        ancestors: (A, N + 1, N + 1).

    Windows and chunks are by token position, not by slot: a node's slot is behind the longest sequence, its position
    behind its own; and chunks are counted behind the left padding.
    """
    masks = {}
    here = lengths[:, None] + depths  # (A, N + 1), the slots that nodes will have once committed
    for kind, (span, reach) in kinds.items():
        slots = torch.arange(span.start, span.write, device=lengths.device)
        prefix = slots < lengths[:, None]  # (A, slots): what other sequences' nodes left behind is masked
        if visible is not None:
            prefix = prefix & visible[:, span.start : span.write]
        prefix = prefix[:, None].expand(-1, depths.shape[1], -1)
        nodes = ancestors
        if reach.window is not None:
            prefix = prefix & (here[:, :, None] - slots < reach.window)
            nodes = nodes & (depths[:, :, None] - depths[:, None] < reach.window)
        if reach.chunk is not None:
            padding = 0 if visible is None else (visible.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)  # (A, 1)
            chunk = (here - padding) // reach.chunk
            prefix = prefix & (chunk[:, :, None] == ((slots - padding) // reach.chunk)[..., None, :])
            nodes = nodes & (chunk[:, :, None] == chunk[:, None])
        masks[kind] = additive(torch.cat((prefix, nodes), dim=2)[:, None], dtype)
    return masks


def slot_positions(write: int, visible: torch.Tensor | None, node_slots: torch.Tensor) -> torch.Tensor:
    """Token positions of all slots, left padding not counted, (A, write + N + 1), for nodes at `node_slots`."""
    slots = torch.arange(write, device=node_slots.device).expand(node_slots.shape[0], -1)
    slots = torch.cat((slots, node_slots), dim=1)
    return slots if visible is None else (visible.cumsum(dim=1).gather(1, slots) - 1).clamp(min=0)
