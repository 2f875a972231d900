"""Per-position losses of the draft's distribution against the target's, and their reduction for one step.

Pure tensor functions; do not know where positions come from.

Shape letters: n positions, V target vocabulary, D draft vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


LK_DECAY = 3.0  # rate at which lk_lambda shifts from KL to acceptance: arXiv 2602.23881, also SpecForge's default


@dataclass
class TargetDistribution:
    """
    The target's distribution at n positions, restricted to the draft vocabulary.

    Attributes:
        probabilities: Renormalised over the draft vocabulary, (n, D) float32.
        full_probabilities: Probabilities of the same tokens among all V, (n, D) float32.
        best: The target's argmax as a draft id, (n,); -1 outside the draft vocabulary.
    """

    probabilities: Tensor
    full_probabilities: Tensor
    best: Tensor

    @classmethod
    def from_logits(cls, logits: Tensor, target_token_ids: Tensor | None) -> "TargetDistribution":
        """From logits (n, V) and the target ids of the draft vocabulary (D,); `None` for the whole vocabulary."""
        best = logits.argmax(-1)
        logits = logits.float()
        # Normalised over all V: acceptance, sum of min(p, q), needs p before the restriction to D tokens.
        total = logits.logsumexp(-1, keepdim=True)
        if target_token_ids is None:
            full = (logits - total).exp()
            return cls(full, full, best)
        kept = logits[:, target_token_ids]
        # The ids ascend, so binary search inverts them; a miss returns the index of another id.
        index = torch.searchsorted(target_token_ids, best).clamp_(max=target_token_ids.numel() - 1)
        return cls(
            kept.softmax(-1), (kept - total).exp(), index.where(target_token_ids[index] == best, index.new_tensor(-1))
        )


def soft_cross_entropy(target: TargetDistribution, draft_logits: Tensor) -> Tensor:
    """-sum p log q with p renormalised over the draft vocabulary, (n,)."""
    return -(target.probabilities * draft_logits.log_softmax(-1)).sum(-1)


def kl_divergence(target: TargetDistribution, draft_logits: Tensor) -> Tensor:
    """KL(p || q) with p renormalised over the draft vocabulary, (n,)."""
    return soft_cross_entropy(target, draft_logits) + torch.special.xlogy(
        target.probabilities, target.probabilities
    ).sum(-1)


def top_k_cross_entropy(target: TargetDistribution, draft_logits: Tensor, count: int) -> Tensor:
    """
    -sum p log q over the target's `count` likeliest tokens, (n,).

    Source: HASS (arXiv 2408.15766), section 3.1: its top-K distillation, beside the other losses.
    """
    probabilities, best = target.probabilities.topk(min(count, target.probabilities.shape[-1]), dim=-1)
    return -(probabilities * draft_logits.log_softmax(-1).gather(-1, best)).sum(-1)


def acceptance(target: TargetDistribution, draft_logits: Tensor) -> Tensor:
    """
    Probability that a token sampled from the draft is accepted: sum of min(p, q), with p over all V, (n,).

    Source: Leviathan et al. (arXiv 2211.17192), theorem 3.5.
    """
    return torch.minimum(target.full_probabilities, draft_logits.softmax(-1)).sum(-1)


@dataclass
class StepTerms:
    """
    Terms of one step at n positions, (n,) each. Only the terms that the loss uses have a gradient.

    Attributes:
        divergence: Cross-entropy or KL.
        acceptance: Acceptance probability at temperature 1.
        correct: Whether the draft's argmax is the target's.
        best: The target's argmax as a draft id; -1 outside the draft vocabulary.
    """

    divergence: Tensor
    acceptance: Tensor
    correct: Tensor
    best: Tensor

    @property
    def covered(self) -> Tensor:
        """Whether the target's argmax is in the draft vocabulary."""
        return self.best >= 0

    @classmethod
    def measure(cls, loss: str, target: TargetDistribution, draft_logits: Tensor) -> "StepTerms":
        """All terms of one step from (n, D) float32 draft logits."""
        divergence = soft_cross_entropy if loss == "soft_cross_entropy" else kl_divergence
        with torch.set_grad_enabled(torch.is_grad_enabled() and loss.startswith("lk")):
            alpha = acceptance(target, draft_logits)
        with torch.set_grad_enabled(torch.is_grad_enabled() and loss != "lk_alpha"):
            distance = divergence(target, draft_logits)
        correct = draft_logits.argmax(-1) == target.best
        return cls(distance, alpha, correct, target.best)


def step_loss(loss: str, terms: StepTerms, mask: Tensor, denominator: Tensor | float) -> Tensor:
    """
    The loss of one step: the sum over `mask` (n,) bool divided by `denominator`, which may include the positions of
    other processes.

    `lk_alpha` is -log of the acceptance probability; `lk_lambda` is w KL + (1 - w)(1 - acceptance) with
    w = exp(-3 mean acceptance), so that it starts as KL (arXiv 2602.23881).
    """
    weight = mask.to(terms.divergence.dtype)
    if loss == "lk_alpha":
        alpha = terms.acceptance
        # Disjoint distributions have acceptance 0: clamped, or its log is infinite.
        return -(alpha.clamp_min(torch.finfo(alpha.dtype).tiny).log() * weight).sum() / denominator
    if loss == "lk_lambda":
        # Detached: the share is a schedule, not something to minimise.
        mean = (terms.acceptance.detach() * weight).sum() / weight.sum().clamp_min(1)
        share = torch.exp(-LK_DECAY * mean)
        values = share * terms.divergence + (1 - share) * (1 - terms.acceptance)
        return (values * weight).sum() / denominator
    return (terms.divergence * weight).sum() / denominator
