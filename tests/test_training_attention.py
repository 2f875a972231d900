"""Attention of training-time test against a dense mask, in value and gradient, at every step.

Step 2 of a sequence of 4: the query at index 2 sees three keys of step 0 and its own of steps 1 and 2.

           step 0    step 1    step 2
    2      x x x .   . . x .   . . x .
"""

import pytest
import torch
from torch.testing import assert_close

from hf_eagle3.training import attention
from hf_eagle3.training.attention import training_time_test_attention


PACKED = ((0, 0, 5), (0, 5, 9), (1, 0, 9))
KERNELS = ("cpu", "blocks")


def dense_mask(batch: int, length: int, num_steps: int, segments) -> torch.Tensor:
    """(B, L, steps * L), True where a query sees a key."""
    mask = torch.zeros(batch, length, num_steps, length, dtype=torch.bool)
    for row, start, end in segments or [(row, 0, length) for row in range(batch)]:
        mask[row, start:end, 0, start:end] = torch.ones(end - start, end - start).tril().bool()
    for step in range(1, num_steps):
        mask[:, :, step] |= torch.eye(length, dtype=torch.bool)
    return mask.flatten(2)


def dense(query, keys, values, segments):
    groups = query.shape[1] // keys[0].shape[1]
    key, value = (torch.cat(x, dim=2).repeat_interleave(groups, dim=1) for x in (keys, values))
    mask = dense_mask(query.shape[0], query.shape[2], len(keys), segments)
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1) @ value


def tensors(num_steps: int, groups: int, dtype=torch.float64, length: int = 9):
    torch.manual_seed(0)
    query = torch.randn(2, 2 * groups, length, 8, dtype=dtype, requires_grad=True)
    others = [torch.randn(2, 2, length, 8, dtype=dtype, requires_grad=True) for _ in range(2 * num_steps)]
    return query, others[:num_steps], others[num_steps:]


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    monkeypatch.setattr(attention, "kernel_for", lambda query: request.param)
    monkeypatch.setattr(attention, "BLOCK", 4)


def test_the_drawn_mask():
    assert dense_mask(1, 4, 3, None)[0, 2].int().tolist() == [1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("segments", [None, PACKED], ids=["whole", "packed"])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.usefixtures("kernel")
def test_equals_a_dense_mask_in_value_and_gradient(segments, num_steps, groups):
    query, keys, values = tensors(num_steps, groups, torch.float32)
    found, expected = (f(query, keys, values, segments) for f in (training_time_test_attention, dense))
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(found)
    inputs = [query, *keys, *values]
    found, expected = (torch.autograd.grad((x * weights).sum(), inputs) for x in (found, expected))
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("segments", [None, PACKED], ids=["whole", "packed"])
@pytest.mark.usefixtures("kernel")
def test_some_queries_alone_equal_a_dense_mask(segments):
    query, keys, values = tensors(3, 2)
    rows = torch.tensor([1, 2, 7, 8, 9, 13, 17])

    def some(x):
        return x.transpose(1, 2).flatten(0, 1)[rows].transpose(0, 1)[None]

    later = [keys[0], *map(some, keys[1:])], [values[0], *map(some, values[1:])]
    found = training_time_test_attention(some(query), *later, segments, rows)
    expected = some(dense(query, keys, values, segments))
    assert_close(found, expected)
    weights = torch.randn_like(found)
    inputs = [query, *keys, *values]
    found, expected = (torch.autograd.grad((x * weights).sum(), inputs) for x in (found, expected))
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("segments", [None, PACKED], ids=["whole", "packed"])
@pytest.mark.usefixtures("kernel")
def test_gradients_by_finite_differences(segments):
    query, keys, values = tensors(3, 2)

    def call(query, *others):
        return training_time_test_attention(query, list(others[:3]), list(others[3:]), segments)

    assert torch.autograd.gradcheck(call, (query, *keys, *values))


@pytest.mark.usefixtures("kernel")
def test_indices_outside_every_document_stay_finite_and_still():
    query, keys, values = tensors(3, 1)
    out = training_time_test_attention(query, keys, values, ((0, 0, 4), (1, 2, 9)))
    out[0, :, :4].sum().backward()
    assert torch.isfinite(out).all()
    assert query.grad[0, :, 4:].abs().max() == 0
    assert keys[0].grad[1].abs().max() == 0


def test_the_backward_kernel_gets_dense_memory(monkeypatch):
    """CUDA's reads output and log-sum-exp without strides; a packed document is a slice of both."""
    seen = []

    def backward(grad, query, key, value, out, lse, state):
        seen.append(out.is_contiguous() and lse.is_contiguous())
        return torch.zeros_like(query), torch.zeros_like(query), torch.zeros_like(query)

    monkeypatch.setattr(attention, "causal_backward", backward)
    query, keys, values = tensors(2, 2)
    training_time_test_attention(query, keys, values, PACKED).sum().backward()
    assert seen == [True] * 3


def test_the_kernels_of_cuda_still_take_what_we_give_them():
    """Not run here: their schemas are compared, so that a torch that changes them is noticed."""
    ops = torch.ops.aten
    forward = ops._scaled_dot_product_flash_attention.default._schema
    assert [a.name for a in forward.arguments][:5] == ["query", "key", "value", "dropout_p", "is_causal"]
    assert len(forward.returns) == 9
    backward = ops._scaled_dot_product_flash_attention_backward.default._schema
    assert [a.name for a in backward.arguments][:14] == [
        "grad_out",
        "query",
        "key",
        "value",
        "out",
        "logsumexp",
        "cum_seq_q",
        "cum_seq_k",
        "max_q",
        "max_k",
        "dropout_p",
        "is_causal",
        "philox_seed",
        "philox_offset",
    ]
