"""Which continuations a draft proposes: by its own probability, or by the noise that the coming step will use.

Pure tensors. Shape letters: A active sequences, n nodes, k children per node, D draft vocabulary.
"""

from dataclasses import dataclass

import torch
from transformers import LogitsProcessorList

from ...compat.processors import keep_top_k, keep_top_p, warping


# Draft tokens considered for top-p: what lies beyond has no mass worth proposing, and a full sort per level is slow.
TOP_P_CANDIDATES = 1024


@dataclass(frozen=True)
class Warp:
    """The request's own warping of a distribution, applied to the draft's before its children are ranked by noise."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    @classmethod
    def of(cls, processors: LogitsProcessorList) -> "Warp":
        """What transformers' own warpers among the processors do."""
        return cls(**warping(processors))


def rank_children(
    logits: torch.Tensor, num_children: int, gumbel: torch.Tensor | None = None, warp: Warp | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The `num_children` best continuations: (log-scores, draft ids), both (A, n, k), best first.

    Without noise the score is log q. Under shared noise the draft predicts the sample: candidates are ranked by
    z = log q - log E of the step whose token they would be, q warped as the request warps p, and the log-softmax of z
    stands for the probability of acceptance.

    Args:
        logits: (A, n, D).
        gumbel: -log E of the step, (A, D).
        warp: The request's temperature, top-k and top-p; needed with noise.
    """
    logits = logits.float()
    if gumbel is None:
        return logits.log_softmax(dim=-1).topk(num_children, dim=-1)
    if isinstance(warp.temperature, torch.Tensor) or warp.temperature != 1.0:  # a tensor in compiled passes
        logits = logits / warp.temperature
    if warp.top_k is None and warp.top_p is None:
        return (logits + gumbel[:, None]).log_softmax(dim=-1).topk(num_children, dim=-1)
    wanted = warp.top_k if warp.top_k is not None else TOP_P_CANDIDATES
    values, candidates = logits.topk(min(max(wanted, num_children), logits.shape[-1]), dim=-1)
    if warp.top_k is not None:
        values[..., warp.top_k :] = -torch.inf
    if warp.top_p is not None:
        total = (values if warp.top_k is not None else logits).logsumexp(dim=-1, keepdim=True)
        before = (values - total).exp().cumsum(dim=-1).roll(1, dims=-1)
        before[..., 0] = 0.0
        values = values.masked_fill(before >= warp.top_p, -torch.inf)
    z = values + gumbel[:, None].expand(-1, logits.shape[1], -1).gather(2, candidates)
    scores, places = z.log_softmax(dim=-1).topk(num_children, dim=-1)
    return scores, candidates.gather(2, places)


def truncated(logits: torch.Tensor, warp: Warp) -> torch.Tensor:
    """The request's top-k and top-p on the draft's own scores (1, D), by transformers' warpers."""
    if warp.top_k is not None:
        logits = keep_top_k(logits, warp.top_k)
    return logits if warp.top_p is None else keep_top_p(logits, warp.top_p)
