"""The real pair: a 260K-parameter Llama that writes stories, and its trained draft.

tests/data/stories260K/reference.json is what an independent implementation recorded for one prompt (60 nodes, 6
levels, top-k 10), its tree checked there against the original EAGLE code."""

import json

import pytest
import torch
from conftest import DATA
from test_generate import both

import hf_eagle3


OPENINGS = (
    "Once upon a time", "Lily and Tom", "The dog was", "One day, a little", "There was a big", "Mom said", "In "
    "the park",
    "Ben had a red", "A cat sat", "The sun", "Sam and his", "It was a", "Max liked to", "She was very", "The boy saw",
    "Anna went to", "The bird", "He wanted a", "They played", "The little girl",
)  # fmt: skip
SAMPLING = (
    {"temperature": 1.0, "top_k": 0},
    {"temperature": 0.7, "top_k": 0},
    {"temperature": 0.9, "top_k": 50, "top_p": 0.9},
)


@pytest.fixture(scope="module")
def recorded():
    return json.loads((DATA / "stories260K" / "reference.json").read_text())


def test_the_recorded_tree_is_reproduced(stories, recorded):
    target, draft, _ = stories
    records = []

    class Watcher(hf_eagle3.CycleStreamer):
        def on_cycle(self, record):
            records.append(record)

    view = draft.with_tree("static", num_draft_tokens=60, tree_depth=6, tree_top_k=10)
    ids = torch.tensor([recorded["prompt_ids"]])
    out = target.generate(ids, max_new_tokens=128, do_sample=False, assistant_model=view, streamer=Watcher())
    assert out[0, ids.shape[1] :].tolist() == recorded["greedy_128"][:128]
    first, tree = records[1], recorded["tree"]
    assert first.tree_tokens == [recorded["root"], *tree["tokens"]]
    assert first.tree_parents == [-1, *(parent + 1 for parent in tree["parents"])]
    torch.testing.assert_close(torch.tensor(first.tree_scores[1:]), torch.tensor(tree["cum"]), rtol=0, atol=1e-4)
    assert first.accepted_nodes == [node + 1 for node in recorded["first_cycle"]["accepted_nodes"]]
    assert first.tokens == [*recorded["first_cycle"]["accepted_tokens"], recorded["first_cycle"]["bonus"]]
    expected = recorded["tree_tokens_per_cycle_128"]
    assert [len(record.tokens) for record in records[1 : len(expected)]] == expected[
        :-1
    ]  # the last may be cut by length


def test_greedy_text_of_20_openings_and_tau(stories):
    target, draft, tokenizer = stories
    draft = draft.with_tree("static", num_draft_tokens=59, tree_depth=8, tree_top_k=10)
    with hf_eagle3.record() as stats:
        for opening in OPENINGS:
            inputs = tokenizer(opening, return_tensors="pt")
            (plain, _), (ours, _) = both(target, draft, inputs, max_new_tokens=128, do_sample=False)
            assert ours.tolist() == plain.tolist()
    assert stats.acceptance_length >= 0.97 * 6.217  # what the independent implementation measured on its 20 openings


@pytest.mark.parametrize("warpers", SAMPLING, ids=str)
def test_sampled_text_of_20_openings(stories, warpers):
    target, draft, tokenizer = stories
    for seed, opening in enumerate(OPENINGS):
        inputs = tokenizer(opening, return_tensors="pt")
        options = {"max_new_tokens": 128, "do_sample": True, **warpers}
        (plain, state), (ours, our_state) = both(target, draft, inputs, seed=seed, **options)
        assert ours.tolist() == plain.tolist()
        assert torch.equal(state, our_state)


@pytest.mark.parametrize("batch_size", [2, 5, 16])
@pytest.mark.parametrize("do_sample", [False, True])
def test_batches_with_rows_that_end_early(stories, batch_size, do_sample):
    target, draft, tokenizer = stories
    tokenizer.padding_side = "left"
    inputs = tokenizer(list(OPENINGS[:batch_size]), return_tensors="pt", padding=True)
    # The pad token is 0; a full stop ends some rows early.
    options = {
        "max_new_tokens": 128,
        "eos_token_id": [1, 426 if batch_size != 5 else 1],
        "do_sample": do_sample,
        "top_k": 0,
    }
    (plain, state), (ours, our_state) = both(target, draft, inputs, **options)
    assert ours.tolist() == plain.tolist()
    assert torch.equal(state, our_state)


def test_num_return_sequences(stories):
    target, draft, tokenizer = stories
    inputs = tokenizer(OPENINGS[0], return_tensors="pt")
    options = {"max_new_tokens": 64, "do_sample": True, "num_return_sequences": 4, "top_k": 0}
    (plain, _), (ours, _) = both(target, draft, inputs, **options)
    assert ours.tolist() == plain.tolist()


def test_shared_noise_raises_tau(stories):
    target, draft, tokenizer = stories
    taus = []
    for shared_noise in (True, False):
        view = draft.with_tree("static", shared_noise=shared_noise)
        with hf_eagle3.record() as stats:
            for seed, opening in enumerate(OPENINGS):
                torch.manual_seed(seed)
                inputs = tokenizer(opening, return_tensors="pt")
                target.generate(**inputs, max_new_tokens=128, do_sample=True, top_k=0, assistant_model=view)
        taus.append(stats.acceptance_length)
    assert taus[0] > 1.2 * taus[1]
