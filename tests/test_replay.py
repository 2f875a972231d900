"""States after a rejection: those of a token-by-token run, without a second pass of the target."""

import pytest
import torch
from models import CACHE, left_padded, tiny_draft, tiny_target
from test_generate import SAMPLING, assert_same
from transformers import AutoModelForCausalLM, BambaConfig, DynamicCache, Lfm2Config

from hf_eagle3.generation.verify.chain_pass import ChainPass
from hf_eagle3.generation.verify.replay import StateReplay


SIZES = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def hybrid(name: str):
    """A tiny target whose layers hold recurrent states, convolution states, or both."""
    if name == "qwen3_next":
        return tiny_target(name)
    mamba = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
    config = {
        "bamba": lambda: BambaConfig(**SIZES, attn_layer_indices=[1, 3], **mamba),
        "lfm2": lambda: Lfm2Config(**SIZES, full_attn_idxs=[1, 3]),
    }[name]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture
def passes(monkeypatch):
    """Counts of passes of the target and of replays."""
    seen, run, replay = {"passes": 0, "replays": 0}, ChainPass._run, StateReplay.run

    def counted(self, tokens):
        seen["passes"] += 1
        return run(self, tokens)

    def replayed(self, length, count):
        seen["replays"] += 1
        return replay(self, length, count)

    monkeypatch.setattr(ChainPass, "_run", counted)
    monkeypatch.setattr(StateReplay, "run", replayed)
    return seen


@pytest.mark.parametrize("options", [{"do_sample": False}, SAMPLING], ids=["greedy", "sampling"])
@pytest.mark.parametrize("name", ["qwen3_next", "bamba", "lfm2"])
def test_one_pass_per_cycle(name, options, passes):
    target = hybrid(name)
    draft = tiny_draft(target).with_tree("chain", tree_depth=4)
    stats = assert_same(target, draft, left_padded([9, 5, 7]), max_new_tokens=25, **options)
    accepted = {count for row in stats.accepted_tokens for count in row}
    assert min(accepted) < 4
    assert len(accepted) > 1
    assert passes["passes"] == stats.num_iterations
    assert passes["replays"] > 4


@pytest.mark.parametrize("name", ["qwen3_next", "bamba", "lfm2"])
def test_states_are_those_of_single_steps(name):
    """The cache handed back, tensor by tensor."""
    target = hybrid(name)
    draft = tiny_draft(target).with_tree("chain", tree_depth=4)
    call = {"max_new_tokens": 20, "do_sample": False, "return_dict_in_generate": True}
    inputs = left_padded([9])
    plain, ours = target.generate(**inputs, **call), target.generate(**inputs, assistant_model=draft, **call)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    for one, other in zip(plain[CACHE].layers, ours[CACHE].layers, strict=True):
        for field in ("keys", "values", "conv_states", "recurrent_states"):
            expected, found = vars(one).get(field), vars(other).get(field)
            expected, found = ([x] if not isinstance(x, dict) else list(x.values()) for x in (expected, found))
            for a, b in zip(expected, found, strict=True):
                if a is not None:
                    torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-3)


def test_an_interrupted_replay_leaves_states_whole(monkeypatch):
    class Boom(Exception):
        pass

    target = tiny_target("qwen3_next")
    call = {"do_sample": False}
    expected = target.generate(**left_padded([12]), max_new_tokens=25, **call)
    cache, turns = DynamicCache(config=target.config), []

    def run(self, length, count):
        module, args, kwargs = self.calls[0]
        module(*args, **kwargs)  # one layer is ahead of the others
        turns.append(count)
        raise Boom

    monkeypatch.setattr(StateReplay, "run", run)
    draft = tiny_draft(target).with_tree("chain", tree_depth=4)
    with pytest.raises(Boom):
        target.generate(**left_padded([12]), max_new_tokens=25, assistant_model=draft, **call, **{CACHE: cache})
    monkeypatch.undo()
    assert turns
    ids = expected[:, : cache.get_seq_length() + 1]
    assert target.generate(ids, **{CACHE: cache}, max_length=37, **call).tolist() == expected.tolist()


def test_layers_that_were_not_seen_are_run_with_the_target(monkeypatch, passes):
    """As in a compiled target, whose hooks do not run."""
    monkeypatch.setattr(StateReplay, "_record", lambda self, *args: None)
    target = hybrid("qwen3_next")
    draft = tiny_draft(target).with_tree("chain", tree_depth=4)
    stats = assert_same(target, draft, left_padded([9]), max_new_tokens=25, do_sample=False)
    assert passes["replays"] == 0
    assert passes["passes"] > stats.num_iterations
