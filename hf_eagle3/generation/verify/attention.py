"""Attention of verification passes, recognised by their additive 4-D masks.

Transformers' entry in its `AttentionInterface` is wrapped, once per process and implementation; a pass without such a
mask goes where it always went. (Switching the model's own setting for the time of a verification would be seen by
other threads.) Does not know which targets allow it.

- FlashAttention, its kernels and flex attention take no tree mask: sdpa stands in.
- sdpa repeats grouped keys under a mask, as often as heads share them: instead the heads that share keys are packed
  into the query axis, and a long cache is read once.
"""

import functools
from dataclasses import dataclass, field

import torch

from ...compat.models import AttentionInterface, registered_attention, sdpa_attention_forward
from ..ops.grouped_attention import PACKED_QUERIES, grouped_attention, packed_mask


WRAPPED = "_hf_eagle3_takes_tree_masks"  # holds the function that was registered before
_WRAPPED_NAMES: set[str] = set()
SHARED = "_hf_eagle3_shared"


@dataclass
class _Shared:
    hides_nothing: bool
    packed: dict[int, torch.Tensor] = field(default_factory=dict)  # by heads that share keys


def share_mask(mask: torch.Tensor, hides_nothing: bool) -> torch.Tensor:
    """
    `mask`, of which the layers that get this very tensor make things once for all. It must not be changed afterwards.

    Args:
        hides_nothing: It is zero, for one query: attention goes without it.
    """
    setattr(mask, SHARED, _Shared(hides_nothing))
    return mask


def take_tree_masks(name: str) -> None:
    """Let the attention implementation `name` take additive 4-D masks, and well; a second call does nothing."""
    own = registered_attention(name)
    if WRAPPED in vars(own):
        return
    stand_in = own if name == "sdpa" else sdpa_attention_forward

    @functools.wraps(own)
    def attention(module, query, key, value, attention_mask, *args, **kwargs):
        if not _is_additive(attention_mask):
            return own(module, query, key, value, attention_mask, *args, **kwargs)
        shared = None if torch.compiler.is_compiling() else getattr(attention_mask, SHARED, None)
        mask = None if shared is not None and shared.hides_nothing else attention_mask
        if args or not _can_pack(query, key, attention_mask, kwargs):
            return stand_in(module, query, key, value, mask, *args, **kwargs)
        if shared is not None and mask is not None:
            groups = query.shape[1] // key.shape[1]
            mask = shared.packed.get(groups)
            if mask is None:
                mask = shared.packed[groups] = packed_mask(attention_mask, groups)
        out = grouped_attention(query, key, value, mask, kwargs.get("scaling"))
        return out.transpose(1, 2).contiguous(), None

    setattr(attention, WRAPPED, own)
    AttentionInterface.register(name, attention)
    _WRAPPED_NAMES.add(name)


def release_tree_masks() -> None:
    """Undo `take_tree_masks` for all implementations."""
    for name in _WRAPPED_NAMES:
        AttentionInterface.register(name, vars(registered_attention(name))[WRAPPED])
    _WRAPPED_NAMES.clear()


def _is_additive(mask) -> bool:
    return isinstance(mask, torch.Tensor) and mask.dim() == 4 and mask.is_floating_point()


def _can_pack(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor, options: dict) -> bool:
    """Grouped heads, few queries, one mask for all heads, and no other option of attention."""
    groups = query.shape[1] // key.shape[1]
    is_plain = not options.get("dropout") and all(
        options.get(name) is None for name in ("position_bias", "cache", "softcap")
    )
    return groups > 1 and query.shape[2] <= PACKED_QUERIES and mask.shape[1] == 1 and is_plain
