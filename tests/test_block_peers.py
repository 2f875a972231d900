"""Block drafters' states, losses and gradients of their own projects' code, recorded on tiny random weights.

tests/data/parity/block: a folder as each project's `save_pretrained` wrote it; beside it features of nine past
positions, embedding rows of a block, and the states that the project's own pass over them gave, with and without its
cache, eager and sdpa.
"""

import json
import shutil

import pytest
import torch
from conftest import DATA
from safetensors.torch import load_file
from torch.testing import assert_close

from hf_eagle3.drafters.block.configuration import BlockDraftConfig
from hf_eagle3.drafters.block.modeling import BlockDraftModel


PARITY = DATA / "parity" / "block"
# project: (tapped layers, positions of a block see later ones, per layer, tokens predicted per pass)
PEERS = {
    "zlab": ([1, 4, 8], [True, True], 5),
    "zlab_no_ids": ([1, 9], [True, True], 5),  # by their rule, of a target of 12 layers
    "jetspec": ([1, 9], [False, False], 5),
    "deepspec": ([1, 4, 8], [True, True], 5),  # five positions, of which the first predicts already
    "muse": ([1, 4, 8], [True, True], 5),
}


def ours(name: str, **overrides) -> tuple[BlockDraftModel, torch.Tensor]:
    draft = BlockDraftModel.from_pretrained(PARITY / name, dtype=torch.float32, **overrides).eval()
    recorded = load_file(PARITY / f"{name}.safetensors")
    with torch.no_grad():
        return draft, draft(recorded["embeds"], recorded["features"]), recorded["states"]


@pytest.mark.parametrize("name", PEERS)
def test_states_equal_the_recorded_ones(name):
    draft, states, expected = ours(name)
    config, (taps, sees_later, predictions) = draft.config, PEERS[name]
    assert config.target_layer_ids == taps
    assert [config.sees_later(layer) for layer in range(2)] == sees_later
    assert (config.num_predictions, draft.predictions(states).shape[1]) == (predictions, predictions)
    assert config.mask_token_id == 19
    assert_close(states, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["zlab", "jetspec"])
def test_the_wrong_mask_inside_the_block_would_be_seen(name):
    _, states, expected = ours(name, is_causal=name == "zlab")
    assert (states - expected).abs().max() > 0.05


@pytest.mark.parametrize("name", PEERS)
def test_what_is_saved_has_the_same_states(name, tmp_path):
    draft, states, _ = ours(name)
    draft.save_pretrained(tmp_path)
    again = BlockDraftModel.from_pretrained(tmp_path)
    recorded = load_file(PARITY / f"{name}.safetensors")
    with torch.no_grad():
        assert torch.equal(again(recorded["embeds"], recorded["features"]), states)
    theirs, written = ((load_file(folder / "model.safetensors").keys()) for folder in (PARITY / name, tmp_path))
    if name != "muse":  # written in z-lab's layout
        assert theirs == written


@pytest.mark.parametrize("name", ["zlab", "jetspec", "deepspec"])
def test_saved_configurations_have_what_their_code_reads(name, tmp_path):
    """The keys that their model classes look up, with the values of the file that was loaded."""
    ours(name)[0].save_pretrained(tmp_path)
    raw, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, PARITY / name))
    top = ("architectures", "block_size", "num_target_layers", "layer_types", "head_dim", "vocab_size", "rms_norm_eps")
    deepspec = ("mask_token_id", "target_layer_ids", "markov_rank", "enable_confidence_head")
    for key in (*top, *(deepspec if name == "deepspec" else ())):
        assert raw[key] == theirs[key], key
    assert raw["rope_parameters"]["rope_theta"] == theirs["rope_parameters"]["rope_theta"]
    if name == "deepspec":
        assert "num_anchors" in raw
    else:
        assert theirs["dflash_config"].items() <= raw["dflash_config"].items()


def changed(tmp_path, name: str, change) -> str:
    """A copy of a peer's folder with its configuration changed."""
    folder = shutil.copytree(PARITY / name, tmp_path / "draft")
    raw = json.loads((folder / "config.json").read_text())
    change(raw)
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


OF_BLOCKS = ("architectures", "block_size", "dflash_config")
REFUSED = {
    "a block of one": ("zlab", lambda raw: raw.update(block_size=1), "`block_size` is 1"),
    "no block": ("zlab", lambda raw: raw.pop("block_size"), "`block_size` is missing"),
    "no mask": ("zlab", lambda raw: raw["dflash_config"].pop("mask_token_id"), "`mask_token_id` is missing"),
    "a mask that is no token": ("zlab", lambda raw: raw["dflash_config"].update(mask_token_id=20), "`mask_token_id`"),
    "a Markov head": ("deepspec", lambda raw: raw.update(markov_rank=4), "Markov"),
    "a confidence head": ("deepspec", lambda raw: raw.update(enable_confidence_head=True), "confidence"),
    "a projector": ("zlab", lambda raw: raw["dflash_config"].update(projector_type="domino"), "projector"),
    "DFlash 2": ("zlab", lambda raw: raw.update(architectures=["DFlash2DraftModel"]), "DFlash2DraftModel"),
    "an unknown key": ("zlab", lambda raw: raw["dflash_config"].update(use_swa=True), "use_swa"),
    "no features": ("zlab", lambda raw: raw["dflash_config"].update(use_aux_hidden_state=False), "no features"),
    "two answers": ("jetspec", lambda raw: raw["dflash_config"].update(causal=False), "disagree"),
    "other taps": ("zlab", lambda raw: raw["dflash_config"].update(target_layer_ids=[1, 2]), "fc.weight"),
    "no taps": ("zlab_no_ids", lambda raw: raw.pop("num_target_layers"), "`target_layer_ids` is missing"),
    "an ordinary model": ("zlab", lambda raw: [raw.pop(name) for name in OF_BLOCKS], "no block drafter"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_compute_something_else_is_refused(case, tmp_path):
    name, change, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        BlockDraftModel.from_pretrained(changed(tmp_path, name, change))


def test_loading_is_strict(tmp_path):
    from safetensors.torch import save_file

    folder = changed(tmp_path, "zlab", lambda raw: None)
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.1.self_attn.q_normal.weight"] = tensors.pop("layers.1.self_attn.q_norm.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"q_norm.weight` is missing(.|\n)*q_normal"):
        BlockDraftModel.from_pretrained(folder)


def test_files_that_do_not_say_are_causal_in_sliding_layers_only(tmp_path):
    def slide(raw):
        raw.update(layer_types=["sliding_attention", "full_attention"], sliding_window=4, use_sliding_window=True)

    config = BlockDraftConfig.from_pretrained(changed(tmp_path, "zlab", slide))
    assert [config.sees_later(layer) for layer in range(2)] == [False, True]
    assert [config.window(layer) for layer in range(2)] == [4, None]
