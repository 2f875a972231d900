"""The tree mode "host_chain" runs transformers' own assisted decoding: what that refuses for its own assistants is
refused for a draft too, instead of another text or a bare error."""

import pytest
import torch
from architectures import tiny_model
from models import left_padded, tiny_draft, tiny_target

from hf_eagle3.compat import hooks


GREEDY = {"max_new_tokens": 16, "do_sample": False}
STATEFUL = ["bamba", "jamba", "qwen3_next", "falcon_h1", "zamba2", "qwen3_5_text", "mamba2", "rwkv"]


def host_chain(target):
    return tiny_draft(target, tokens=torch.arange(3, 9)).with_tree("host_chain", tree_depth=3)


@pytest.mark.parametrize("name", STATEFUL)
def test_targets_that_cannot_go_back_are_refused(name):
    target = tiny_model(name)
    with pytest.raises(ValueError, match=r"host_chain|cannot speed up"):
        target.generate(**left_padded([9]), **GREEDY, assistant_model=host_chain(target))


@pytest.mark.parametrize("name", ["cpmant", "minimax", "openai-gpt"])
def test_targets_that_our_modes_refuse_are_refused(name):
    try:
        target = tiny_model(name)
        target.generate(**left_padded([9]), **GREEDY)
    except Exception as error:
        pytest.skip(f"transformers cannot run it: {error!r}")
    with pytest.raises(ValueError, match="cannot speed up"):
        target.generate(**left_padded([9]), **GREEDY, assistant_model=host_chain(target))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "qwen3"])
def test_text_is_plain_generates(name):
    target = tiny_target(name)
    for seed in range(4):
        inputs = left_padded([9], seed=seed)
        ours = target.generate(**inputs, **GREEDY, assistant_model=host_chain(target))
        assert ours.tolist() == target.generate(**inputs, **GREEDY).tolist()


def test_states_with_several_streams_are_read_like_ours():
    target = tiny_model("gemma3n_text")
    inputs = left_padded([9])
    ours = target.generate(**inputs, **GREEDY, assistant_model=host_chain(target))
    assert ours.tolist() == target.generate(**inputs, **GREEDY).tolist()


def test_transformers_own_refusals_count():
    """By a refusal that only its validation makes: several sequences of one prompt."""
    target = tiny_target()
    options = {"max_new_tokens": 4, "do_sample": True, "num_return_sequences": 2}
    with pytest.raises(ValueError, match="num_return_sequences"):
        target.generate(**left_padded([9]), **options, assistant_model=host_chain(target))
    assert "_validate_generation_mode" in hooks._OWN
