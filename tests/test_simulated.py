"""Costs under simulated acceptance: counts average what was asked for, every pass really runs, and nothing stays."""

import json

import pytest
import torch
from models import left_padded, tiny_draft, tiny_target
from transformers import CompileConfig

import hf_eagle3
from hf_eagle3.benchmarks import simulated
from hf_eagle3.benchmarks.simulated import main, measure, simulated_acceptance
from hf_eagle3.generation.verify.attention import take_tree_masks


SIZES = {"num_draft_tokens": 12, "tree_depth": 4, "tree_top_k": 3}


@pytest.mark.parametrize("tau", [1.0, 2.5, 5.0])
@pytest.mark.parametrize("lengths", [[9], [5, 9, 3]])
def test_counts_average_tau_and_every_pass_runs(tau, lengths):
    target = tiny_target()
    draft = tiny_draft(target).with_tree("static", **SIZES)
    passes = []
    handle = target.register_forward_hook(lambda *args: passes.append(1))
    with simulated_acceptance(target, draft, tau), hf_eagle3.record() as stats:
        target.generate(
            **left_padded(lengths), max_new_tokens=161, do_sample=False, eos_token_id=None, assistant_model=draft
        )
    handle.remove()
    assert stats.acceptance_length == pytest.approx(tau, abs=0.25)
    assert len(passes) >= stats.num_iterations  # and the prompt's
    assert stats.num_draft_tokens >= 12 * (stats.num_iterations - 3)  # whole trees but at the end


def test_afterwards_text_is_the_targets_own():
    target = tiny_target()
    draft = tiny_draft(target).with_tree("static", **SIZES)
    options = {**left_padded([9]), "max_new_tokens": 40, "do_sample": False}
    with simulated_acceptance(target, draft, 4.0):
        forced = target.generate(**options, assistant_model=draft)
    assert not torch.equal(forced, target.generate(**options)), "nothing was forced"
    assert torch.equal(target.generate(**options, assistant_model=draft), target.generate(**options))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_costs_of_a_tiny_shape(batch_size):
    target, draft = simulated.random_pair("tiny", torch.device("cpu"), torch.float32)
    cost = measure(
        target,
        draft.with_tree("static", **SIZES),
        tau=3.5,
        prompt_length=16,
        new_tokens=81,
        batch_size=batch_size,
        repetitions=2,
    )
    assert cost.acceptance_length == pytest.approx(3.5, abs=0.5)
    assert cost.verification > 0
    assert cost.drafting > 0
    assert cost.cycle > 0.5 * (cost.verification + cost.drafting)
    assert cost.speedup == pytest.approx(cost.tokens_per_second / cost.plain_tokens_per_second)
    assert (cost.tree, cost.plain, cost.drafted) == ("12/4/3", "eager", "eager")


@pytest.mark.parametrize(("compiled", "graphs"), [("none", 0), ("plain", 1), ("both", 4)])
def test_what_is_compiled(compiled, graphs):
    """Plain generate's step; our verification, absorbing and one level."""
    torch._dynamo.reset()
    target, draft = simulated.random_pair("tiny", torch.device("cpu"), torch.float32)
    take_tree_masks(target.config._attn_implementation)  # else plain generate is compiled again after it
    found = []

    def backend(graph, example_inputs):
        found.append(graph)
        return graph.forward

    cost = measure(
        target,
        draft.with_tree("static", **SIZES),
        tau=2.5,
        prompt_length=16,
        new_tokens=30,
        repetitions=1,
        compiled=compiled,
        compile_config=CompileConfig(backend=backend, mode=None),
    )
    assert len(found) == graphs
    assert cost.plain == ("eager" if compiled == "none" else "compiled")
    assert cost.drafted == ("compiled" if compiled == "both" else "eager")
    assert cost.acceptance_length == pytest.approx(2.5, abs=0.6)


def test_what_cannot_be_is_refused():
    target, draft = simulated.random_pair("tiny", torch.device("cpu"), torch.float32)
    view = draft.with_tree("static", **SIZES)
    with pytest.raises(ValueError, match=r"`tau` 5.5 is not between 1 and 5"):
        measure(target, view, tau=5.5)
    with pytest.raises(ValueError, match=r"`new_tokens` 9 is too few"):
        measure(target, view, tau=3.0, new_tokens=9)
    with pytest.raises(ValueError, match=r"`compiled` is 'ours'; choose from 'none', 'plain', 'both'"):
        measure(target, view, tau=3.0, compiled="ours")


def test_report(capsys):
    options = ["--shape", "tiny", "--device", "cpu", "--dtype", "float32", "--tree", "8,3,3", "--tau", "2.5"]
    short = ["--prompt-length", "8", "--max-new-tokens", "24", "--repetitions", "1"]
    assert main([*options, *short]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["simulated_acceptance"] is True
    assert report["settings"]["tree"] == "8,3,3"
    assert report["cost"]["tree"] == "8/3/3"
    for wrong, message in ((["--tree", "8,3"], "NODES,LEVELS,TOP_K"), (["--tau", "9"], "`tau` 9.0 is not between")):
        with pytest.raises(SystemExit):
            main([*options, *short, *wrong])
        assert message in capsys.readouterr().err
