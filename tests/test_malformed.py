"""Repositories that are broken or hostile: each ends in an error that names what is wrong, quickly, and runs nothing.

Every case is a change to the files of a good draft. A file `ran` beside it would tell that code of the case was run.
"""

import json
import os
import pickle
import struct
import time
import zipfile

import pytest
import torch
from conftest import DATA
from local_hub import hub  # noqa: F401
from safetensors.torch import load_file, save_file

from hf_eagle3 import Eagle3DraftModel
from hf_eagle3.cli import main


GOOD = DATA / "parity" / "specforge_tiny"
PLENTY = 10**12


def files_of_a_good_draft() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in GOOD.iterdir()}


class Trap:
    """Unpickling it without care leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def config(**changes):
    def edit(folder, ran):
        raw = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))

    return edit


def content(name, data):
    return lambda folder, ran: (folder / name).write_bytes(data)


def tensors(edit):
    def change(folder, ran):
        stored = load_file(folder / "model.safetensors")
        edit(stored)
        save_file(stored, folder / "model.safetensors")

    return change


def binary(make):
    """`pytorch_model.bin` instead."""

    def change(folder, ran):
        stored = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        make(folder / "pytorch_model.bin", stored, ran)

    return change


def index(name):
    """An index whose shard has another name; the good file lies there."""

    def change(folder, ran):
        data = (folder / "model.safetensors").read_bytes()
        names = list(load_file(folder / "model.safetensors"))
        (folder / "model.safetensors").unlink()
        (folder.parent / "outside.safetensors").write_bytes(data)
        weight_map = dict.fromkeys(names, name.format(outside=folder.parent / "outside.safetensors"))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return change


def truncated(share):
    def change(folder, ran):
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: int(len(data) * share)])

    return change


def header(**entry):
    """A safetensors file whose header promises what the file does not hold."""

    def change(folder, ran):
        text = json.dumps({"fc.weight": {"dtype": "F32", "shape": [64, 192], "data_offsets": [0, 8]} | entry}).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))

    return change


def zip_bomb(path, stored, ran):
    """A view of any shape over one stored value."""
    torch.save(stored | {"fc.weight": torch.zeros(1).expand(10**6, 10**6)}, path)


def old_pickle(path, stored, ran):
    path.write_bytes(pickle.dumps({"fc.weight": Trap(ran)}))


def hidden_pickle(path, stored, ran):
    torch.save(stored, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, pickle.dumps(Trap(ran)) if name.endswith("data.pkl") else data)


CASES = {
    "truncated weights": (truncated(0.6), "damaged"),
    "empty weights": (truncated(0), "damaged"),
    "a header of exabytes": (content("model.safetensors", struct.pack("<Q", 2**62) + b"{}"), "damaged"),
    "a shape beyond the file": (header(shape=[PLENTY, PLENTY], data_offsets=[0, 4 * PLENTY**2 % 2**60]), "damaged"),
    "offsets beyond the file": (header(data_offsets=[0, 64 * 192 * 4]), "damaged"),
    "a web page as weights": (content("model.safetensors", b"<html>Not found</html>" * 9), "damaged"),
    "no weights": (lambda folder, ran: (folder / "model.safetensors").unlink(), "no weights"),
    "no configuration": (lambda folder, ran: (folder / "config.json").unlink(), r"config\.json"),
    "a configuration cut short": (content("config.json", b'{"vocab_size": 12'), "not valid JSON"),
    "a configuration that is a list": (content("config.json", b"[1, 2]"), "contains a list"),
    "a configuration that is nested deeply": (content("config.json", b"[" * 10**5), "not valid JSON"),
    "no vocabulary": (config(vocab_size=...), "`vocab_size` is missing"),
    "a text where a number stands": (config(hidden_size="many"), "hidden_size"),
    "a number below zero": (config(num_attention_heads=-4), "`num_attention_heads` is -4"),
    "a vocabulary of terabytes": (config(vocab_size=PLENTY), "`vocab_size` is 1000000000000"),
    "a width of terabytes": (config(hidden_size=PLENTY, head_dim=16), "`hidden_size` is 1000000000000"),
    "a billion tapped layers": (
        config(num_aux_hidden_states=10**9, fc_norm=True),
        "`num_tapped_layers` is 1000000000",
    ),
    "layers that are no numbers": (
        config(eagle_aux_hidden_state_layer_ids=["a", "b"]),
        "is not a draft configuration",
    ),
    "a width that the weights are not": (config(hidden_size=128), "config.json implies"),
    "an ordinary model": (config(draft_vocab_size=..., architectures=["LlamaForCausalLM"]), "not an EAGLE-3 draft"),
    "another speculator": (config(speculators_model_type="mlp", transformer_layer_config={}), "speculators `mlp`"),
    "a layer after a gap": (
        tensors(lambda t: t.update({"layers.999999999.norm.weight": torch.ones(1)})),
        r"decoder layers \[999999999\] but no layer 1",
    ),
    "a shard above the folder": (index("../outside.safetensors"), "only plain file names"),
    "a shard at the root": (index("{outside}"), "only plain file names"),
    "a shard that is code": (index("trap.py"), "only plain file names"),
    "an index of nothing": (
        lambda folder, ran: (
            (folder / "model.safetensors").unlink(),
            (folder / "model.safetensors.index.json").write_text("{}"),
        ),
        "no `weight_map`",
    ),
    "a pickle with code": (binary(old_pickle), r"(?i)damaged|weights.only"),
    "a pickle with code in an archive": (binary(hidden_pickle), r"(?i)damaged|weights.only"),
    "a view of terabytes": (binary(zip_bomb), "declares shape"),
    "a list of tensors": (binary(lambda path, t, ran: torch.save(list(t.values()), path)), "a dictionary of tensors"),
    "values that are no numbers": (tensors(lambda t: t["norm.weight"].fill_(torch.inf)), "NaN or infinite"),
    "a tree that cannot be": (
        content("generation_config.json", b'{"tree_mode": "static", "num_draft_tokens": 1000000}'),
        "`num_draft_tokens`",
    ),
    "a generation configuration cut short": (content("generation_config.json", b"{"), "generation_config"),
}


@pytest.fixture
def broken(tmp_path):
    """A folder to break."""
    (tmp_path / "draft").mkdir()
    for name, data in files_of_a_good_draft().items():
        (tmp_path / "draft" / name).write_bytes(data)
    return tmp_path / "draft"


def test_the_files_are_good_before(broken):
    Eagle3DraftModel.from_pretrained(broken)


@pytest.mark.parametrize("case", CASES)
def test_a_malformed_repository_says_what_is_wrong(broken, tmp_path, case):
    change, message = CASES[case]
    change(broken, tmp_path / "ran")
    start = time.monotonic()
    with pytest.raises((ValueError, OSError), match=message):
        Eagle3DraftModel.from_pretrained(broken)
    assert time.monotonic() - start < 5
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("case", ["a pickle with code", "a shard above the folder", "a vocabulary of terabytes"])
def test_the_same_from_the_hub_and_in_one_line(hub, broken, tmp_path, capsys, case):  # noqa: F811
    change, message = CASES[case]
    change(broken, tmp_path / "ran")
    hub.put("evil/draft", broken)
    assert main(["convert", "evil/draft", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "hf-eagle3 convert: " in error
    with pytest.raises((ValueError, OSError), match=message):
        raise ValueError(error)
    assert not (tmp_path / "ran").exists()
    assert not any("outside" in path for _, path in hub.log)


def test_the_traps_work(tmp_path):
    """Careless unpickling does run them."""
    old_pickle(tmp_path / "x.bin", {}, tmp_path / "ran")
    pickle.loads((tmp_path / "x.bin").read_bytes())
    assert (tmp_path / "ran").exists()
