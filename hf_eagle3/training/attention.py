"""Attention of training-time test: causal over step 0's keys, diagonal over the keys of each later step.

The causal part is ordinary fused attention, the k diagonal terms are dot products, and both are merged by their
log-sum-exp. Memory is linear in the sequence length, where a dense mask over (1 + k) L keys is quadratic. The backward
is written by hand because no fused attention differentiates through its log-sum-exp; called with the *merged* output
and log-sum-exp, the fused backward returns the exact gradients of the causal part.

Does not know the draft model. Shape letters: B batch, L sequence, M queries of a later step, d head size.
"""

import torch
from torch import Tensor


BLOCK = 256  # queries per block where no fused kernel applies
FUSED_HALF = (torch.float16, torch.bfloat16)

# Packed documents, each (sequence, start, end). `None`: every sequence is one document.
Segments = tuple[tuple[int, int, int], ...] | None


class TrainingTimeTestAttention(torch.autograd.Function):
    """Call through [`training_time_test_attention`]."""

    @staticmethod
    def forward(
        ctx,
        query: Tensor,
        segments: Segments,
        query_indices: Tensor | None,
        key: Tensor,
        value: Tensor,
        *later: Tensor,
    ) -> Tensor:
        """The merged output, shaped like `query`. `later` holds the later steps' keys, then their values."""
        groups, scale, shape = query.shape[1] // key.shape[1], query.shape[-1] ** -0.5, key.shape
        placed = scatter_queries(query, query_indices, shape)
        # Zeros instead of empty: queries outside every document must stay finite.
        causal, log_sum = torch.zeros_like(placed), query.new_zeros(placed.shape[:3], dtype=lse_dtype(query))
        states = []
        for part in document_slices(segments):
            out, lse, state = causal_forward(
                placed[part], repeat_heads(key[part], groups), repeat_heads(value[part], groups)
            )
            causal[part], log_sum[part] = out, lse
            states.append(state)
        causal, log_sum = gather_queries(causal, query_indices), gather_queries(log_sum, query_indices)
        keys, values = later[: len(later) // 2], later[len(later) // 2 :]
        # A query attends to a later step at its own index only, so that step adds a single score per query.
        scores = [(query * repeat_heads(k, groups)).sum(-1, dtype=log_sum.dtype) * scale for k in keys]
        merged = torch.logsumexp(torch.stack([log_sum, *scores]), dim=0) if scores else log_sum
        # exp(log_sum - merged) is the share of the softmax that falls on the causal keys.
        out = causal * (log_sum - merged).exp().to(query.dtype)[..., None] if scores else causal
        for score, v in zip(scores, values, strict=True):
            out = out + (score - merged).exp().to(query.dtype)[..., None] * repeat_heads(v, groups)
        ctx.segments, ctx.states, ctx.groups = segments, states, groups
        ctx.save_for_backward(query, query_indices, key, value, out, merged, *later)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Gradients of query, key, value and the later steps' keys and values."""
        query, query_indices, key, value, out, merged, *later = ctx.saved_tensors
        groups, scale = ctx.groups, query.shape[-1] ** -0.5
        grad = grad.contiguous()
        # Missing queries are zero-filled and get zero gradient, so they contribute nothing to key and value gradients.
        placed = [scatter_queries(x, query_indices, key.shape) for x in (grad, query, out, merged)]
        grad_query, grad_key, grad_value = (torch.zeros_like(placed[1]) for _ in range(3))
        for part, state in zip(document_slices(ctx.segments), ctx.states, strict=True):
            grad_query[part], grad_key[part], grad_value[part] = causal_backward(
                placed[0][part],
                placed[1][part],
                repeat_heads(key[part], groups),
                repeat_heads(value[part], groups),
                placed[2][part].contiguous(),  # the CUDA kernel ignores the strides of output and log-sum-exp
                placed[3][part].contiguous(),
                state,
            )
        grad_query = gather_queries(grad_query, query_indices)
        keys, values = later[: len(later) // 2], later[len(later) // 2 :]
        shift = (grad * out).sum(-1, dtype=merged.dtype)  # the row sum that softmax's backward subtracts
        grad_keys, grad_values = [], []
        for k, v in zip(keys, values, strict=True):
            k, v = repeat_heads(k, groups), repeat_heads(v, groups)
            # Recomputed from the merged log-sum-exp: the attention weight of this step's single key.
            weight = ((query * k).sum(-1, dtype=merged.dtype) * scale - merged).exp()
            grad_score = weight * ((grad * v).sum(-1, dtype=merged.dtype) - shift) * scale
            grad_score, weight = grad_score.to(query.dtype)[..., None], weight.to(query.dtype)[..., None]
            grad_query = grad_query + grad_score * k
            grad_keys.append(sum_groups(grad_score * query, groups))
            grad_values.append(sum_groups(weight * grad, groups))
        return (
            grad_query,
            None,
            None,
            sum_groups(grad_key, groups),
            sum_groups(grad_value, groups),
            *grad_keys,
            *grad_values,
        )


def training_time_test_attention(
    query: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    segments: Segments = None,
    query_indices: Tensor | None = None,
) -> Tensor:
    """
    Attention of one training-time-test step.

    Args:
        query: Queries of step k, RoPE applied, (B, heads, L, d); with `query_indices`, (1, heads, M, d).
        keys, values: Those of steps 0..k. Step 0's, (B, kv heads, L, d), are attended causally; the others have one
            per query, (B, kv heads, L, d) or (1, kv heads, M, d), attended at the query's own index.
        segments: Packed documents as (sequence, start, end); queries attend within their document. The output of
            queries outside every document is finite but meaningless.
        query_indices: Flat indices b * L + i of the queries, ascending, (M,). Default: all.

    Returns:
        (B, heads, L, d), or (1, heads, M, d).

    Source: EAGLE-3 (arXiv 2503.01840), section 3.2 and figure 6, where the mask is dense.
    """
    return TrainingTimeTestAttention.apply(query, segments, query_indices, keys[0], values[0], *keys[1:], *values[1:])


def scatter_queries(x: Tensor, query_indices: Tensor | None, shape: torch.Size) -> Tensor:
    """(1, heads, M, ...) to (B, heads, L, ...) with B and L of `shape`, zeros elsewhere; a no-op without indices."""
    if query_indices is None:
        return x
    batch, _, length, _ = shape
    # Heads go after L, so that the first two axes flatten to the b * L + i that the indices count.
    out = x.new_zeros(batch, length, x.shape[1], *x.shape[3:])
    out.flatten(0, 1).index_copy_(0, query_indices, x[0].transpose(0, 1))
    return out.transpose(1, 2).contiguous()


def gather_queries(x: Tensor, query_indices: Tensor | None) -> Tensor:
    """The transpose of `scatter_queries`."""
    if query_indices is None:
        return x
    return x.transpose(1, 2).flatten(0, 1)[query_indices].transpose(0, 1)[None].contiguous()


def document_slices(segments: Segments) -> list:
    """One index per causal attention: everything at once, or each packed document."""
    if segments is None:
        return [slice(None)]
    return [(slice(sequence, sequence + 1), slice(None), slice(start, end)) for sequence, start, end in segments]


def repeat_heads(x: Tensor, groups: int) -> Tensor:
    """Repeat key/value heads for the query heads that share them."""
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def sum_groups(x: Tensor, groups: int) -> Tensor:
    """The transpose of `repeat_heads`: sum over the query heads that share a key/value head."""
    return x if groups == 1 else x.unflatten(1, (-1, groups)).sum(2)


def lse_dtype(x: Tensor) -> torch.dtype:
    """Precision of log-sum-exp: float32, or float64 for float64 inputs."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def kernel_for(query: Tensor) -> str:
    """The implementation for these tensors: "cpu", "flash" (CUDA, half precision) or "blocks" (any)."""
    if query.device.type == "cpu":
        return "cpu"
    if query.device.type == "cuda" and query.dtype in FUSED_HALF and query.shape[-1] % 8 == 0:
        return "flash" if query.shape[-1] <= 256 else "blocks"
    return "blocks"


def causal_forward(query: Tensor, key: Tensor, value: Tensor, kernel: str | None = None):
    """(output, log-sum-exp (B, heads, L), state for the backward) of causal attention with equal head counts."""
    kernel = kernel or kernel_for(query)
    ops = torch.ops.aten
    if kernel == "cpu":
        out, lse = ops._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)
        return out, lse, (kernel,)
    if kernel == "flash":
        out, lse, *state, _ = ops._scaled_dot_product_flash_attention(query, key, value, 0.0, True)
        return out, lse, (kernel, *state)
    out, lse = torch.empty_like(query), query.new_empty(query.shape[:3], dtype=lse_dtype(query))
    # Causal: queries up to `end` see keys up to `end`, so later keys are never read.
    for start, end, weights, sums in query_blocks(query, key):
        out[:, :, start:end] = (weights @ value[:, :, :end].to(weights.dtype)).to(query.dtype)
        lse[:, :, start:end] = sums
    return out, lse, (kernel,)


def causal_backward(grad, query, key, value, out, lse, state: tuple) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values of the causal part, given the merged output and log-sum-exp."""
    ops, (kernel, *kept) = torch.ops.aten, state
    if kernel == "cpu":
        return ops._scaled_dot_product_flash_attention_for_cpu_backward(grad, query, key, value, out, lse, 0.0, True)
    if kernel == "flash":
        cum_q, cum_k, max_q, max_k, seed, offset = kept
        return ops._scaled_dot_product_flash_attention_backward(
            grad, query, key, value, out, lse, cum_q, cum_k, max_q, max_k, 0.0, True, seed, offset
        )
    dtype, scale = lse.dtype, query.shape[-1] ** -0.5
    # Softmax backward: dS = P * (dP - rowsum(grad * out)); `out` is the merged output, hence exact for all terms.
    shift = (grad.to(dtype) * out.to(dtype)).sum(-1, keepdim=True)
    grad_query = torch.empty_like(query)
    grad_key, grad_value = torch.zeros_like(key, dtype=dtype), torch.zeros_like(value, dtype=dtype)
    for start, end, weights, _ in query_blocks(query, key, lse):
        g, q = grad[:, :, start:end].to(dtype), query[:, :, start:end].to(dtype)
        k, v = key[:, :, :end].to(dtype), value[:, :, :end].to(dtype)
        grad_scores = weights * (g @ v.mT - shift[:, :, start:end]) * scale
        grad_query[:, :, start:end] = (grad_scores @ k).to(query.dtype)
        grad_key[:, :, :end] += grad_scores.mT @ q
        grad_value[:, :, :end] += weights.mT @ g
    return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype)


def query_blocks(query: Tensor, key: Tensor, lse: Tensor | None = None):
    """Per block: (start, end, weights of queries start..end over keys 0..end, their log-sum-exp).

    With the merged `lse`, weights are normalised over the diagonal terms too and need not sum to 1.
    """
    dtype, scale, length = lse_dtype(query), query.shape[-1] ** -0.5, query.shape[2]
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        scores = query[:, :, start:end].to(dtype) @ key[:, :, :end].to(dtype).mT * scale
        # Row i of the block is query start + i: keys from start + i + 1 on lie in its future.
        is_future = torch.ones(end - start, end, dtype=torch.bool, device=query.device).triu(start + 1)
        scores = scores.masked_fill(is_future, float("-inf"))
        sums = scores.logsumexp(-1) if lse is None else lse[:, :, start:end]
        yield start, end, (scores - sums[..., None]).exp(), sums
