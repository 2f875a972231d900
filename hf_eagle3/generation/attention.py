"""Tree masks where the target's attention takes none: FlashAttention, its kernels, flex attention.

Their entries in the host's `AttentionInterface` are wrapped, once per process: a pass under an additive 4-D mask, as
trees come, goes to the host's sdpa, every other pass where it always went. (Switching the model's own setting for the
time of a verification would be seen by other threads.) Does not know which targets allow it.
"""

import functools

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward


WRAPPED = "_hf_eagle3_takes_tree_masks"


def take_tree_masks(name: str) -> None:
    """Let the attention implementation `name` take additive 4-D masks; a second call does nothing."""
    own = AttentionInterface()[name]
    if WRAPPED in vars(own):
        return

    @functools.wraps(own)
    def attention(module, query, key, value, attention_mask, *args, **kwargs):
        is_additive = (
            isinstance(attention_mask, torch.Tensor)
            and attention_mask.dim() == 4
            and attention_mask.is_floating_point()
        )
        function = sdpa_attention_forward if is_additive else own
        return function(module, query, key, value, attention_mask, *args, **kwargs)

    setattr(attention, WRAPPED, True)
    AttentionInterface.register(name, attention)
