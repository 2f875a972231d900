"""Whether sampled text has plain generate's distribution: a two-sample permutation test on whole texts.

With equal seeds the texts are equal, which says nothing about other seeds: the two samples here draw other numbers.

Shape letters: N texts of a sample, L tokens of a text.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed


PERMUTATIONS = 999


def texts(target: PreTrainedModel, inputs: dict[str, Tensor], count: int, length: int, seed: int, **options) -> Tensor:
    """`count` texts of `length` tokens that follow one prompt, at temperature 1, (N, L)."""
    set_seed(seed)
    out = target.generate(
        **inputs, max_new_tokens=length, min_new_tokens=length, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        num_return_sequences=count, **options,
    )  # fmt: skip
    return out[:, inputs["input_ids"].shape[1] :]


def distance(first: Tensor, second: Tensor) -> float:
    """How far the token counts of two samples (N, L) lie apart, summed over positions: total variation."""
    total = 0.0
    for position in range(first.shape[1]):
        most = int(max(first[:, position].max(), second[:, position].max())) + 1
        counts = [sample[:, position].bincount(minlength=most) / len(sample) for sample in (first, second)]
        total += float((counts[0] - counts[1]).abs().sum()) / 2
    return total


def permutation_test(first: Tensor, second: Tensor, permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """
    p-value of the hypothesis that both samples (N, L) come from one distribution: exact for any N, as texts are
    exchangeable under it.
    """
    generator = torch.Generator().manual_seed(seed)
    pooled, count = torch.cat((first, second)).cpu(), len(first)
    found, larger = distance(pooled[:count], pooled[count:]), 0
    for _ in range(permutations):
        order = torch.randperm(len(pooled), generator=generator)
        larger += distance(pooled[order[:count]], pooled[order[count:]]) >= found - 1e-9
    return (1 + larger) / (1 + permutations)
