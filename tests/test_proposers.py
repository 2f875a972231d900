"""Drafts beside EAGLE-3's: text is that of plain `generate`; those that need no training propose what they saw.

text      the cat sat . the cat          the  ->  cat 2 times; behind "the cat": sat
"""

import pytest
import torch
from models import CACHE, left_padded, tiny_draft, tiny_eagle, tiny_heads, tiny_target
from test_drafters import OPTIONS, assert_same_in_other_ways
from test_generate import SAMPLING, assert_same, both

import hf_eagle3
from hf_eagle3.drafters.lookahead import Lookahead
from hf_eagle3.drafters.proposals import Continuation, Proposals, expand
from hf_eagle3.drafters.suffix import SuffixIndex
from hf_eagle3.generation.auto.calibration import OWN_NOISE, Calibration
from hf_eagle3.generation.auto.costs import CostTable
from hf_eagle3.generation.auto.planner import AutoPlanner
from hf_eagle3.generation.auto.traits import MEASURED, DraftingTraits
from hf_eagle3.generation.draft.interface import drafter_kind
from hf_eagle3.generation.tree.policy import Outlook
from hf_eagle3.tree_config import TreeConfig


DOCUMENTS = [[5, 6, 7, 8, 9] * 4, torch.tensor([11, 12, 13])]
DRAFTS = {
    "suffix": lambda target: hf_eagle3.SuffixDraft(DOCUMENTS),
    "lookahead": lambda target: hf_eagle3.LookaheadDraft(6, 4, 5),
    "small": lambda target: hf_eagle3.SmallModelDraft(tiny_target("llama", seed=0, num_hidden_layers=2)),
    "eagle3+suffix": lambda target: tiny_draft(target).with_suffix(),
    "small+suffix": lambda target: hf_eagle3.SmallModelDraft(tiny_target("gpt2")).with_suffix(DOCUMENTS),
    "medusa": lambda target: tiny_heads(hf_eagle3.MedusaDraftModel, target),
    "hydra": lambda target: tiny_heads(hf_eagle3.HydraDraftModel, target),
    "eagle": lambda target: tiny_eagle(target),
    "lookahead+suffix": lambda target: hf_eagle3.LookaheadDraft(3, 3, 3).with_suffix(),
}
TREES = {
    "chain": {"tree_depth": 4},
    "static": {"num_draft_tokens": 16, "tree_depth": 8, "tree_top_k": 4},
    "auto": {"tree_top_k": 4},
}


@pytest.fixture(scope="module")
def target():
    return tiny_target()


@pytest.mark.parametrize("mode", TREES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", [[9], [13, 4, 9, 7, 11]], ids=str)
@pytest.mark.parametrize("name", DRAFTS)
def test_text_is_identical(target, name, lengths, options, mode):
    draft = DRAFTS[name](target).with_tree(mode, **TREES[mode])
    assert_same(target, draft, left_padded(lengths), max_new_tokens=40, **OPTIONS[options])


@pytest.mark.parametrize("name", DRAFTS)
@pytest.mark.parametrize("target_name", ["mistral", "qwen3_next"])
def test_text_of_windows_and_of_recurrent_targets(target_name, name):
    target = tiny_target(target_name)
    for mode in ("auto", "static"):
        draft = DRAFTS[name](target).with_tree(mode, **TREES[mode])
        assert_same(target, draft, left_padded([13, 4]), max_new_tokens=30, do_sample=False)


@pytest.mark.parametrize("sampling", [{"do_sample": False}, SAMPLING], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", DRAFTS)
def test_static_shapes_streamer_and_stateful_processors(target, name, sampling):
    draft = DRAFTS[name](target).with_tree("static", **TREES["static"])
    assert_same_in_other_ways(target, draft, sampling)


@pytest.mark.parametrize("name", DRAFTS)
def test_embeddings_a_second_turn_and_sequences_of_one_prompt(target, name):
    draft, inputs = DRAFTS[name](target), left_padded([9])
    embeds = {"inputs_embeds": target.get_input_embeddings()(inputs["input_ids"])}
    assert_same(target, draft, embeds | {"attention_mask": inputs["attention_mask"]}, max_new_tokens=20)
    assert_same(target, draft, inputs, max_new_tokens=20, num_return_sequences=3, **SAMPLING)
    texts = []
    for assistant in ({}, {"assistant_model": draft}):
        first = target.generate(**inputs, max_new_tokens=8, return_dict_in_generate=True, **assistant)
        second = target.generate(first.sequences, **{CACHE: first[CACHE]}, max_new_tokens=12, **assistant)
        texts.append(second.tolist())
    assert texts[0] == texts[1]


# What is proposed


def test_the_index_finds_the_newest_places_and_how_far_they_agree():
    the, cat, sat, ran, stop = 1, 2, 3, 4, 5
    index = SuffixIndex([the, cat, sat, stop, the, cat, ran, stop, the, cat])
    found = [(one.place, one.length) for one in index.continuations([stop, the, cat])]
    assert found == [(6, 3), (2, 2)]
    assert [(one.place, one.length) for one in index.continuations([9, the])] == [(9, 1), (5, 1), (1, 1)]
    assert index.continuations([9]) == []


def test_trees_hold_the_likeliest_continuations():
    texts = [[1, 2, 3], [1, 2, 4], [5]]
    found = expand([Continuation(text, 0, 1) for text in texts], depth=3, num_nodes=4, top_k=2, escape=1.0)
    assert found.tokens == [1, 2, 5, 3]
    assert found.parents == [-1, 0, -1, 1]
    assert found.depths == [1, 2, 1, 3]
    # of weight 3 + 1 at the root; deeper, places that agree with m tokens weigh m ** 1.5
    chances = torch.tensor(found.log_probs).exp()
    torch.testing.assert_close(chances[:3], torch.tensor([2 / 4, 2 * 2**1.5 / (2 * 2**1.5 + 1), 1 / 4]))
    chain = expand([Continuation(text, 0, 1) for text in texts], depth=2, num_nodes=4, top_k=1, escape=1.0)
    assert (chain.tokens, chain.parents) == ([1, 2], [-1, 0])


def test_joining_and_filling_keep_siblings_apart():
    own, edges = Proposals([1, 2], [-1, 0], [1, 2], [-0.5, -0.5]), [-0.5, -0.5]
    other = Proposals([4, 1, 3], [-1, -1, 1], [1, 1, 2], [-0.3, -0.1, -0.2])
    own.join(edges, other, [-0.3, -0.1, -0.2])
    assert (own.tokens, own.parents, own.depths) == ([1, 2, 4, 3], [-1, 0, -1, 0], [1, 2, 1, 2])
    assert edges == [-0.1, -0.5, -0.3, -0.2]
    small = Proposals([4], [-1], [1], [-0.1])
    small.fill(own, 4)
    assert (small.tokens, small.parents) == ([4, 1, 2, 3], [-1, -1, 1, 1])


def test_documents_and_own_text_are_copied(target):
    """The answer is among the documents: long copies are accepted, also inside another draft's tree."""
    inputs = left_padded([9])
    (plain, _), _ = both(target, hf_eagle3.SuffixDraft(), inputs, max_new_tokens=60, do_sample=False)
    quoted = [plain[0].tolist()]
    for draft in (hf_eagle3.SuffixDraft(quoted), tiny_draft(target).with_suffix(quoted)):
        fixed = draft.with_tree("static", num_draft_tokens=24, tree_depth=24, tree_top_k=3)
        stats = assert_same(target, fixed, inputs, max_new_tokens=50, do_sample=False)
        assert stats.acceptance_length > 8
    without = assert_same(target, tiny_draft(target), inputs, max_new_tokens=50, do_sample=False)
    assert without.acceptance_length < 5


def test_sequences_copy_their_own_text(target, monkeypatch):
    inputs, options = left_padded([13, 4, 9, 7]), {"max_new_tokens": 60, "do_sample": False, "eos_token_id": [5, 6]}
    draft = hf_eagle3.SuffixDraft().with_tree("chain", tree_depth=4)
    honest = assert_same(target, draft, inputs, **options)
    own = hf_eagle3.drafters.suffix.SuffixTexts.proposals
    monkeypatch.setattr(
        hf_eagle3.drafters.suffix.SuffixTexts, "proposals", lambda self, number, *sizes: own(self, number ^ 1, *sizes)
    )
    assert assert_same(target, draft, inputs, **options).acceptance_length < honest.acceptance_length


# The small model


@pytest.mark.parametrize("sampling", [{"do_sample": False}, SAMPLING], ids=["greedy", "sampled"])
@pytest.mark.parametrize("lengths", [[9], [13, 4, 9, 7, 11]], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "mistral", "mixtral"])
def test_a_copy_of_the_target_is_accepted_whole(name, lengths, sampling):
    """Each sequence's cache, positions and masks are right, with padding, windows and accepted nodes moved."""
    target, draft = tiny_target(name), hf_eagle3.SmallModelDraft(tiny_target(name)).with_tree("chain", tree_depth=4)
    stats = assert_same(target, draft, left_padded(lengths), max_new_tokens=41, **sampling)
    counts = [
        accepted
        for row, cuts in zip(stats.accepted_tokens, stats.cut, strict=True)
        for accepted, is_cut in zip(row, cuts, strict=True)
        if not is_cut
    ]
    assert set(counts) <= {4}
    assert counts


def test_nodes_of_a_small_models_tree_are_scored_like_paths(target):
    """Also after nodes were accepted, each sequence's own number of them."""
    small, records = tiny_target(), []
    draft = hf_eagle3.SmallModelDraft(small).with_tree("static", num_draft_tokens=12, tree_depth=4, tree_top_k=3)

    class Watch(hf_eagle3.CycleStreamer):
        def on_cycle(self, record):
            records.append(record)

    inputs, lengths, checked = left_padded([13, 4]), [13, 13], 0
    out = target.generate(**inputs, max_new_tokens=20, do_sample=False, assistant_model=draft, streamer=Watch())
    for record in records:
        tokens, parents, scores = record.tree_tokens, record.tree_parents, record.tree_scores
        length = lengths[record.row]
        text = out[record.row, 9 * record.row : length].tolist()
        for node in range(1, len(tokens)):
            path, above = [tokens[node]], parents[node]
            while above > 0:
                path.insert(0, tokens[above])
                above = parents[above]
            logits = small(torch.tensor([text + path])).logits[0].log_softmax(dim=-1)
            expected = sum(logits[len(text) - 1 + i, token] for i, token in enumerate(path))
            torch.testing.assert_close(torch.tensor(scores[node]), expected.detach(), rtol=1e-4, atol=1e-4)
            checked += 1
        lengths[record.row] += len(record.tokens)
    assert checked > 50
    assert len({record.num_accepted_tokens for record in records if record.cycle >= 0}) > 1


def test_small_models_that_do_not_fit_are_refused(target):
    with pytest.raises(ValueError, match="25 tokens, the target 24"):
        target.generate(
            **left_padded([9]), assistant_model=hf_eagle3.SmallModelDraft(tiny_target("llama", vocab_size=25))
        )
    with pytest.raises(ValueError, match="recurrent"):
        hf_eagle3.SmallModelDraft(tiny_target("qwen3_next"))


def test_a_small_model_stops_at_its_context(target):
    small = tiny_target("gpt2", n_positions=16)
    draft = hf_eagle3.SmallModelDraft(small).with_tree("chain", tree_depth=4)
    assert_same(target, draft, left_padded([9]), max_new_tokens=40, do_sample=False)
    assert_same(target, draft, left_padded([20]), max_new_tokens=10, do_sample=False)


# Lookahead


def test_the_window_is_a_trunk_with_columns():
    text = Lookahead(hf_eagle3.LookaheadDraft(window=2, ngram=3, guesses=2), [1, 2, 3, 4], seed=0)
    text.columns = [[5, 6], [7, 8]]
    window = text.window(depth=8)
    assert (window.tokens, window.parents) == ([5, 6, 7, 8], [-1, 0, 0, 2])
    # root 4, 5 below it, 6 and 7 below 5, 8 below 7; the target chooses 10 below 6 and 11 below 8
    text.observe([4, 5, 6, 7, 8], [-1, 0, 1, 1, 3], [20, 21, 10, 22, 11])
    text.commit([9])
    assert text.columns == [[6, 10], [8, 11]]
    assert list(text.pool[5]) == [(6, 10)]
    assert list(text.pool[7]) == [(8, 11)]
    assert list(text.pool[2]) == [(3, 4)]


def test_the_windows_choices_are_the_targets(target, monkeypatch):
    seen, own = [], Lookahead.observe

    def observe(self, tokens, parents, choices):
        own(self, tokens, parents, choices)
        if self.choices is not None:
            seen.append((list(self.tokens), [list(column) for column in self.columns], list(self.choices)))

    monkeypatch.setattr(Lookahead, "observe", observe)
    draft = hf_eagle3.LookaheadDraft(3, 3, 2)
    assert_same(target, draft.with_tree("static"), left_padded([9]), max_new_tokens=12, do_sample=False)
    assert len(seen) > 3
    for text, columns, choices in seen:
        for i, choice in enumerate(choices):
            path = [column[0] for column in columns[: i + 1]] + columns[i][1:]
            assert int(target(torch.tensor([text + path])).logits[0, -1].argmax()) == choice


# Policies, mistakes


def test_free_drafts_are_asked_in_every_cycle():
    costs = CostTable()
    for size, seconds in ((1, 1.0), (4, 2.0), (8, 3.0)):
        costs.verify.points[size] = seconds
    planners = [
        AutoPlanner(TreeConfig(), torch.device("cpu"), OWN_NOISE, lambda *_: costs, traits=traits)
        for traits in (DraftingTraits(is_free=True), MEASURED)
    ]
    costs.first.points[1] = costs.level.points[1] = 0.1
    for planner in planners:
        planner.begin(Outlook(1, 9, 4, (True,)))
        planner._gain._plain_left = 5  # drafting did not pay
    assert [planner.begin(Outlook(1, 9, 4, (True,))) for planner in planners] == [4, 0]


def test_a_grafted_draft_has_the_traits_of_the_draft_inside(target):
    for inner, is_free in ((hf_eagle3.LookaheadDraft(3, 3, 3), True), (tiny_draft(target), False)):
        grafted = inner.with_suffix()
        assert drafter_kind(grafted).traits(grafted).is_free == is_free


def test_chances_that_are_not_the_drafts_teach_nothing():
    calibration = Calibration(torch.device("cpu"), OWN_NOISE)
    asked, before = torch.tensor([[True, True]]), calibration(torch.tensor([-0.7]))
    calibration.observe(torch.tensor([[float("inf"), float("inf")]]), asked, asked)
    torch.testing.assert_close(calibration(torch.tensor([-0.7])), before)
    torch.testing.assert_close(calibration.taken, calibration.expected)


def test_mistakes_are_named(target):
    with pytest.raises(ValueError, match=r"`documents\[1\]` is str 'text'"):
        hf_eagle3.SuffixDraft([[1, 2], "text"])
    with pytest.raises(ValueError, match="token id 99, and the target has 24"):
        target.generate(**left_padded([9]), assistant_model=hf_eagle3.SuffixDraft([[99]]))
    with pytest.raises(ValueError, match="'host_chain'"):
        hf_eagle3.SuffixDraft().with_tree("host_chain")
    with pytest.raises(ValueError, match="`with_suffix` of a SuffixDraft"):
        hf_eagle3.SuffixDraft().with_suffix()
    with pytest.raises(ValueError, match="`ngram` is 1"):
        hf_eagle3.LookaheadDraft(ngram=1)
