"""Every tree node's logits equal those of decoding its path token by token: the criterion for masks, positions and
slots.

Wide random trees, several cycles with ragged commits, rows longer than the window (8) and padded on the left. Below,
the same check is seen to fail for a wrong mask, a shifted position, a missing window and a slot moved wrongly."""

import pytest
import torch
from models import CHAIN_TARGETS, TREE_TARGETS, WINDOW, left_padded, tiny_target
from node_criterion import worst_node_error

from hf_eagle3.generation.verify import chain_pass
from hf_eagle3.generation.verify import masks as verify_masks
from hf_eagle3.generation.verify import slots as cache
from hf_eagle3.generation.verify import tree_pass as target_pass
from hf_eagle3.target.layer_inputs import Reach


PROMPTS = ([12], [21, 9, 15])
TOLERANCE = 1e-4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lengths", PROMPTS, ids=str)
@pytest.mark.parametrize("name", TREE_TARGETS)
def test_every_node_of_a_tree(name, lengths, attention):
    target = tiny_target(name)
    target.set_attn_implementation(attention)
    assert worst_node_error(target, left_padded(lengths)) < TOLERANCE


@pytest.mark.parametrize("lengths", PROMPTS, ids=str)
@pytest.mark.parametrize("name", CHAIN_TARGETS)
def test_every_node_of_a_chain(name, lengths):
    assert worst_node_error(tiny_target(name), left_padded(lengths), use_chain=True) < TOLERANCE


def test_a_deep_tree_beyond_the_window():
    target = tiny_target("gemma3")
    assert worst_node_error(target, left_padded([30]), num_nodes=40, max_depth=2 * WINDOW, cycles=2) < TOLERANCE


@pytest.mark.parametrize("lengths", PROMPTS, ids=str)
@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_a_window_that_slides_through_its_storage(name, lengths, monkeypatch):
    monkeypatch.setattr(cache, "GROWTH", 2)
    slid, honest = [], cache.SlotCache._slide

    def slide(self, span, start, num_nodes):
        before = span.start
        honest(self, span, start, num_nodes)
        slid.append(span.start > before)

    monkeypatch.setattr(cache.SlotCache, "_slide", slide)
    assert worst_node_error(tiny_target(name), left_padded(lengths), cycles=8, num_nodes=10) < TOLERANCE
    assert any(slid), "storage never slid: the test shows nothing"


def without_tree(honest):
    def masks(kinds, lengths, visible, depths, ancestors, dtype):
        return honest(kinds, lengths, visible, depths, torch.ones_like(ancestors).tril(), dtype)

    return masks


def without_padding(honest):
    return lambda kinds, lengths, visible, *rest: honest(kinds, lengths, None, *rest)


def without_raggedness(honest):
    return lambda kinds, lengths, *rest: honest(kinds, lengths.max().expand_as(lengths), *rest)


def without_window(honest):
    return lambda kinds, *rest: honest({kind: (span, Reach()) for kind, (span, _) in kinds.items()}, *rest)


@pytest.mark.parametrize(
    ("name", "lengths", "mutation"),
    [(name, [12], without_tree) for name in TREE_TARGETS]
    + [(name, [12, 3, 7], without_padding) for name in TREE_TARGETS]
    + [(name, [21, 9, 15], without_raggedness) for name in TREE_TARGETS]
    + [(name, [12], without_window) for name in ("mistral", "gemma3")],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_a_wrong_mask_is_seen(name, lengths, mutation, monkeypatch):
    monkeypatch.setattr(target_pass, "verification_masks", mutation(verify_masks.verification_masks))
    assert worst_node_error(tiny_target(name), left_padded(lengths)) > 100 * TOLERANCE


@pytest.mark.parametrize("name", TREE_TARGETS)
def test_a_shifted_position_is_seen(name, monkeypatch):
    honest = target_pass.TreePass.verify

    def shifted(self, tree):
        tree.depths = tree.depths * 2  # masks by window use them as well; full attention does not
        return honest(self, tree)

    monkeypatch.setattr(target_pass.TreePass, "verify", shifted)
    assert worst_node_error(tiny_target(name), left_padded([12]), max_depth=3) > 100 * TOLERANCE


@pytest.mark.parametrize("lengths", PROMPTS, ids=str)
def test_a_slot_moved_wrongly_is_seen(lengths, monkeypatch):
    honest = cache.SlotCache.keep
    monkeypatch.setattr(
        cache.SlotCache, "keep", lambda self, write, columns, nodes: honest(self, write, columns, nodes.flip(1))
    )
    assert worst_node_error(tiny_target(), left_padded(lengths)) > 100 * TOLERANCE


def test_states_that_are_not_restored_are_seen(monkeypatch):
    monkeypatch.setattr(chain_pass, "restore", lambda cache, saved: None)
    assert worst_node_error(tiny_target("qwen3_next"), left_padded([12]), use_chain=True) > 100 * TOLERANCE
