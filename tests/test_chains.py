"""Whether a pass over several tokens computes what single steps would is found out once per model, and a model that
forgets its states there is refused instead of writing other text."""

import pytest
import torch
from architectures import tiny_model
from models import left_padded, tiny_draft, tiny_target

from hf_eagle3 import chains, target


@pytest.fixture
def forgetful(monkeypatch):
    """Jamba, whose scan starts afresh in a pass over several tokens, as if nobody knew."""
    monkeypatch.setattr(target, "REFUSED", {})
    return tiny_model("jamba")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forgotten_states_are_told_from_rounding(dtype):
    assert chains.chain_fault(tiny_target("qwen3_next").to(dtype)) is None
    assert "differ by 0." in chains.chain_fault(tiny_model("jamba").to(dtype))


def test_a_forgetful_target_is_refused(forgetful):
    with pytest.raises(ValueError, match=r"cannot speed up JambaForCausalLM: with transformers .* not those after"):
        forgetful.generate(**left_padded([9]), assistant_model=tiny_draft(forgetful), max_new_tokens=4)


def test_a_target_is_looked_at_once_and_left_as_it_was(monkeypatch):
    model = tiny_target("qwen3_next")
    draft, calls, honest = tiny_draft(model), [], chains.step_errors
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr(chains, "step_errors", lambda model: calls.append(model) or honest(model))
    generator_state = torch.get_rng_state()
    for _ in range(2):
        model.generate(**left_padded([9]), assistant_model=draft, max_new_tokens=4)
    assert len(calls) == 1
    assert torch.equal(torch.get_rng_state(), generator_state)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert model.to(torch.bfloat16).dtype == torch.bfloat16
    chains.chain_fault(model)
    assert len(calls) == 2, "another dtype is another model"


def test_what_cannot_be_looked_at_is_said_and_not_refused(monkeypatch):
    def fails(model):
        raise RuntimeError("needs more than token ids")

    said = []
    monkeypatch.setattr(chains, "step_errors", fails)
    monkeypatch.setattr(chains.logger, "warning_once", said.append)
    assert chains.chain_fault(tiny_target("qwen3_next")) is None
    assert "needs more than token ids" in said[0]
