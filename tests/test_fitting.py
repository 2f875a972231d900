"""A target whose vocabulary was resized after training, or that is another one: its own text, and what is said.

draft for ids 0 .. 23      target 0 .. 23 24 .. 31 (tokens added)      target 0 .. 19 (padding cut off)
"""

import json

import pytest
import torch
from models import VOCAB, left_padded, tiny_draft, tiny_target
from test_generate import SAMPLING, assert_same
from torch import nn

from hf_eagle3 import Eagle3DraftModel, record
from hf_eagle3.cli import main
from hf_eagle3.fitting import fit_notes, fitted
from hf_eagle3.target.target import check_fit


KINDS = {
    "reduced": {},
    "whole vocabulary": {"draft_vocab_size": VOCAB},
    "no head": {"has_lm_head": False},
    "no head, whole vocabulary": {"has_lm_head": False, "draft_vocab_size": VOCAB},
    "stored embedding": {"has_embed_tokens": True},
    "trained embedding": {"has_embed_tokens": True, "embed_trained": True},
    "narrow": {"hidden_size": 16, "head_dim": 4, "has_embed_tokens": True},
}
MODES = {
    "tree": ("static", {"num_draft_tokens": 12, "tree_depth": 3, "tree_top_k": 4}),
    "chain": ("chain", {"tree_depth": 3}),
    "auto": ("auto", {"num_draft_tokens": 12, "tree_depth": 3, "tree_top_k": 4}),
}


def resized(size: int, added: float | None = None):
    """The tiny target with `size` tokens; the logits of added ones are `added` times the first one's."""
    target = tiny_target()
    target.resize_token_embeddings(size, mean_resizing=False)
    assert target.config.vocab_size == size
    if added is not None and size > VOCAB:
        with torch.no_grad():
            target.lm_head.weight[VOCAB:] = added * target.lm_head.weight[:1]
    return target


@pytest.mark.parametrize("size", [VOCAB + 8, 64, VOCAB - 4])
@pytest.mark.parametrize("kind", KINDS)
def test_text_is_the_targets_own(kind, size):
    draft, target = tiny_draft(tiny_target(), **KINDS[kind]), resized(size, added=1.5)
    accepted = 0
    for mode, sizes in MODES.values():
        view = draft.with_tree(mode, **sizes)
        for options in ({"do_sample": False}, SAMPLING):
            stats = assert_same(target, view, left_padded([9, 4], vocab_size=size), max_new_tokens=24, **options)
            accepted += sum(map(sum, stats.accepted_tokens))
    assert accepted > 0
    assert draft.config.vocab_size == VOCAB


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_cost_no_acceptance(kind):
    """Tokens that the target never chooses: the very tree, and so the very acceptance, of the target before."""
    draft = tiny_draft(tiny_target(), **KINDS[kind])
    found = []
    for target in (tiny_target(), resized(VOCAB + 8, added=0.0)):
        with record() as stats:
            out = target.generate(**left_padded([9, 4]), max_new_tokens=30, do_sample=False, assistant_model=draft)
        found.append((out.tolist(), stats.accepted_tokens))
    assert found[0] == found[1]
    assert sum(map(sum, found[0][1])) > 0


@pytest.mark.parametrize("size", [VOCAB + 8, VOCAB - 4])
@pytest.mark.parametrize("way", [{"cache_implementation": "static"}, "host_chain"], ids=str)
def test_static_shapes_and_transformers_own_loop(way, size):
    draft, target = tiny_draft(tiny_target(), draft_vocab_size=VOCAB), resized(size)
    if way == "host_chain":
        draft, way = draft.with_tree("host_chain", tree_depth=3), {}
    prompt = left_padded([9], vocab_size=size)
    options = {"max_new_tokens": 20, "do_sample": False}
    out = target.generate(**prompt, **options, assistant_model=draft, **way)
    assert torch.equal(out, target.generate(**prompt, **options))


class OtherLinear(nn.Linear):
    """Stands for a head whose rows cannot be taken."""


def test_a_head_that_cannot_be_cut_and_a_mapping_out_of_order():
    draft = tiny_draft(tiny_target(), draft_vocab_size=6, tokens=torch.tensor([1, 4, 5, 21, 22, 23]))
    order = torch.tensor([3, 0, 5, 1, 4, 2])  # 21 1 23 4 22 5
    ids = draft.target_token_ids[order]
    with torch.no_grad():
        draft.d2t.copy_(ids - torch.arange(6))
    states = torch.randn(1, 2, 32)
    expected = draft.lm_head(states)[..., [1, 3, 5]]  # of 1, 4, 5
    for kind in (nn.Linear, OtherLinear):
        draft.lm_head.__class__ = kind
        view = fitted(draft, 20)
        assert view.target_token_ids.tolist() == [1, 4, 5]
        torch.testing.assert_close(view.lm_head(states), expected)
    with pytest.raises(ValueError, match="The target has 1 tokens, none of which"):
        fitted(draft, 1)


def test_a_view_shares_weights_and_leaves_the_draft_alone():
    draft = tiny_draft(tiny_target(), draft_vocab_size=VOCAB)
    before = dict(draft.state_dict())
    view = fitted(draft, 20)
    assert view.lm_head.weight.data_ptr() == draft.lm_head.weight.data_ptr()
    assert (view.config.vocab_size, view.config.draft_vocab_size) == (20, 20)
    assert fitted(draft, VOCAB) is draft
    assert draft.state_dict().keys() == before.keys()
    assert fitted(draft, VOCAB + 1).t2d.tolist() == [True] * VOCAB + [False]


@pytest.mark.parametrize("size", [VOCAB + 8, VOCAB - 4])
@pytest.mark.parametrize("kind", ["reduced", "whole vocabulary", "trained embedding"])
def test_convert_writes_the_draft_of_the_resized_target(tmp_path, kind, size):
    """So that engines, which compare sizes, take it."""
    draft, target = tiny_draft(tiny_target(), **KINDS[kind]), resized(size)
    draft.save_pretrained(tmp_path / "draft")
    target.save_pretrained(tmp_path / "target")
    arguments = ["convert", str(tmp_path / "draft"), str(tmp_path / "out"), "--target", str(tmp_path / "target")]
    assert main([*arguments, "--allow", "embed-trained", "--allow", "tapped-layers-fixed"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == size
    found = []
    for source in (draft, Eagle3DraftModel.from_pretrained(tmp_path / "out").with_tree("static", **MODES["tree"][1])):
        view = source.with_tree("static", **MODES["tree"][1])
        with record() as stats:
            prompt = left_padded([9], vocab_size=size)
            out = target.generate(**prompt, max_new_tokens=24, do_sample=False, assistant_model=view)
        found.append((out.tolist(), stats.accepted_tokens))
    assert found[0] == found[1]


def test_what_does_not_match_is_said(caplog):
    target = resized(VOCAB + 9)
    draft = tiny_draft(tiny_target(), target_name_or_path="org/Other")
    target.config.name_or_path = "org/target"
    target.generate(**left_padded([9]), max_new_tokens=4, assistant_model=draft)
    assert "made for `org/Other`, the target is `org/target`" in caplog.text
    assert "made for a target of 24 tokens, this one has 33" in caplog.text
    same = tiny_draft(tiny_target(), target_name_or_path="Org/Target")
    assert fit_notes(tiny_target().config, same.config, "org/target") == []


def test_another_vocabulary_is_refused():
    draft = tiny_draft(tiny_target())
    for size in (VOCAB + 1024, 3 * VOCAB):
        check_fit(tiny_target(vocab_size=size).config, draft.config)
    with pytest.raises(ValueError, match=r"made for 24 .* has 1049: too far apart for resized embeddings"):
        check_fit(tiny_target(vocab_size=VOCAB + 1025).config, draft.config)
