"""Trees where a bias, a window, a chunk, a table of positions or a choice of keys is made inside the target: each of
them taken by slot, as the host takes it, is seen by the node criterion."""

import threading
from contextlib import nullcontext

import pytest
import torch
from architectures import architecture_names, tiny_model
from models import CACHE, left_padded, tiny_draft
from node_criterion import worst_node_error

from hf_eagle3.compat.caches import INDEXER_KEYS
from hf_eagle3.generation.verify import masks as verify_masks
from hf_eagle3.generation.verify import slots as cache
from hf_eagle3.generation.verify import tree_pass as target_pass
from hf_eagle3.target import layer_inputs as attention_inputs
from hf_eagle3.target.layer_inputs import Reach


PROMPTS = ([12], [21, 9, 15])
TOLERANCE = 1e-4  # of the criterion
ALIBI = ("bloom", "falcon[alibi]", "mpt")
INDEXED = ("axk2", "deepseek_v32", "dots3_note_text", "glm_moe_dsa", "hy_v4")


def biases_by_slot(patch):
    def by_slot(write, visible, node_columns):
        return torch.arange(write + node_columns.shape[1]).expand(node_columns.shape[0], -1)

    patch.setattr(target_pass, "slot_positions", by_slot)
    columns = property(lambda given: torch.arange(given.slot_positions.shape[1]).expand(len(given.slot_positions), -1))
    patch.setattr(attention_inputs.PassInputs, "slot_columns", columns)  # MPT's


def windows_by_slot(patch):
    patch.setattr(attention_inputs, "_all_true", lambda module, name: nullcontext())


def one_mask_for_all_layers(patch):
    patch.setitem(attention_inputs.LAYER_INPUTS, "gpt_neo", lambda arguments, given, config, layer: {})


def chunks_by_slot(patch):
    honest = verify_masks.verification_masks

    def masks(kinds, lengths, visible, depths, ancestors, dtype):
        slots = torch.arange(depths.shape[1]).expand_as(depths)
        return honest(kinds, lengths, visible, slots, ancestors, dtype)

    patch.setattr(target_pass, "verification_masks", masks)


def chunks_with_padding(patch):
    honest = verify_masks.verification_masks

    def masks(kinds, lengths, visible, *rest):
        chunked = {kind: pair for kind, pair in kinds.items() if pair[1].chunk is not None}
        return honest(kinds, lengths, visible, *rest) | honest(chunked, lengths, None, *rest)

    patch.setattr(target_pass, "verification_masks", masks)


def no_chunks(patch):
    honest = verify_masks.verification_masks

    def masks(kinds, *rest):
        return honest({kind: (span, Reach()) for kind, (span, _) in kinds.items()}, *rest)

    patch.setattr(target_pass, "verification_masks", masks)


def indexer_keys_left_behind(patch):
    honest = cache.SlotCache.keep

    def keep(self, *arguments):
        groups = self.groups
        self.groups = [group for group in groups if all(name != INDEXER_KEYS for _, name in group.entries)]
        assert len(self.groups) < len(groups)
        honest(self, *arguments)
        self.groups = groups

    patch.setattr(cache.SlotCache, "keep", keep)


def tables_by_slot(patch):
    def table(arguments, given, config, layer):
        return {"position_ids": given.node_columns[:, :1] + torch.arange(given.node_columns.shape[1])}

    patch.setitem(attention_inputs.POSITION_TABLES, "roformer", ("embed_positions", table))


def padding_not_counted(patch):
    honest = target_pass.Target.__init__

    def init(self, *arguments):
        honest(self, *arguments)
        self.counts_padding = False

    patch.setattr(target_pass.Target, "__init__", init)


def the_hosts_own_mask(patch):
    for name in ("big_bird", "ctrl", "megatron-bert", "rembert"):
        patch.setitem(attention_inputs.LAYER_INPUTS, name, lambda arguments, given, config, layer: {})


@pytest.mark.parametrize(
    ("name", "lengths", "wrong"),
    [(name, lengths, biases_by_slot) for name in ALIBI for lengths in PROMPTS]
    + [("gpt_neo", lengths, wrong) for lengths in PROMPTS for wrong in (windows_by_slot, one_mask_for_all_layers)]
    + [("llama4_text", lengths, wrong) for lengths in PROMPTS for wrong in (chunks_by_slot, no_chunks)]
    + [("llama4_text", [21, 9, 15], chunks_with_padding)]
    + [(name, lengths, indexer_keys_left_behind) for name in INDEXED for lengths in PROMPTS]
    + [("roformer", lengths, tables_by_slot) for lengths in PROMPTS]
    + [("moss_transcribe_diarize", [21, 9, 15], padding_not_counted)]
    + [(name, [12], the_hosts_own_mask) for name in ("big_bird", "ctrl", "megatron-bert", "rembert")],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_what_goes_by_slot_is_seen(name, lengths, wrong, monkeypatch):
    if name not in architecture_names():
        pytest.skip(f"this transformers has no {name}")
    wrong(monkeypatch)
    assert worst_node_error(tiny_model(name), left_padded(lengths)) > 10 * TOLERANCE


def test_other_threads_keep_a_buffer_that_is_open_here():
    block = tiny_model("gpt_neo").transformer.h[1].attn.attention
    seen = []

    def look():
        seen.append(block.bias[:, :, 4:8, :8])

    closed = block.bias[:, :, 4:8, :8].clone()
    with attention_inputs._all_true(block, "bias"), attention_inputs._all_true(block, "bias"):
        other = threading.Thread(target=look)
        other.start()
        other.join()
        assert block.bias[:, :, 4:8, :8].all()
    assert not closed.all()
    torch.testing.assert_close(seen[0], closed)
    assert isinstance(block.bias, torch.Tensor), "nothing stays on the target"


@pytest.mark.parametrize("lengths", PROMPTS, ids=str)
def test_an_indexers_cache_is_given_back_as_the_hosts_own(lengths):
    target = tiny_model("deepseek_v32")
    options = left_padded(lengths) | {"max_new_tokens": 12, "return_dict_in_generate": True}
    plain = target.generate(**options)
    ours = target.generate(**options, assistant_model=tiny_draft(target))
    torch.testing.assert_close(ours.sequences, plain.sequences)
    for mine, host in zip(ours[CACHE].layers, plain[CACHE].layers, strict=True):
        assert type(mine) is type(host)
        for name in ("keys", "values", INDEXER_KEYS):
            torch.testing.assert_close(getattr(mine, name), getattr(host, name), rtol=1e-4, atol=1e-5)
