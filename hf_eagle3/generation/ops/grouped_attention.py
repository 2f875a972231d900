"""Attention of heads that share keys, under a mask, with no key repeated. Knows no model.

    6 heads over 2, 4 queries:  (B, 6, 4, d) -> (B, 2, 3 * 4, d), the mask (B, 1, 4, S) -> (B, 1, 3 * 4, S)

Shape letters: B batch, L queries, S keys, d head size.
"""

import torch
import torch.nn.functional as F


PACKED_QUERIES = 64  # up to so many per head, heads that share keys are packed into one


def packed_mask(mask: torch.Tensor, groups: int) -> torch.Tensor:
    """`mask` (B or 1, 1, L, S) for queries of `groups` heads packed into one, (B or 1, 1, groups * L, S)."""
    return mask.expand(-1, groups, -1, -1).reshape(mask.shape[0], 1, groups * mask.shape[2], -1)


def grouped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None = None,
) -> torch.Tensor:
    """
    Attention of grouped heads (B, heads, L, d) over (B, kv heads, S, d) under an additive `mask` (B or 1, 1, L, S), or
    its [`packed_mask`], scores scaled by `scale` (default: 1 / sqrt(d)). Returns (B, heads, L, width of the values).

    Few queries: the heads that share keys are packed into the query axis, so that no key is ever repeated. Many
    queries: repeating the keys costs less than repeating the mask.
    """
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    if groups == 1 or length > PACKED_QUERIES:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=groups > 1)
    query = query.reshape(batch, key.shape[1], groups * length, width)
    if mask is not None and mask.shape[2] == length:
        mask = packed_mask(mask, groups)
    packed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return packed.view(batch, heads, length, -1)
