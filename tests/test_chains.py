"""Whether a pass over several tokens computes what single steps would is found out once per model. A layer that
forgets its states there is given tokens one by one; a model that cannot be helped is refused instead of writing other
text."""

import pytest
import torch
from architectures import tiny_model
from models import CACHE, left_padded, tiny_draft, tiny_target
from node_criterion import worst_node_error
from test_generate import assert_same

from hf_eagle3.target import multi_token as chains


FORGETFUL = "jamba"  # its scan starts afresh in a pass over several tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forgotten_states_are_told_from_rounding(dtype):
    assert chains._support(tiny_target("qwen3_next").to(dtype)) == chains.MultiTokenSupport(None, one_by_one=False)
    assert chains._support(tiny_model(FORGETFUL).to(dtype)) == chains.MultiTokenSupport(None, one_by_one=True)


def test_a_forgetful_layer_gets_tokens_one_by_one():
    model = tiny_model(FORGETFUL)
    mixers = [layer.mamba for layer in model.model.layers if hasattr(layer, "mamba")]
    assert chains.StepParts.of(model).one_by_one == mixers
    widths = []
    handles = [
        module.register_forward_hook(lambda module, args, output: widths.append(output.shape[1]))
        for module in (mixers[0].in_proj, model.lm_head)
    ]
    draft = tiny_draft(model, tokens=range(3, 9)).with_tree("chain", tree_depth=4)
    assert_same(model, draft, left_padded([13, 4, 9]), max_new_tokens=15, do_sample=False)
    for handle in handles:
        handle.remove()
    assert set(widths) >= {1, 5}, "the head sees a chain and its root at once"
    assert not any("forward" in vars(mixer) for mixer in mixers)


def test_tokens_at_once_would_be_wrong(monkeypatch):
    monkeypatch.setattr(chains, "_support", lambda model: chains.MultiTokenSupport())
    assert worst_node_error(tiny_model(FORGETFUL), left_padded([12])) > 0.01


@pytest.mark.parametrize("name", ["mamba2", "bamba", "lfm2", "qwen3_5_text"])
def test_one_by_one_is_right_where_it_is_not_needed(name):
    model = tiny_model(name)
    parts = chains.StepParts(chains._clamped(model), chains.mixers(model))
    assert len(parts.one_by_one) >= 2
    assert chains.step_errors(model, parts).max() < 1e-5


def test_a_forward_of_their_own_comes_back():
    """accelerate gives modules one to move their weights."""
    model = tiny_model(FORGETFUL)
    mixer, calls = chains.StepParts.of(model).one_by_one[0], []
    honest = mixer.forward
    mixer.forward = own = lambda *args, **kwargs: calls.append(1) or honest(*args, **kwargs)
    with chains.stepping(chains.StepParts.of(model)):
        model(torch.tensor([[3, 4, 5]]), use_cache=True)
    assert len(calls) == 3
    assert mixer.forward is own


@pytest.mark.parametrize("name", ["mamba2", FORGETFUL])
def test_passes_of_two_threads_leave_nothing_behind(name):
    model = tiny_model(name)
    parts = chains.StepParts(chains._clamped(model), chains.mixers(model))
    before = [dict(vars(module)) for module in parts.one_by_one]
    first, second = chains.stepping(parts), chains.stepping(parts)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert "forward" in vars(parts.one_by_one[0]), "the second is still inside"
    second.__exit__(None, None, None)
    assert [vars(module) for module in parts.one_by_one] == before


@pytest.mark.parametrize("name", ["minimax", FORGETFUL])
def test_rows_that_end_early_and_a_cache_for_the_next_turn(name):
    """MiniMax keeps its states in a cache of its own class, whose rows stay."""
    model = tiny_model(name)
    draft = tiny_draft(model, tokens=range(3, 9)).with_tree("chain", tree_depth=4)
    ends = {"eos_token_id": [5, 6, 7]}
    stats = assert_same(model, draft, left_padded([13, 4, 9]), max_new_tokens=30, do_sample=True, **ends)
    assert len(set(stats.generated_lengths)) > 1, "all rows ended together: the test shows nothing"
    texts = []
    for assistant in (None, draft):
        inputs, cache = left_padded([9]), {}
        for _ in range(2):
            options = {"max_new_tokens": 9, "do_sample": False, "return_dict_in_generate": True}
            out = model.generate(**inputs, **cache, **options, assistant_model=assistant)
            ids = torch.cat((out.sequences, torch.tensor([[9]])), dim=1)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            cache = {CACHE: out[CACHE]}
        texts.append(ids.tolist())
    assert texts[0] == texts[1]


def test_a_target_that_cannot_be_helped_is_refused(monkeypatch):
    monkeypatch.setattr(chains, "mixers", lambda model: [])
    model = tiny_model(FORGETFUL)
    with pytest.raises(ValueError, match=r"cannot speed up JambaForCausalLM: with transformers .* not those after"):
        model.generate(**left_padded([9]), assistant_model=tiny_draft(model), max_new_tokens=4)


def test_a_target_is_looked_at_once_and_left_as_it_was(monkeypatch):
    model = tiny_target("qwen3_next")
    draft, calls, honest = tiny_draft(model), [], chains.step_errors
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr(
        chains, "step_errors", lambda model, parts: calls.append(model.training) or honest(model, parts)
    )
    generator_state = torch.get_rng_state()
    model.train()
    for _ in range(2):
        model.generate(**left_padded([9]), assistant_model=draft, max_new_tokens=4)
    assert calls == [False], "dropout is off while it is looked at"
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), generator_state)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert model.to(torch.bfloat16).dtype == torch.bfloat16
    chains.chain_fault(model)
    assert len(calls) == 2, "another dtype is another model"


def test_what_cannot_be_looked_at_is_said_and_not_refused(monkeypatch):
    def fails(model, parts):
        raise ValueError("needs more than token ids")

    said = []
    monkeypatch.setattr(chains, "step_errors", fails)
    monkeypatch.setattr(chains.logger, "warning_once", said.append)
    assert chains.chain_fault(tiny_target("qwen3_next")) is None
    assert "needs more than token ids" in said[0]


def test_a_comparison_that_breaks_is_no_proof(monkeypatch):
    def fails(model, parts):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(chains, "step_errors", fails)
    assert "no such kernel" in chains.chain_fault(tiny_target("qwen3_next"))
