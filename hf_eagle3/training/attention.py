"""Attention of training-time test: causal over step 0's keys, and at one's own index over the keys of later steps.

The causal part is an ordinary fused attention; the k diagonal terms are dot products; the two are merged by their
log-sum-exp. So memory grows linearly with the sequence, where a dense mask over (1 + k) L keys grows quadratically.
The backward is written by hand, because no fused attention differentiates its log-sum-exp: called with the *merged*
output and log-sum-exp, its own backward gives the exact gradients of the causal part.

Does not know the draft model. Shape letters: B batch, L sequence, M queries of a later step, d head width.
"""

import torch
from torch import Tensor


BLOCK = 256  # queries at a time where no fused kernel serves
FUSED_HALF = (torch.float16, torch.bfloat16)

# Documents packed into rows: (row, start, end) each. `None`: every row is one document.
Segments = tuple[tuple[int, int, int], ...] | None


class TrainingTimeTestAttention(torch.autograd.Function):
    """Call through [`training_time_test_attention`]."""

    @staticmethod
    def forward(
        ctx, query: Tensor, segments: Segments, rows: Tensor | None, key: Tensor, value: Tensor, *later: Tensor
    ) -> Tensor:
        """The merged output, shaped as `query` (B, heads, R, d)."""
        groups, scale, shape = query.shape[1] // key.shape[1], query.shape[-1] ** -0.5, key.shape
        placed = spread(query, rows, shape)
        # Zeros, not empty: queries outside every document must stay finite.
        causal, log_sum = torch.zeros_like(placed), query.new_zeros(placed.shape[:3], dtype=sum_dtype(query))
        states = []
        for part in parts(segments):
            out, lse, state = causal_forward(placed[part], expand(key[part], groups), expand(value[part], groups))
            causal[part], log_sum[part] = out, lse
            states.append(state)
        causal, log_sum = gathered(causal, rows), gathered(log_sum, rows)
        keys, values = later[: len(later) // 2], later[len(later) // 2 :]
        scores = [(query * expand(k, groups)).sum(-1, dtype=log_sum.dtype) * scale for k in keys]
        merged = torch.logsumexp(torch.stack([log_sum, *scores]), dim=0) if scores else log_sum
        out = causal * (log_sum - merged).exp().to(query.dtype)[..., None] if scores else causal
        for score, v in zip(scores, values, strict=True):
            out = out + (score - merged).exp().to(query.dtype)[..., None] * expand(v, groups)
        ctx.segments, ctx.states, ctx.groups = segments, states, groups
        ctx.save_for_backward(query, rows, key, value, out, merged, *later)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Gradients of query, key, value and the later steps' keys and values."""
        query, rows, key, value, out, merged, *later = ctx.saved_tensors
        groups, scale = ctx.groups, query.shape[-1] ** -0.5
        grad = grad.contiguous()
        # Queries that are not there are zeros with a gradient of zero: nothing flows through them.
        placed = [spread(x, rows, key.shape) for x in (grad, query, out, merged)]
        grad_query, grad_key, grad_value = (torch.zeros_like(placed[1]) for _ in range(3))
        for part, state in zip(parts(ctx.segments), ctx.states, strict=True):
            grad_query[part], grad_key[part], grad_value[part] = causal_backward(
                placed[0][part],
                placed[1][part],
                expand(key[part], groups),
                expand(value[part], groups),
                placed[2][part].contiguous(),  # CUDA's kernel reads these two without strides
                placed[3][part].contiguous(),
                state,
            )
        grad_query = gathered(grad_query, rows)
        keys, values = later[: len(later) // 2], later[len(later) // 2 :]
        shift = (grad * out).sum(-1, dtype=merged.dtype)  # what softmax's backward subtracts from every term
        grad_keys, grad_values = [], []
        for k, v in zip(keys, values, strict=True):
            k, v = expand(k, groups), expand(v, groups)
            weight = ((query * k).sum(-1, dtype=merged.dtype) * scale - merged).exp()
            grad_score = weight * ((grad * v).sum(-1, dtype=merged.dtype) - shift) * scale
            grad_score, weight = grad_score.to(query.dtype)[..., None], weight.to(query.dtype)[..., None]
            grad_query = grad_query + grad_score * k
            grad_keys.append(fold(grad_score * query, groups))
            grad_values.append(fold(weight * grad, groups))
        return grad_query, None, None, fold(grad_key, groups), fold(grad_value, groups), *grad_keys, *grad_values


def training_time_test_attention(
    query: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    segments: Segments = None,
    rows: Tensor | None = None,
) -> Tensor:
    """
    Attention of one pass of training-time test.

    Args:
        query: Queries of step k, RoPE applied, (B, heads, L, d); with `rows`, (1, heads, M, d).
        keys, values: Those of steps 0..k. Step 0's, (B, kv heads, L, d), are attended causally; the others, one for
            each query, (B, kv heads, L, d) or (1, kv heads, M, d), at the query's own index.
        segments: Documents packed into the rows, as (row, start, end); a query sees its own document only. Queries
            outside every document give finite values without meaning.
        rows: Flat indices b * L + i of the queries, ascending, (M,). Default: all.

    Returns:
        (B, heads, L, d), or (1, heads, M, d).

    Source: EAGLE-3 (arXiv 2503.01840), section 3.2 and figure 6; there with a dense mask.
    """
    return TrainingTimeTestAttention.apply(query, segments, rows, keys[0], values[0], *keys[1:], *values[1:])


def spread(x: Tensor, rows: Tensor | None, shape: torch.Size) -> Tensor:
    """(1, heads, M, ...) to (B, heads, L, ...) as in `shape`, zeros elsewhere; without `rows`, x itself."""
    if rows is None:
        return x
    batch, _, length, _ = shape
    out = x.new_zeros(batch, length, x.shape[1], *x.shape[3:])
    out.flatten(0, 1).index_copy_(0, rows, x[0].transpose(0, 1))
    return out.transpose(1, 2).contiguous()


def gathered(x: Tensor, rows: Tensor | None) -> Tensor:
    """The transpose of `spread`."""
    return x if rows is None else x.transpose(1, 2).flatten(0, 1)[rows].transpose(0, 1)[None].contiguous()


def parts(segments: Segments) -> list:
    """Indices of what one causal attention covers."""
    if segments is None:
        return [slice(None)]
    return [(slice(row, row + 1), slice(None), slice(start, end)) for row, start, end in segments]


def expand(x: Tensor, groups: int) -> Tensor:
    """Every key head repeated for the query heads that share it."""
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def fold(x: Tensor, groups: int) -> Tensor:
    """The transpose of `expand`."""
    return x if groups == 1 else x.unflatten(1, (-1, groups)).sum(2)


def sum_dtype(x: Tensor) -> torch.dtype:
    """Log-sum-exp is kept in float32, or float64 where the inputs are."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def kernel_for(query: Tensor) -> str:
    """Which implementation serves these tensors: "cpu", "flash" (CUDA, half precision) or "blocks" (anything)."""
    if query.device.type == "cpu":
        return "cpu"
    if query.device.type == "cuda" and query.dtype in FUSED_HALF and query.shape[-1] % 8 == 0:
        return "flash" if query.shape[-1] <= 256 else "blocks"
    return "blocks"


def causal_forward(query: Tensor, key: Tensor, value: Tensor, kernel: str | None = None):
    """(output, log-sum-exp (B, heads, L), what the backward needs) of causal attention with equal head counts."""
    kernel = kernel or kernel_for(query)
    ops = torch.ops.aten
    if kernel == "cpu":
        out, lse = ops._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)
        return out, lse, (kernel,)
    if kernel == "flash":
        out, lse, *state, _ = ops._scaled_dot_product_flash_attention(query, key, value, 0.0, True)
        return out, lse, (kernel, *state)
    out, lse = torch.empty_like(query), query.new_empty(query.shape[:3], dtype=sum_dtype(query))
    for start, end, weights, sums in blocks(query, key):
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
    shift = (grad.to(dtype) * out.to(dtype)).sum(-1, keepdim=True)
    grad_query = torch.empty_like(query)
    grad_key, grad_value = torch.zeros_like(key, dtype=dtype), torch.zeros_like(value, dtype=dtype)
    for start, end, weights, _ in blocks(query, key, lse):
        g, q = grad[:, :, start:end].to(dtype), query[:, :, start:end].to(dtype)
        k, v = key[:, :, :end].to(dtype), value[:, :, :end].to(dtype)
        grad_scores = weights * (g @ v.mT - shift[:, :, start:end]) * scale
        grad_query[:, :, start:end] = (grad_scores @ k).to(query.dtype)
        grad_key[:, :, :end] += grad_scores.mT @ q
        grad_value[:, :, :end] += weights.mT @ g
    return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype)


def blocks(query: Tensor, key: Tensor, lse: Tensor | None = None):
    """(start, end, attention weights of queries start..end over keys 0..end, their log-sum-exp), block by block."""
    dtype, scale, length = sum_dtype(query), query.shape[-1] ** -0.5, query.shape[2]
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        scores = query[:, :, start:end].to(dtype) @ key[:, :, :end].to(dtype).mT * scale
        hidden = torch.ones(end - start, end, dtype=torch.bool, device=query.device).triu(start + 1)
        scores = scores.masked_fill(hidden, float("-inf"))
        sums = scores.logsumexp(-1) if lse is None else lse[:, :, start:end]
        yield start, end, (scores - sums[..., None]).exp(), sums
