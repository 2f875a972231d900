"""Offline features train the same draft, resume, and refuse another target."""

import json

import pytest
import torch
from models import tiny_target
from test_data import word_tokenizer
from training_setup import curve, fresh_draft, written

from hf_eagle3.data.features import CachedTarget, FeatureDataset, FeatureWriter, Provenance, estimate_bytes
from hf_eagle3.target.target import Target


def write(folder, target=None, count: int = 12, **options):
    target = target or tiny_target()
    writer = FeatureWriter(folder, target, fresh_draft(target).config, samples_per_shard=5, **options)
    writer.write(list(written().select(range(count))))
    return writer


def test_training_on_features_follows_the_online_curve(tmp_path):
    """Features are kept in half precision: near, not equal."""
    write(tmp_path / "f", count=48)
    options = {"max_steps": 4}
    online = curve(tmp_path / "online", **options)
    offline = curve(
        tmp_path / "offline",
        target=CachedTarget(tmp_path / "f"),
        draft=fresh_draft(),
        data=FeatureDataset(tmp_path / "f"),
        **options,
    )
    assert offline == pytest.approx(online, rel=5e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_stored_is_what_the_target_gives(tmp_path, dtype):
    target = tiny_target()
    write(tmp_path, target, dtype=dtype)
    data = FeatureDataset(tmp_path)
    assert len(data) == 12
    sample = data[7]
    ids = torch.tensor([written()[7]["input_ids"]])
    assert sample["input_ids"].tolist() == ids[0].tolist()
    features, hidden = Target(target, fresh_draft(target).config).read(ids, torch.ones_like(ids))
    torch.testing.assert_close(sample["target_features"], features[0].to(dtype))
    torch.testing.assert_close(sample["last_hidden_states"], hidden[0].to(dtype))
    assert estimate_bytes(100, Target(target, fresh_draft(target).config)) > 100 * 2 * 4 * 32


def test_an_interrupted_run_goes_on(tmp_path):
    write(tmp_path, count=7)  # shards of 5 and 2
    assert write(tmp_path, count=12).provenance.shards == [5, 2, 5]
    assert [FeatureDataset(tmp_path)[i]["input_ids"].tolist() for i in range(12)] == written()[:12]["input_ids"]


def test_another_target_is_refused(tmp_path):
    write(tmp_path)
    other = tiny_target(seed=5)
    with pytest.raises(ValueError, match="fingerprint"):
        write(tmp_path, other)
    with pytest.raises(ValueError, match="the weights of"):
        CachedTarget(tmp_path, other)
    with pytest.raises(ValueError, match="chat template"):
        CachedTarget(tmp_path, tiny_target(), word_tokenizer())
    CachedTarget(tmp_path, tiny_target())


def test_an_adapter_makes_another_target(tmp_path):
    peft = pytest.importorskip("peft")
    write(tmp_path)
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"])
    adapted = peft.get_peft_model(tiny_target(), config)
    with pytest.raises(ValueError, match="the weights of"):
        CachedTarget(tmp_path, adapted)
    with pytest.raises(ValueError, match="fingerprint"):
        write(tmp_path, adapted.merge_and_unload())


def test_other_samples_are_refused(tmp_path):
    writer = write(tmp_path)
    with pytest.raises(ValueError, match="other samples"):
        writer.write(list(written(seed=4).select(range(12))))


def test_the_heads_bias_is_kept(tmp_path):
    target = tiny_target()
    target.lm_head.bias = torch.nn.Parameter(torch.randn(24))
    write(tmp_path, target)
    hidden = torch.randn(3, 32)
    torch.testing.assert_close(CachedTarget(tmp_path).head(hidden), target.lm_head(hidden))


def test_another_set_up_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="max_length: 2048 there, 16 here"):
        write(tmp_path, max_length=16)
    draft = fresh_draft(target_layer_ids=[0, 2])
    with pytest.raises(ValueError, match="target_layer_ids"):
        CachedTarget(tmp_path).check_fits(draft.config)
    with pytest.raises(ValueError, match="bfloat16 or float16"):
        write(tmp_path / "other", dtype=torch.float32)


def test_a_folder_without_features_or_from_the_future_is_named(tmp_path):
    with pytest.raises(ValueError, match="prepare features"):
        CachedTarget(tmp_path)
    write(tmp_path)
    stored = json.loads((tmp_path / "provenance.json").read_text())
    (tmp_path / "provenance.json").write_text(json.dumps(stored | {"format": 9}))
    with pytest.raises(ValueError, match="format 9"):
        Provenance.read(tmp_path)
