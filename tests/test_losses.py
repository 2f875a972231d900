"""Losses, the draft vocabulary and figures on distributions small enough to check by hand.

Target over 4 tokens: 0.5 0.2 0.2 0.1; the draft knows tokens 0, 2, 3.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from hf_eagle3.training.figures import simulated_cycles
from hf_eagle3.training.losses import (
    StepTerms,
    TargetDistribution,
    acceptance,
    kl_divergence,
    soft_cross_entropy,
    step_loss,
)
from hf_eagle3.training.objective import ObjectiveConfig, Positions, count_positions
from hf_eagle3.vocabulary import choose_target_ids


P = torch.tensor([[0.5, 0.2, 0.2, 0.1]])
KNOWN = torch.tensor([0, 2, 3])
Q = torch.tensor([[0.6, 0.3, 0.1]])


@pytest.fixture
def target():
    return TargetDistribution.from_logits(P.log(), KNOWN)


def test_the_target_as_the_draft_vocabulary_sees_it(target):
    assert_close(target.full_probabilities, torch.tensor([[0.5, 0.2, 0.1]]))
    assert_close(target.probabilities, torch.tensor([[0.625, 0.25, 0.125]]))
    assert target.best.tolist() == [0]


@pytest.mark.parametrize(("best", "draft_id"), [(0, 0), (1, -1), (2, 1), (3, 2)])
def test_the_targets_best_token_as_a_draft_id(best, draft_id):
    logits = torch.zeros(1, 4)
    logits[0, best] = 3
    assert TargetDistribution.from_logits(logits, KNOWN).best.tolist() == [draft_id]


def test_acceptance_counts_what_the_draft_cannot_propose(target):
    assert acceptance(target, Q.log()).item() == pytest.approx(0.5 + 0.2 + 0.1)


def test_cross_entropy_and_kl_differ_by_the_entropy(target):
    p = target.probabilities[0].tolist()
    cross = -sum(x * math.log(q) for x, q in zip(p, Q[0].tolist(), strict=True))
    entropy = -sum(x * math.log(x) for x in p)
    assert soft_cross_entropy(target, Q.log()).item() == pytest.approx(cross)
    assert kl_divergence(target, Q.log()).item() == pytest.approx(cross - entropy, abs=1e-6)


def test_kl_of_a_certain_target_is_finite():
    certain = TargetDistribution.from_logits(torch.tensor([[200.0, 0.0, 0.0, 0.0]]), KNOWN)
    assert kl_divergence(certain, Q.log()).item() == pytest.approx(-math.log(0.6), abs=1e-6)


def test_lk_losses(target):
    mask = torch.tensor([True])
    terms = StepTerms.measure("lk_alpha", target, Q.log())
    assert step_loss("lk_alpha", terms, mask, 1.0).item() == pytest.approx(-math.log(0.8), rel=1e-6)
    share = math.exp(-3 * 0.8)
    expected = share * kl_divergence(target, Q.log()).item() + (1 - share) * 0.2
    assert step_loss("lk_lambda", terms, mask, 1.0).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ["soft_cross_entropy", "kl", "lk_alpha", "lk_lambda"])
def test_every_loss_is_least_where_the_draft_is_the_target(loss):
    """Over the whole vocabulary, by gradient descent."""
    whole = TargetDistribution.from_logits(P.log(), None)
    logits = torch.zeros(1, 4, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.02)
    for _ in range(1500):
        optimizer.zero_grad()
        step_loss(loss, StepTerms.measure(loss, whole, logits), torch.tensor([True]), 1.0).backward()
        optimizer.step()
    assert_close(logits.softmax(-1), P, atol=0.03, rtol=0)


def test_an_impossible_acceptance_gives_no_infinity(target):
    logits = torch.tensor([[0.0, 0.0, 0.0]]) + torch.tensor([[-1e4, -1e4, 0.0]])
    certain = TargetDistribution.from_logits(torch.tensor([[300.0, 0.0, 0.0, 0.0]]), KNOWN)
    terms = StepTerms.measure("lk_alpha", certain, logits.requires_grad_())
    step_loss("lk_alpha", terms, torch.tensor([True]), 1.0).backward()
    assert torch.isfinite(logits.grad).all()


def test_denominators_count_each_steps_positions():
    mask = torch.tensor([[0, 1, 1, 1, 1]])
    positions = Positions.from_masks(mask, torch.zeros_like(mask), torch.arange(5)[None], 1)
    assert positions.index.tolist() == [1, 2, 3]  # predicting x_2, x_3, x_4
    assert count_positions(ObjectiveConfig(), positions, 4).tolist() == [3, 2, 1, 0]
    assert count_positions(ObjectiveConfig(mean_over="all"), positions, 2).tolist() == [5, 5]


def test_the_walk_starts_again_where_a_cycle_ended():
    #            index     0  1  2  3  4  5
    assert simulated_cycles([0, 1, 2, 3, 4, 5], [2, 0, 0, 1, 5, 0]) == (3 + 2 + 1, 3)


def test_the_commonest_tokens_are_chosen_and_unused_ones_fill_up():
    counts = torch.tensor([0, 5, 0, 9, 1, 0])
    assert choose_target_ids(counts, 2).tolist() == [1, 3]
    assert choose_target_ids(counts, 4).tolist() == [0, 1, 3, 4]
    with pytest.raises(ValueError, match="between 1 and 6"):
        choose_target_ids(counts, 7)
    with pytest.raises(ValueError, match="All token counts are zero"):
        choose_target_ids(counts * 0, 2)
