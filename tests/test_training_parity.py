"""Logits, losses and gradients of two public trainers, recorded on the same weights and inputs (tests/data/parity)."""

import pytest
import torch
from conftest import DATA
from safetensors.torch import load_file
from torch.testing import assert_close

import hf_eagle3
from hf_eagle3.training.arguments import RECIPES
from hf_eagle3.training.objective import ObjectiveConfig, Positions, compute_objective, count_positions
from hf_eagle3.training.training_time_test import training_time_test


PARITY = DATA / "parity"
# folder of the draft, recorded file, recipe, changes to it, recorded loss, rows that mean something at step k
CASES = {
    "specforge": ("specforge_tiny", "specforge_tiny_7steps", "specforge", {}, 4.648018837),
    "speculators": (
        "speculators_tiny",
        "speculators_tiny_7steps",
        "speculators",
        {"training_time_test_steps": 7, "step_decay": 0.8},
        11.402212143,
    ),
    "speculators, 3 steps": ("speculators_tiny", None, "speculators", {}, 8.598573685),
    "speculators, whole vocabulary": (
        "speculators_fullvocab",
        "speculators_fullvocab_3steps",
        "speculators",
        {},
        9.426369667,
    ),
}


def run(case: str, all_rows: bool = False):
    """(draft, unrolled states, loss, recorded tensors) of one recorded case; later steps where the trainer has them,
    or everywhere."""
    folder, recorded, recipe, changes, _ = CASES[case]
    # The plain directory carries no layer ids; they do not matter here, the features are given.
    draft = hf_eagle3.Eagle3DraftModel.from_pretrained(PARITY / folder, target_layer_ids=[1, 3, 4])
    inputs = load_file(PARITY / "inputs.safetensors")
    options = RECIPES[recipe] | changes
    steps = options.pop("training_time_test_steps")
    names = ObjectiveConfig.__dataclass_fields__
    config = ObjectiveConfig(**{name: value for name, value in options.items() if name in names}, head_chunk_size=7)
    ids = inputs["input_ids"].view(1, -1)
    rows = load_file(PARITY / "speculators_tiny" / "model.safetensors")["embed_tokens.weight"][ids]
    mask = inputs["loss_mask"].view(1, -1).long()
    positions = Positions.from_masks(mask, torch.zeros_like(ids), torch.arange(48)[None], config.loss_mask_shift)
    later = None if all_rows else positions.later_indices(steps)
    normed = training_time_test(draft, rows, inputs["aux_hidden_states"].view(1, 48, -1), steps, later_indices=later)
    measured = compute_objective(
        config,
        normed,
        inputs["target_logits"].view(1, 48, -1),
        lambda logits: logits,
        draft.lm_head,
        draft.target_token_ids,
        positions,
        count_positions(config, positions, steps),
    )
    return draft, normed, measured, load_file(PARITY / f"recorded_{recorded}.safetensors") if recorded else {}


@pytest.mark.parametrize("case", CASES)
def test_loss_equals_the_recorded_one(case):
    *_, expected = CASES[case]
    assert run(case)[2].loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][1]])
def test_logits_of_every_step_equal_the_recorded_ones(case):
    draft, normed, _, recorded = run(case, all_rows=True)
    for step, states in enumerate(normed):
        rows = slice(0, 47 - step)
        assert_close(draft.lm_head(states)[:, rows], recorded[f"logits_{step}"][:, rows], atol=1e-5, rtol=1e-5)


def test_later_steps_run_only_where_a_loss_reads_them():
    _, whole, _, _ = run("specforge", all_rows=True)
    _, normed, _, _ = run("specforge")
    skipped = (normed[1] == 0).all(-1)
    assert 0 < skipped.sum() < skipped.numel()
    assert (normed[0] != 0).any(-1).all()
    for one, other in zip(whole[1:], normed[1:], strict=True):
        assert_close(one[~skipped], other[~skipped], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][1]])
def test_gradients_equal_the_recorded_ones(case):
    draft, _, measured, recorded = run(case)
    measured.loss.backward()
    compared = 0
    for name, parameter in draft.named_parameters():
        expected = recorded.get(f"grad.{name}", recorded.get(f"grad.{name.replace('midlayer.', 'layers.0.')}"))
        if expected is None:
            continue
        assert_close(parameter.grad, expected, atol=1e-5, rtol=1e-5)
        compared += 1
    assert compared >= 10
