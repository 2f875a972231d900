"""Attention of verification passes, recognised by their additive 4-D masks.

The host's entry in its `AttentionInterface` is wrapped, once per process and implementation; a pass without such a
mask goes where it always went. (Switching the model's own setting for the time of a verification would be seen by
other threads.) Does not know which targets allow it.

- FlashAttention, its kernels and flex attention take no tree mask: sdpa stands in.
- sdpa repeats grouped keys under a mask, as often as heads share them: instead the heads that share keys are packed
  into the query axis, and a long cache is read once.
"""

import functools

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..modeling_eagle3 import PACKED_QUERIES, grouped_attention


WRAPPED = "_hf_eagle3_takes_tree_masks"


def take_tree_masks(name: str) -> None:
    """Let the attention implementation `name` take additive 4-D masks, and well; a second call does nothing."""
    own = AttentionInterface()[name]
    if WRAPPED in vars(own):
        return
    stand_in = own if name == "sdpa" else sdpa_attention_forward

    @functools.wraps(own)
    def attention(module, query, key, value, attention_mask, *args, **kwargs):
        if not _is_additive(attention_mask):
            return own(module, query, key, value, attention_mask, *args, **kwargs)
        if args or not _can_pack(query, key, attention_mask, kwargs):
            return stand_in(module, query, key, value, attention_mask, *args, **kwargs)
        out = grouped_attention(query, key, value, attention_mask, kwargs.get("scaling"))
        return out.transpose(1, 2).contiguous(), None

    setattr(attention, WRAPPED, True)
    AttentionInterface.register(name, attention)


def _is_additive(mask) -> bool:
    return isinstance(mask, torch.Tensor) and mask.dim() == 4 and mask.is_floating_point()


def _can_pack(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor, options: dict) -> bool:
    """Grouped heads, few queries, one mask for all heads, and nothing that the host would do beside."""
    groups = query.shape[1] // key.shape[1]
    is_plain = not options.get("dropout") and all(
        options.get(name) is None for name in ("position_bias", "cache", "softcap")
    )
    return groups > 1 and query.shape[2] <= PACKED_QUERIES and mask.shape[1] == 1 and is_plain
