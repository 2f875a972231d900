"""A drafter from outside the package: one class, one registration, and the loop gives it everything.

the cat sat on the        what stood behind "the" before?  ->  cat, and then what stood behind "cat": sat
"""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from models import left_padded, tiny_target
from test_generate import SAMPLING, assert_same, both
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

import hf_eagle3
from hf_eagle3.generation.draft.interface import Drafter, register_drafter
from hf_eagle3.generation.tree.draft_tree import chain
from hf_eagle3.tree_config import TreeConfig


@dataclass(eq=False)
class BigramDraft:
    tree_config: TreeConfig = field(default_factory=lambda: TreeConfig("chain", tree_depth=3))


class BigramDrafter(Drafter):
    """Proposes what stood behind the last token before, and so on, with the chances of a coin."""

    def __init__(self, draft, context):
        self.batch, self.device, self.depths = context.batch, context.batch.ids.device, []

    def grow(self, roots, depth, policy):
        rows = [self._chain(number, depth) for number in roots.sequences]
        tokens = torch.tensor(rows, device=self.device)
        edges = torch.full(tokens.shape, 0.5, device=self.device).log()
        scores = policy.chances(edges).cumsum(1)
        nodes = policy.num_nodes(scores, depth)
        kept = edges[:, :nodes] if policy.is_adaptive else None
        return chain(roots.tokens, tokens[:, :nodes], scores[:, :nodes], kept)

    def _chain(self, number, depth):
        text, proposed = self.batch.ids[number, : self.batch.lengths[number]].tolist(), []
        for _ in range(depth):
            behind = dict(pairwise(text))
            proposed.append(behind.get(text[-1], text[-1]))
            text.append(proposed[-1])
        return proposed


register_drafter(BigramDraft, BigramDrafter)

OPTIONS = {
    "greedy": {"do_sample": False},
    "sampled": SAMPLING,
    "processors": {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 4},
    "stops": {**SAMPLING, "eos_token_id": [5, 6, 9]},
    "stops greedy": {"do_sample": False, "eos_token_id": [5, 6, 9]},
}


class Collector:
    def __init__(self):
        self.values, self.is_ended = [], False

    def put(self, value):
        self.values += [value.tolist()]

    def end(self):
        self.is_ended = True


@pytest.mark.parametrize("mode", ["chain", "auto"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", [[9], [13, 4, 9, 7, 11]], ids=str)
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3_next"])
def test_text_is_identical(name, lengths, options, mode):
    target = tiny_target(name)
    draft = BigramDraft(TreeConfig("chain", tree_depth=3) if mode == "chain" else TreeConfig("auto", 8, 4, 1))
    stats = assert_same(target, draft, left_padded(lengths), max_new_tokens=40, **OPTIONS[options])
    if mode == "chain" and "stops" not in options:
        assert sum(sum(row) for row in stats.accepted_tokens) > 0


def assert_same_in_other_ways(target, draft, sampling):
    """Over static shapes, with a processor that has a state, and through a streamer."""

    class Stateful(RepetitionPenaltyLogitsProcessor):  # unknown: one call per step
        pass

    assert_same(target, draft, left_padded([13, 4]), max_new_tokens=30, cache_implementation="static", **sampling)
    processors = LogitsProcessorList([Stateful(1.2)])
    assert_same(target, draft, left_padded([13, 4]), max_new_tokens=30, logits_processor=processors, **sampling)
    streams = []
    for assistant in ({}, {"assistant_model": draft}):
        streams.append(Collector())
        torch.manual_seed(0)
        target.generate(**left_padded([13, 4]), max_new_tokens=30, streamer=streams[-1], **sampling, **assistant)
    assert streams[0].values == streams[1].values
    assert streams[1].is_ended


@pytest.mark.parametrize("sampling", [{"do_sample": False}, SAMPLING], ids=["greedy", "sampled"])
def test_over_static_shapes_with_a_streamer_and_stateful_processors(sampling):
    assert_same_in_other_ways(tiny_target(), BigramDraft(), sampling)


def test_what_is_returned_beside_the_text():
    target, draft = tiny_target(), BigramDraft()
    options = {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True}
    (plain, _), (ours, _) = both(target, draft, left_padded([13, 4]), max_new_tokens=20, do_sample=False, **options)
    assert isinstance(ours, hf_eagle3.generation.outputs.GenerateEagle3Output)
    torch.testing.assert_close(torch.stack(ours.scores), torch.stack(plain.scores), rtol=1e-4, atol=1e-4)
    assert len(ours.hidden_states) == len(plain.hidden_states)
    assert ours.speculation.num_draft_tokens > 0


def test_a_drafter_that_forgets_the_order_of_sequences_is_seen(monkeypatch):
    """Text cannot show it, acceptance does: the toy reads sequences by their original numbers."""
    target, options = tiny_target(), {"max_new_tokens": 40, "do_sample": False, "eos_token_id": [5, 6, 9]}
    inputs = left_padded([13, 4, 9, 7, 11])
    honest = assert_same(target, BigramDraft(), inputs, **options)
    own = BigramDrafter._chain
    monkeypatch.setattr(BigramDrafter, "_chain", lambda self, number, depth: own(self, (number + 1) % 5, depth))
    assert assert_same(target, BigramDraft(), inputs, **options).acceptance_length < honest.acceptance_length


def test_other_assistants_are_left_alone():
    target = tiny_target()
    with pytest.raises((AttributeError, ValueError, TypeError)):
        target.generate(**left_padded([9]), assistant_model=object())
