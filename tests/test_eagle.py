"""EAGLE's draft and its kin: the layer by hand, what it reads, trees of a given shape, losses, published files.

root      ranks of the tree "eagle": 4 children of the root, 3 2 2 1 of those, 3 2 2 1 of their first, 3, 2
"""

import json

import pytest
import torch
import torch.nn.functional as F
from models import TREE_TARGETS, left_padded, tiny_draft, tiny_eagle, tiny_target
from replica_data import REPLICAS
from safetensors.torch import save_file
from test_generate import assert_same
from torch.testing import assert_close
from training_setup import SETTINGS, written
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaDecoderLayer, LlamaRotaryEmbedding

import hf_eagle3
from hf_eagle3 import EagleDraftConfig, EagleDraftModel
from hf_eagle3.drafters.eagle.training import new_eagle_draft
from hf_eagle3.generation.draft.eagle3 import Eagle3Drafter
from hf_eagle3.target.target import Target
from hf_eagle3.training import Eagle3Trainer, Eagle3TrainingArguments
from hf_eagle3.training.losses import TargetDistribution, top_k_cross_entropy


def test_the_layer_is_llamas_without_its_first_norm():
    """Embeddings first, then features; nothing is normed before attention or after the layer."""
    draft = tiny_eagle(tiny_target())
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        rms_norm_eps=draft.config.rms_norm_eps, attn_implementation="eager",
    )  # fmt: skip
    layer = LlamaDecoderLayer(config, 0).eval()
    layer.input_layernorm = torch.nn.Identity()
    own = {name.removeprefix("layers.0."): x for name, x in draft.state_dict().items() if name.startswith("layers.0.")}
    layer.load_state_dict(own)
    embeds, features = torch.randn(2, 1, 7, 32)
    states = F.linear(torch.cat((embeds, features), dim=-1), draft.fc.weight, draft.fc.bias)
    rotary = LlamaRotaryEmbedding(config)(states, torch.arange(7)[None])
    mask = torch.full((7, 7), torch.finfo(torch.float32).min).triu(1)[None, None]
    expected = layer(states, attention_mask=mask, position_embeddings=rotary)
    expected = expected[0] if isinstance(expected, tuple) else expected
    found = draft.decode(embeds, features, draft.rotary(torch.arange(7)[None], torch.float32), _causal())[1]
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


def _causal():
    from hf_eagle3.draft_layers import causal_attend

    return causal_attend()


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
@pytest.mark.parametrize("name", TREE_TARGETS)
def test_it_reads_the_input_of_the_targets_head(name, static, monkeypatch):
    """Of every committed token, however it was committed: by hooks, or from the outputs over static shapes."""
    target, seen = tiny_target(name), []
    with torch.no_grad():  # else the norm before the head only scales, and what comes before it would do as well
        for parameter in target.parameters():
            if parameter.dim() == 1:
                parameter.copy_(0.5 + torch.rand(parameter.shape))
    start, extend = Eagle3Drafter.start, Eagle3Drafter.extend

    def started(self, prompt):
        seen.append(prompt.features)
        start(self, prompt)

    def extended(self, inputs):
        seen.append(inputs.features[:, : inputs.counts[0]])
        extend(self, inputs)

    monkeypatch.setattr(Eagle3Drafter, "start", started)
    monkeypatch.setattr(Eagle3Drafter, "extend", extended)
    view = tiny_eagle(target).with_tree("static", num_draft_tokens=12, tree_depth=3, tree_top_k=4)
    options = {"max_new_tokens": 20, "do_sample": False} | ({"cache_implementation": "static"} if static else {})
    inputs = left_padded([9])
    out = target.generate(**inputs, assistant_model=view, **options)
    states = torch.cat(seen, dim=1)
    assert states.shape[1] > 20
    expected = target.get_decoder()(out[:, : states.shape[1]]).last_hidden_state
    assert_close(states, expected, rtol=1e-3, atol=1e-3)
    assert_close(target.get_output_embeddings()(expected), target(out[:, : states.shape[1]]).logits, rtol=1, atol=1)
    assert_same(target, view, inputs, **options)


def test_a_target_that_hides_its_heads_input_is_refused(monkeypatch):
    target = tiny_target()
    monkeypatch.setattr("hf_eagle3.target.target.decoder_of", lambda model, layers: model)
    with pytest.raises(ValueError, match="reads the input of the target's head"):
        Target(target, tiny_eagle(target).config)


# Trees of a given shape

EAGLE = """0 1 2 3 00 01 02 10 11 20 21 30 000 001 002 010 011 020 021 100 0000 0001 0002 00000 00001"""
MEDUSA = """0 1 2 3 4 5 6 7 8 9 00 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 20 21 22 30 31 40 50 60 70 80 90
000 001 002 003 004 005 006 007 008 009 010 011 012 020 021 030 040 050 060 070 100 101 200 0000 0001"""


def ranks(tree) -> list[str]:
    """Every node by the places of its ancestors and itself among their siblings."""
    names, children = {0: ""}, {}
    for node, parent in list(enumerate(tree.parents[0].tolist()))[1:]:
        names[node] = names[parent] + str(children.get(parent, 0))
        children[parent] = children.get(parent, 0) + 1
    return sorted(name for name in names.values() if name)


@pytest.mark.parametrize(("shape", "wanted"), [("eagle", EAGLE), ("medusa", MEDUSA)])
def test_trees_have_the_shape_of_their_papers(shape, wanted, monkeypatch):
    """Children are the draft's best in order, whatever their probability."""
    target, trees = tiny_target(), []
    grow = Eagle3Drafter.grow
    monkeypatch.setattr(Eagle3Drafter, "grow", lambda self, *given: trees.append(grow(self, *given)) or trees[-1])
    draft = tiny_eagle(target)
    assert_same(target, draft.with_tree("sparse", sparse_tree=shape), left_padded([9, 4]), max_new_tokens=20)
    assert ranks(trees[0]) == sorted(wanted.split())
    first = trees[0].tokens[0, 1:][trees[0].depths[0, 1:] == 1]
    whole = draft.with_tree("static", num_draft_tokens=20, tree_depth=1, tree_top_k=20)
    trees.clear()
    assert_same(target, whole, left_padded([9, 4]), max_new_tokens=20)
    assert first.tolist() == trees[0].tokens[0, 1 : 1 + len(first)].tolist()


@pytest.mark.parametrize(
    "options", [{"do_sample": True}, {"num_assistant_tokens": 3}, {"eos_token_id": [5, 6]}], ids=str
)
def test_shapes_serve_other_drafts_and_are_cut(options):
    target = tiny_target()
    small = hf_eagle3.SmallModelDraft(tiny_target(num_hidden_layers=2))
    for draft in (
        tiny_draft(target, draft_vocab_size=12),
        small,
        tiny_draft(target, draft_vocab_size=12).with_suffix(),
    ):
        view = draft.with_tree("sparse", sparse_tree="medusa")
        assert_same(target, view, left_padded([13, 4, 9]), max_new_tokens=25, **options)
    cut = tiny_eagle(target).with_tree("sparse", num_draft_tokens=6, tree_depth=2).tree_config
    assert (cut.num_draft_tokens, cut.tree_depth, cut.tree_top_k) == (6, 2, 4)


def test_shapes_that_do_not_go_are_refused():
    target = tiny_target()
    with pytest.raises(ValueError, match="`sparse_tree` is 'oak'"):
        tiny_eagle(target).with_tree("sparse", sparse_tree="oak")
    with pytest.raises(ValueError, match="'sparse' does not go with a SuffixDraft"):
        hf_eagle3.SuffixDraft().with_tree("sparse")
    block = hf_eagle3.BlockDraftModel(hf_eagle3.BlockDraftConfig.from_target(target, num_hidden_layers=1))
    with pytest.raises(ValueError, match="'sparse' does not go with a BlockDraftModel"):
        target.generate(**left_padded([9]), assistant_model=block.with_tree("sparse"))


# Training


def run(folder, recipe: str, draft=None, **arguments) -> Eagle3Trainer:
    target = tiny_target()
    torch.manual_seed(1)
    draft = draft or new_eagle_draft(target)
    settings = SETTINGS | {"warmup_steps": 0} | arguments
    args = Eagle3TrainingArguments.from_recipe(recipe, output_dir=str(folder), **settings)
    return Eagle3Trainer(model=draft, target_model=target, args=args, train_dataset=written())


@pytest.mark.parametrize("recipe", ["eagle", "hass"])
def test_the_loss_is_the_papers(recipe, tmp_path):
    """EAGLE: smooth L1 of features + 0.1 cross-entropy. HASS: three steps, and the ten likeliest tokens'."""
    trainer = run(tmp_path, recipe, tiny_eagle(tiny_target()).train(), feature_noise=0.0)
    draft, batch = trainer.model, trainer.data_collator([trainer.train_dataset[0]])
    found = trainer.compute_loss(draft, batch).detach()
    ids, mask = batch["input_ids"], batch["loss_mask"][0]
    reader = Target(tiny_target(), draft.config)
    features, hidden = reader.read(ids, torch.ones_like(ids))
    assert_close(features, hidden)
    embeds, length, total = reader.embedding_rows(ids), ids.shape[1], 0.0
    for step in range(1 if recipe == "eagle" else 3):
        loss, count = 0.0, 0
        for place in range(length - 2 - step):  # one draft after the other, as in drafting
            states, label = features[:, : place + 1], place + 2 + step
            if not mask[label]:
                continue
            for done in range(step + 1):
                width = place + 1 + done
                rotary = draft.rotary(torch.arange(width)[None], torch.float32)
                out = draft.decode(embeds[:, 1 : width + 1], states, rotary, _causal())[1][:, -1:]
                states = torch.cat((states, out), dim=1)
            p, q = reader.head(hidden[0, label - 1]).softmax(-1), reader.head(out[0, 0]).log_softmax(-1)
            loss += F.smooth_l1_loss(out[0, 0], hidden[0, label - 1]) - 0.1 * (p * q).sum()
            if recipe == "hass":
                best = p.topk(10).indices
                loss -= (p[best] * q[best]).sum()
            count += 1
        total += loss.detach() / count
    assert_close(found, total, rtol=1e-4, atol=1e-4)


def test_the_likeliest_tokens_alone():
    target = TargetDistribution.from_logits(torch.tensor([[0.5, 0.3, 0.2]]).log(), None)
    draft = torch.tensor([[0.2, 0.2, 0.6]]).log()
    expected = -(0.5 * torch.tensor(0.2).log() + 0.3 * torch.tensor(0.2).log())
    assert_close(top_k_cross_entropy(target, draft, 2), expected[None])


@pytest.mark.parametrize("recipe", ["eagle", "hass"])
def test_training_reduces_the_loss(recipe, tmp_path):
    trainer = run(tmp_path, recipe, max_steps=20, learning_rate=5e-3)
    before = trainer.evaluate(written(16, 1))
    trainer.train()
    after = trainer.evaluate(written(16, 1))
    assert after["eval_loss"] < 0.95 * before["eval_loss"]
    assert after["eval_acceptance_0"] > before["eval_acceptance_0"] + 0.01


def test_noise_on_features_is_for_training_only(tmp_path):
    trainer = run(tmp_path, "eagle", feature_noise=0.5)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    losses = {}
    for mode in (True, False):
        draft = trainer.model.train(mode)
        losses[mode] = {trainer.compute_loss(draft, batch).item() for _ in range(3)}
    assert (len(losses[True]), len(losses[False])) == (3, 1)


def test_new_drafts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="has no field 'taps'"):
        new_eagle_draft(tiny_target(), taps=3)
    with pytest.raises(ValueError, match="it predicts the target's features"):
        new_eagle_draft(tiny_target(), hidden_size=64)


# Files

PUBLISHED = [r for r in REPLICAS if r.refused == "is an EAGLE-1/2 draft"]
LAYER = "layers.0."


@pytest.mark.parametrize("replica", PUBLISHED, ids=lambda r: r.repository)
def test_a_published_layout_loads(tmp_path, replica):
    draft = tiny_eagle(tiny_target(), fc_bias="Vicuna" in replica.repository, has_embed_tokens=True)
    tensors = draft.state_dict()
    assert all(name.startswith((LAYER, "fc.", "embed_tokens.")) for name in tensors)
    assert f"{LAYER}input_layernorm.weight" not in tensors
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"vocab_size": 24, "rms_norm_eps": draft.config.rms_norm_eps, "head_dim": 8}
    inner = replica.config.get("model", replica.config) | sizes
    raw = {"model_type": "eagle", "model": inner} if "model" in replica.config else inner
    (tmp_path / "config.json").write_text(json.dumps(raw))
    save_file({name: x.contiguous() for name, x in tensors.items()}, tmp_path / "model.safetensors")
    loaded = EagleDraftModel.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == tensors.keys()
    assert loaded.config.rope_parameters["rope_theta"] == 10000.0
    assert_same(tiny_target(), loaded, left_padded([9]), max_new_tokens=12, do_sample=False)


def test_what_is_saved_loads_by_its_folder(tmp_path):
    target, draft = tiny_target(), tiny_eagle(tiny_target())
    draft.with_tree("sparse").save_pretrained(tmp_path)
    loaded = EagleDraftModel.from_pretrained(tmp_path)
    assert loaded.config.to_diff_dict() == draft.config.to_diff_dict()
    assert loaded.tree_config == draft.with_tree("sparse").tree_config
    stats = assert_same(target, str(tmp_path), left_padded([13, 4]), max_new_tokens=20, do_sample=False)
    assert stats.num_draft_tokens > 0
    with pytest.raises(ValueError, match="no EAGLE-3 draft"):
        hf_eagle3.Eagle3DraftModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"draft_vocab_size": 8, "vocab_size": 24}, "has `draft_vocab_size`"),
        ({"speculators_model_type": "eagle", "vocab_size": 24}, "`speculators_model_type` eagle"),
        ({"medusa_num_heads": 3, "vocab_size": 24}, "`medusa_num_heads`"),
        ({"hidden_size": 32}, "`vocab_size` is missing"),
    ],
    ids=str,
)
def test_other_files_are_refused(raw, message):
    with pytest.raises(ValueError, match=message):
        EagleDraftConfig.from_dict(raw)
