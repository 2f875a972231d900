"""Samples follow the target's distribution: a chi-square test of two tokens' joint distribution, each warper and all.

False-alarm level 1e-4 per test; seeds are fixed, so a pass stays a pass. That the test sees bias is shown below it."""

import pytest
import torch
from models import left_padded, tiny_draft, tiny_target

from hf_eagle3.generation import walk as verification


NUM_SAMPLES = 3000
FALSE_ALARM = 1e-4
WARPERS = {
    "temperature": {"temperature": 1.4},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.05},
    "typical_p": {"typical_p": 0.9},
    "epsilon_cutoff": {"epsilon_cutoff": 0.02},
    "eta_cutoff": {"eta_cutoff": 0.05},
    "top_h": {"top_h": 0.6},
    "all": {"temperature": 1.2, "top_k": 12, "top_p": 0.95, "min_p": 0.01},
}


@pytest.fixture(scope="module")
def pair():
    target = tiny_target(scale=3.0)
    return target, tiny_draft(target)


@torch.no_grad()
def exact_joint(target, ids: torch.Tensor, options: dict) -> torch.Tensor:
    """p(second token, third token) after the first, by plain passes with the host's processors: (V, V)."""
    processors = target._get_logits_processor(prepared(target, options), ids.shape[1], ids)

    def next_distribution(batch: torch.Tensor) -> torch.Tensor:
        return processors(batch, target(batch).logits[:, -1].float()).softmax(dim=-1)

    vocab = target.config.vocab_size
    first = next_distribution(ids)[0]
    after = next_distribution(torch.cat((ids.expand(vocab, -1), torch.arange(vocab)[:, None]), dim=1))
    return first[:, None] * after


def prepared(target, options: dict):
    config = target._prepare_generation_config(None, do_sample=True, **({"top_k": 0} | options))[0]
    target._prepare_special_tokens(config)
    return config


def p_value(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Chi-square goodness of fit, cells of fewer than 5 expected counts pooled."""
    counts, expected = counts.flatten().double(), expected.flatten().double()
    rare = expected < 5
    counts = torch.cat((counts[~rare], counts[rare].sum()[None]))
    expected = torch.cat((expected[~rare], expected[rare].sum()[None]))
    kept = expected > 0
    assert counts[~kept].sum() == 0, "a token of probability zero was drawn"
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    return float(torch.special.gammaincc(torch.tensor((kept.sum().item() - 1) / 2).double(), statistic / 2))


def joint_counts(target, draft, ids: torch.Tensor, options: dict, seed: int) -> torch.Tensor:
    """Counts of the second and third generated tokens, those that trees propose."""
    torch.manual_seed(seed)
    out = target.generate(
        ids,
        do_sample=True,
        max_new_tokens=4,
        num_return_sequences=NUM_SAMPLES,
        assistant_model=draft,
        **({"top_k": 0} | options),
    )
    vocab = target.config.vocab_size
    pairs = out[:, ids.shape[1] + 1] * vocab + out[:, ids.shape[1] + 2]
    return pairs.bincount(minlength=vocab * vocab).view(vocab, vocab)


def fit(target, draft, options: dict, seed: int = 0) -> float:
    ids = left_padded([6])["input_ids"]
    first = exact_joint(target, ids, options).sum(dim=1)
    expected = torch.zeros(target.config.vocab_size, target.config.vocab_size)
    for token, probability in enumerate(first):
        if probability > 0:
            longer = torch.cat((ids, torch.tensor([[token]])), dim=1)
            expected += probability * exact_joint(target, longer, options)
    return p_value(joint_counts(target, draft, ids, options, seed), expected * NUM_SAMPLES)


@pytest.mark.parametrize("shared_noise", [True, False])
@pytest.mark.parametrize("name", WARPERS)
def test_samples_follow_the_targets_distribution(pair, name, shared_noise):
    target, draft = pair
    view = draft.with_tree("static", shared_noise=shared_noise)
    assert fit(target, view, WARPERS[name]) > FALSE_ALARM


def test_the_chi_square_test_sees_a_walk_that_favours_the_draft(pair, monkeypatch):
    """Committing the draft's best child in one of five cycles is enough to fail."""
    honest = verification.stepwise_walk

    def biased(tree, *args, **kwargs):
        walk = honest(tree, *args, **kwargs)
        if tree.num_draft_tokens:
            walk.tokens[::5, 0] = tree.tokens[::5, 1]
        return walk

    monkeypatch.setattr("hf_eagle3.generation.loop.stepwise_walk", biased)
    assert fit(*pair, WARPERS["all"]) < FALSE_ALARM
