"""What is read off a target's layers: pass behind pass, of a layer that runs twice in one its last output."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from hf_eagle3.target.taps import Taps


class Adds(nn.Module):
    def __init__(self, amount):
        super().__init__()
        self.amount = amount

    def forward(self, hidden):
        return hidden + self.amount


class Looped(nn.Module):
    """Its second layer runs three times."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Adds(1), Adds(10)])

    def forward(self, hidden):
        hidden = self.layers[0](hidden)
        for _ in range(3):
            hidden = self.layers[1](hidden)
        return hidden


@pytest.fixture
def decoder():
    return Looped()


def taps_of(decoder):
    taps = Taps(decoder, dict(enumerate(decoder.layers)), LlamaConfig(hidden_size=2, num_attention_heads=1))
    return taps, taps.register()


def test_a_layer_that_runs_again_shows_its_last_output(decoder):
    taps, _ = taps_of(decoder)
    with taps.capturing():
        decoder(torch.zeros(1, 3, 2))
    first, second = taps.take()
    assert first.unique().tolist() == [1.0]
    assert second.unique().tolist() == [31.0]
    assert first.shape == second.shape == (1, 3, 2)


def test_passes_stand_behind_one_another(decoder):
    taps, _ = taps_of(decoder)
    decoder(torch.full((1, 9, 2), 7.0))  # not captured
    with taps.capturing():
        decoder(torch.zeros(1, 3, 2))
        decoder(torch.ones(1, 2, 2))
    assert taps.take()[1][0, :, 0].tolist() == [31.0] * 3 + [32.0] * 2


def test_a_layer_that_did_not_run_is_named(decoder):
    taps, handles = taps_of(decoder)
    handles[1].remove()
    with taps.capturing():
        decoder(torch.zeros(1, 3, 2))
    with pytest.raises(RuntimeError, match=r"only on layers \[0\] of the tapped \[0, 1\]"):
        taps.take()
    with taps.capturing(), pytest.raises(RuntimeError, match=r"only on layers \[\] of the tapped"):
        taps.take()
