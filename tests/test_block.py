"""Block drafters in `generate`: the text is the target's own, and what is drafted is what the model says.

the cat sat on the mat .      anchor "sat", block of 3:  sat <mask> <mask>  ->  level 1: on .5 .3, level 2: the .6 .2
"""

import importlib
from importlib.util import find_spec

import pytest
import torch
from models import CACHE, SIZES, left_padded, tiny_target
from test_drafters import OPTIONS, Collector
from test_generate import SAMPLING, assert_same, both
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.utils import logging

import hf_eagle3
from hf_eagle3 import BlockDraftConfig, BlockDraftModel
from hf_eagle3.drafters.block.drafter import BlockDrafter
from hf_eagle3.drafters.block.tree import product_tree
from hf_eagle3.generation.draft.interface import drafter_kind
from hf_eagle3.generation.tree.policy import FixedPolicy
from hf_eagle3.model_loading import load_any_draft, load_draft
from hf_eagle3.target.target import Target
from hf_eagle3.tree_config import TreeConfig


MASK, BLOCK = 3, 5
VIEWS = {
    "tree": ("static", {"num_draft_tokens": 60, "tree_depth": 4, "tree_top_k": 12}),
    "chain": ("chain", {"tree_depth": 4}),
    "auto": ("auto", {"num_draft_tokens": 40, "tree_depth": 4, "tree_top_k": 8}),
}
KINDS = {
    "bidirectional": {},
    "causal": {"is_causal": True},
    "shifted": {"is_shifted": True},
    "sliding": {"is_causal": None, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6},
}


def block_draft(target, seed: int = 1, **fields) -> BlockDraftModel:
    torch.manual_seed(seed)
    sizes = {"num_hidden_layers": 2, "block_size": BLOCK, "mask_token_id": MASK}
    draft = BlockDraftModel(BlockDraftConfig.from_target(target, **sizes | fields)).eval()
    with torch.no_grad():  # masks and positions matter
        for parameter in draft.parameters():
            parameter.mul_(4) if parameter.dim() > 1 else None
    return draft


@pytest.fixture(scope="module", params=["llama", "gemma3", "mistral", "qwen3_next"])
def pair(request):
    target = tiny_target(request.param)
    return target, block_draft(target)


@pytest.mark.parametrize("mode", VIEWS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", [[9], [13, 4, 9, 7, 11]], ids=str)
def test_text_is_identical(pair, lengths, options, mode):
    target, draft = pair
    name, sizes = VIEWS[mode]
    stats = assert_same(
        target, draft.with_tree(name, **sizes), left_padded(lengths), max_new_tokens=40, **OPTIONS[options]
    )
    if mode == "tree" and stats.mode == "tree" and "stops" not in options:
        assert sum(sum(row) for row in stats.accepted_tokens) > 0, "nothing was accepted: the test shows nothing"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", [{"do_sample": False}, SAMPLING], ids=["greedy", "sampled"])
def test_every_kind_of_block_gives_the_same_text(kind, sampling):
    target = tiny_target()
    draft = block_draft(target, **KINDS[kind]).with_tree("static", **VIEWS["tree"][1])
    assert_same(target, draft, left_padded([13, 4, 9]), max_new_tokens=30, **sampling)


@pytest.mark.parametrize("sampling", [{"do_sample": False}, SAMPLING], ids=["greedy", "sampled"])
def test_static_shapes_streamers_stateful_processors_and_return_sequences(sampling):
    target = tiny_target()
    draft = block_draft(target).with_tree("static", **VIEWS["tree"][1])

    class Stateful(RepetitionPenaltyLogitsProcessor):  # unknown: one call per step
        pass

    inputs = left_padded([13, 4])
    assert_same(target, draft, inputs, max_new_tokens=30, cache_implementation="static", **sampling)
    processors = LogitsProcessorList([Stateful(1.2)])
    assert_same(target, draft, inputs, max_new_tokens=30, logits_processor=processors, **sampling)
    if sampling["do_sample"]:
        options = {"num_return_sequences": 3, "eos_token_id": 5}
        assert_same(target, draft, left_padded([9, 5]), max_new_tokens=30, **options, **sampling)
    streams = []
    for assistant in ({}, {"assistant_model": draft}):
        streams.append(Collector())
        torch.manual_seed(0)
        target.generate(**inputs, max_new_tokens=30, streamer=streams[-1], **sampling, **assistant)
    assert streams[0].values == streams[1].values
    assert streams[1].is_ended


def test_what_is_returned_beside_the_text():
    target = tiny_target()
    draft = block_draft(target).with_tree("static", **VIEWS["tree"][1])
    options = {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True}
    (plain, _), (ours, _) = both(target, draft, left_padded([13, 4]), max_new_tokens=20, do_sample=False, **options)
    torch.testing.assert_close(torch.stack(ours.scores), torch.stack(plain.scores), rtol=1e-4, atol=1e-4)
    assert len(ours.hidden_states) == len(plain.hidden_states)


def drafted_logits(target, draft, monkeypatch, **options) -> list[tuple[int, list[int], torch.Tensor]]:
    """(sequence, its tokens up to the anchor, logits (T, V)) of every block that a call drafts."""
    seen, own = [], BlockDrafter._logits

    def logits(self, roots, depth):
        out = own(self, roots, depth)
        for place, number in enumerate(roots.sequences):
            seen.append((number, self.batch.ids[number, : self.batch.lengths[number]].tolist(), out[place].clone()))
        return out

    monkeypatch.setattr(BlockDrafter, "_logits", logits)
    target.generate(**options, assistant_model=draft)
    monkeypatch.undo()
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [[11], [13, 4, 9, 7]], ids=str)
def test_what_is_drafted_is_what_the_model_says_of_true_features(kind, lengths, monkeypatch):
    """Cached keys, masks and positions, however many tokens were committed and whoever has left the batch."""
    target = tiny_target()
    draft = block_draft(target, **KINDS[kind]).with_tree("static", **VIEWS["tree"][1])
    inputs = left_padded(lengths)
    options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": [5, 6]}
    seen = drafted_logits(target, draft, monkeypatch, **inputs, **options)
    assert len(seen) > 10
    reader = Target(target, draft.config)
    for number, tokens, logits in seen:
        tokens = torch.tensor([tokens[max(lengths) - lengths[number] :]])
        features, _ = reader.read(tokens[:, :-1], torch.ones_like(tokens[:, :-1]))
        block = torch.tensor([[tokens[0, -1], *[MASK] * (BLOCK - 1)]])
        with torch.no_grad():
            states = draft.predictions(draft(reader.embedding_rows(block), features))
            expected = reader.head(states)[0, : len(logits)]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_second_turn_remembers_the_first(monkeypatch):
    """On the same cache, blocks look at the first turn's features without a second pass over them."""
    target, inputs = tiny_target(), left_padded([11])
    draft = block_draft(target).with_tree("static", **VIEWS["tree"][1])
    options = {"do_sample": False, "return_dict_in_generate": True}
    first = target.generate(**inputs, max_new_tokens=12, assistant_model=draft, **options)
    ids = torch.cat((first.sequences, torch.tensor([[7, 9, 4]])), dim=1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), CACHE: first[CACHE], "max_new_tokens": 8}
    seen = drafted_logits(target, draft, monkeypatch, do_sample=False, **given)
    reader, tokens = Target(target, draft.config), torch.tensor([seen[0][1]])
    features, _ = reader.read(tokens[:, :-1], torch.ones_like(tokens[:, :-1]))
    block = torch.tensor([[tokens[0, -1], *[MASK] * (BLOCK - 1)]])
    with torch.no_grad():
        expected = reader.head(draft.predictions(draft(reader.embedding_rows(block), features)))[0]
    torch.testing.assert_close(seen[0][2], expected, rtol=1e-4, atol=1e-4)


def test_the_tree_is_the_best_first_expansion_of_products():
    """.6 .3 | .5 .2: "a" .6, "b" .3, below them "x" and "y": a-x .3 (younger than b), b-x .15, a-y .12, b-y .06."""
    chances = torch.tensor([[[0.6, 0.3], [0.5, 0.2]]]).log()
    tokens = torch.tensor([[[10, 11], [20, 21]]])
    expected = {  # nodes: (token, parent) of each
        1: [(10, 0)],
        2: [(10, 0), (11, 0)],
        3: [(10, 0), (11, 0), (20, 1)],
        4: [(10, 0), (11, 0), (20, 1), (20, 2)],
        5: [(10, 0), (11, 0), (20, 1), (20, 2), (21, 1)],
        6: [(10, 0), (11, 0), (20, 1), (20, 2), (21, 1), (21, 2)],
    }
    for nodes, wanted in expected.items():
        policy = FixedPolicy(TreeConfig("static", nodes, 2, 2))
        tree = product_tree(torch.tensor([5]), chances, tokens, nodes, policy)
        assert tree.tokens[0, 0] == 5
        found = zip(tree.tokens[0, 1:].tolist(), tree.parents[0, 1:].tolist(), strict=True)
        assert sorted(found) == sorted(wanted)
        products = {(10, 0): 0.6, (11, 0): 0.3, (20, 1): 0.3, (20, 2): 0.15, (21, 1): 0.12, (21, 2): 0.06}
        each = zip(tree.tokens[0, 1:].tolist(), tree.parents[0, 1:].tolist(), strict=True)
        torch.testing.assert_close(tree.scores[0, 1:].exp(), torch.tensor([products[node] for node in each]))


def test_trees_have_the_likeliest_nodes_of_all():
    torch.manual_seed(0)
    log_probs = torch.randn(3, 4, 5).log_softmax(-1).sort(dim=-1, descending=True).values
    tokens = torch.stack([torch.randperm(9)[:5] for _ in range(12)]).view(3, 4, 5)
    tree = product_tree(torch.arange(3), log_probs, tokens, 30, FixedPolicy(TreeConfig("static", 30, 4, 5)))
    for sequence in range(3):
        everything, level = [], torch.zeros(1)
        for depth in range(4):
            level = (level[:, None] + log_probs[sequence, depth]).flatten()
            everything.append(level)
        best = torch.cat(everything).topk(30).values
        torch.testing.assert_close(tree.scores[sequence, 1:].sort(descending=True).values, best)
        assert (tree.depths[sequence, 1:] == tree.depths[sequence][tree.parents[sequence, 1:]] + 1).all()


def test_shared_noise_predicts_the_sample():
    """With the noise of the coming steps more is accepted, from the same draft and for the same text."""
    target = tiny_target()
    lengths = {}
    for shared in (True, False):
        draft = block_draft(target).with_tree("static", **VIEWS["tree"][1], shared_noise=shared)
        stats = assert_same(target, draft, left_padded([13, 4, 9]), max_new_tokens=60, **SAMPLING)
        lengths[shared] = stats.acceptance_length
    assert lengths[True] > lengths[False] + 0.1


def test_the_mode_auto_learns_what_one_pass_costs_and_goes_on_to_choose():
    target = tiny_target()
    draft = block_draft(target).with_tree("auto", **VIEWS["auto"][1])
    stats = assert_same(target, draft, left_padded([9]), max_new_tokens=60, **SAMPLING)
    assert any(choice.drafting is not None for choice in stats.choices), "it never stopped measuring"


def test_a_directory_is_enough(tmp_path):
    target, draft = tiny_target(), block_draft(tiny_target())
    draft.with_tree("static", **VIEWS["tree"][1]).save_pretrained(tmp_path)
    inputs = left_padded([9])
    stats = assert_same(target, str(tmp_path), inputs, max_new_tokens=30, do_sample=False)
    assert stats.num_draft_tokens > 0


@pytest.mark.parametrize("is_folder", [False, True], ids=["draft", "folder"])
def test_attached_to_a_target(is_folder, tmp_path):
    target = tiny_target()
    draft = block_draft(target)
    draft.save_pretrained(tmp_path)
    inputs, options = left_padded([9]), {"max_new_tokens": 30, "do_sample": False}
    plain = target.generate(**inputs, **options)
    with hf_eagle3.attach(target, str(tmp_path) if is_folder else draft, "static", **VIEWS["tree"][1]) as attached:
        assert isinstance(attached.draft, BlockDraftModel)
        with hf_eagle3.record() as stats:
            assert torch.equal(target.generate(**inputs, **options), plain)
        assert stats.num_draft_tokens > 0
        with hf_eagle3.record() as stats:  # a call that no draft can serve
            target.generate(**inputs, **options, num_beams=2)
        assert stats.num_cycles == 0


def test_programs_load_either_kind(tmp_path):
    target = tiny_target()
    block_draft(target).save_pretrained(tmp_path)
    for draft in (load_draft(str(tmp_path), target), load_any_draft(str(tmp_path))):
        assert isinstance(draft, BlockDraftModel)
    with pytest.raises(ValueError, match=r"block drafter \(DFlash, JetSpec\).*load it with hf_eagle3.BlockDraftModel"):
        hf_eagle3.Eagle3DraftModel.from_pretrained(tmp_path)


def test_a_stored_head_that_is_said_not_to_be_there_is_not_used(tmp_path):
    block_draft(tiny_target(), has_lm_head=True, has_embed_tokens=True, is_shifted=True).save_pretrained(tmp_path)
    draft = BlockDraftModel.from_pretrained(tmp_path, has_lm_head=False)
    assert draft.lm_head is None
    assert draft.embed_tokens is not None


@pytest.mark.parametrize("given", [{}, {"speculation_type": "dflash"}], ids=["bare", "named"])
def test_transformers_own_assistant_is_recognised(given):
    """As `assistant_model`, in trees and batches; its weights are shared, not copied."""
    module = "transformers.models.muse_glimmer_assistant"
    if find_spec(module) is None:
        pytest.skip("this transformers has no DFlash assistant")
    muse = importlib.import_module(module)
    sizes = {name: SIZES[name] for name in SIZES if name not in ("vocab_size", "tie_word_embeddings")}
    sizes |= {"num_hidden_layers": 2, "block_size": BLOCK, "mask_token_id": MASK, "target_layer_ids": [0, 1, 2]}
    torch.manual_seed(0)
    assistant = muse.MuseGlimmerAssistantModel(muse.MuseGlimmerAssistantConfig(**sizes, sliding_window=8)).eval()
    target = tiny_target()
    stats = assert_same(target, assistant, left_padded([13, 4, 9]), max_new_tokens=30, do_sample=False, **given)
    assert stats.num_draft_tokens > 0
    shared = BlockDraftModel.from_assistant(assistant)
    assert shared.fc.weight is assistant.encoder.fc.weight


def test_a_tree_is_no_deeper_than_the_block():
    target = tiny_target()
    draft = block_draft(target)
    assert draft.tree_config.tree_depth == BLOCK - 1
    deep = draft.with_tree("chain", tree_depth=9)
    assert drafter_kind(deep).sizes(deep).tree_depth == BLOCK - 1
    assert_same(target, deep, left_padded([9]), max_new_tokens=30, do_sample=False)


def test_what_does_not_fit_is_refused():
    target = tiny_target()
    with pytest.raises(ValueError, match="'host_chain' takes EAGLE-3 drafts"):
        target.generate(**left_padded([9]), assistant_model=block_draft(target).with_tree("host_chain"))
    other = block_draft(target, vocab_size=40, mask_token_id=39)
    with pytest.raises(ValueError, match="`mask_token_id` is 39, the target has 24"):
        target.generate(**left_padded([9]), max_new_tokens=5, assistant_model=other)
    wide = block_draft(target, hidden_size=64, target_hidden_size=64)
    with pytest.raises(ValueError, match="64"):
        target.generate(**left_padded([9]), max_new_tokens=5, assistant_model=wide)
    with pytest.raises(ValueError, match=r"block drafter \(DFlash, JetSpec\).*hf_eagle3.BlockDraftModel"):
        hf_eagle3.Eagle3Config.from_dict(block_draft(target).config.to_dict())
    logging.disable_progress_bar()
