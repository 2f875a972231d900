"""Medusa's and Hydra's heads: which logits a level has, which tokens train which head, published layouts.

the cat sat on the mat       state of "cat", root "sat"      Medusa  head 0: on, head 1: the
                                                             Hydra   head 0 reads "sat", head 1 "sat on"
"""

import json
import logging

import pytest
import torch
import torch.nn.functional as F
from models import left_padded, tiny_heads, tiny_target
from test_generate import assert_same
from torch.testing import assert_close
from training_setup import SETTINGS, written

import hf_eagle3
from hf_eagle3 import HydraDraftConfig, HydraDraftModel, MedusaDraftConfig, MedusaDraftModel
from hf_eagle3.drafters.heads.training import HeadsTrainer, new_heads
from hf_eagle3.model_loading import load_any_draft
from hf_eagle3.target.target import Target
from hf_eagle3.training import Eagle3TrainingArguments


KINDS = {"medusa": MedusaDraftModel, "hydra": HydraDraftModel}


@pytest.fixture(scope="module")
def target():
    return tiny_target()


def reference(draft, state, rows, head: int) -> torch.Tensor:
    """Logits of a head by hand: `state` (H,), embedding `rows` (n, H) of the root and the tokens below it."""
    weights = draft.state_dict()
    if isinstance(draft, MedusaDraftModel):
        for block in range(draft.config.num_layers):
            name = f"medusa_head.{head}.{block}.linear"
            state = state + F.silu(weights[f"{name}.weight"] @ state + weights[f"{name}.bias"])
        return weights[f"medusa_head.{head}.{draft.config.num_layers}.weight"] @ state
    state = torch.cat((state, *rows[: head + 1]))
    for block in range(draft.config.num_layers):
        name = f"hydra_mlp.{head}.{block}"
        passed = state
        if block == 0:
            passed = weights[f"{name}.res_connection.weight"] @ state + weights[f"{name}.res_connection.bias"]
        state = passed + F.silu(weights[f"{name}.linear.weight"] @ state + weights[f"{name}.linear.bias"])
    return weights[f"hydra_lm_head.{head}.weight"] @ state + weights[f"hydra_lm_head.{head}.bias"]


@pytest.mark.parametrize("lengths", [[9], [13, 4, 9]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_nodes_are_scored_by_the_head_of_their_level(target, kind, lengths):
    """Also after some sequences have ended and others accepted more."""
    draft = tiny_heads(KINDS[kind], target, num_layers=2)
    view = draft.with_tree("static", num_draft_tokens=14, tree_depth=3, tree_top_k=3)
    records = []

    class Watch(hf_eagle3.CycleStreamer):
        def on_cycle(self, record):
            records.append(record)

    inputs, length_of = left_padded(lengths), [max(lengths)] * len(lengths)
    options = {"max_new_tokens": 24, "do_sample": False}
    plain = target.generate(**inputs, **options)
    # The first sequence of several ends early, so that the others move up.
    options["eos_token_id"] = int(plain[0, max(lengths) + 6]) if len(lengths) > 1 else None
    out = target.generate(**inputs, assistant_model=view, streamer=Watch(), **options)
    reader, checked = Target(target, draft.config), 0
    for record in records:
        tokens, parents, scores = record.tree_tokens, record.tree_parents, record.tree_scores
        length, start = length_of[record.row], max(lengths) - lengths[record.row]
        length_of[record.row] += len(record.tokens)
        if len(tokens) < 2:
            continue
        text = out[record.row, start:length]
        states, _ = reader.read(text[None, :-1], torch.ones_like(text[None, :-1]))
        for node in range(1, len(tokens)):
            path, above = [tokens[node]], parents[node]
            while above >= 0:
                path.insert(0, tokens[above])
                above = parents[above]
            rows = reader.embedding_rows(torch.tensor(path))
            expected = sum(
                reference(draft, states[0, -1], rows, level).log_softmax(0)[path[level + 1]]
                for level in range(len(path) - 1)
            )
            assert_close(torch.tensor(scores[node]), expected.detach(), rtol=1e-4, atol=1e-4)
            checked += 1
    assert checked > 100
    assert len(lengths) == 1 or length_of[0] < max(length_of)


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_of_the_paper(target, kind, sampling):
    draft = tiny_heads(KINDS[kind], target).with_tree("sparse", sparse_tree="medusa")
    stats = assert_same(target, draft, left_padded([13, 4]), max_new_tokens=30, do_sample=sampling)
    assert (draft.tree_config.num_draft_tokens, stats.mode) == (63, "tree")
    assert stats.num_draft_tokens > 0


def test_shared_noise_predicts_the_sample(target):
    lengths = {}
    for shared in (True, False):
        draft = tiny_heads(HydraDraftModel, target).with_tree(
            "static", num_draft_tokens=20, tree_depth=4, tree_top_k=5, shared_noise=shared
        )
        stats = assert_same(target, draft, left_padded([13, 4, 9]), max_new_tokens=60, do_sample=True)
        lengths[shared] = stats.acceptance_length
    assert lengths[True] > lengths[False] + 0.3


# Training


@pytest.mark.parametrize("kind", KINDS)
def test_each_head_learns_the_token_of_its_level(target, tmp_path, kind):
    """The loss of packed samples equals a loop over positions, Medusa's with lambda_k = 0.8^k."""
    draft = tiny_heads(KINDS[kind], target, num_heads=3).train()
    with torch.no_grad():  # so that every input matters
        for parameter in draft.parameters():
            parameter.mul_(5) if parameter.dim() > 1 else None
    args = Eagle3TrainingArguments.from_recipe(
        kind, output_dir=str(tmp_path), **SETTINGS | {"max_length": 64, "packing": True}
    )
    run = HeadsTrainer(model=draft, target_model=target, args=args, train_dataset=written())
    batch = run.data_collator([run.train_dataset[i] for i in range(5)])
    found = run.compute_loss(draft, batch)
    reader, total = Target(target, draft.config), 0.0
    sums, counts = [0.0] * 3, [0] * 3
    for i in range(5):
        ids, mask = (torch.tensor(run.train_dataset[i][name]) for name in ("input_ids", "loss_mask"))
        states, _ = reader.read(ids[None], torch.ones_like(ids[None]))
        logits = reader.head(states[0]).detach()
        for head in range(3):
            for place in range(len(ids) - 2 - head):
                label = place + 2 + head
                if mask[label]:
                    rows = reader.embedding_rows(ids[place + 1 : label])
                    own = reference(draft, states[0, place], rows, head).log_softmax(0)
                    wanted = F.one_hot(ids[label], 24).float() if kind == "medusa" else logits[label - 1].softmax(0)
                    sums[head] -= float((wanted * own).sum())
                    counts[head] += 1
    decay = 0.8 if kind == "medusa" else 1.0
    total = sum(decay**head * sums[head] / counts[head] for head in range(3))
    assert_close(found.detach(), torch.tensor(total), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_training_reduces_the_loss_and_reports_levels(target, tmp_path, kind):
    torch.manual_seed(1)
    settings = SETTINGS | {"max_steps": 20, "learning_rate": 5e-3, "warmup_steps": 0}
    args = Eagle3TrainingArguments.from_recipe(kind, output_dir=str(tmp_path), **settings)
    run = HeadsTrainer(
        model=new_heads(KINDS[kind], target, num_heads=3), target_model=target, args=args, train_dataset=written()
    )
    before = run.evaluate(written(16, 1))
    run.train()
    after = run.evaluate(written(16, 1))
    assert after["eval_loss"] < before["eval_loss"] - 0.02
    assert {"eval_accuracy_0", "eval_accuracy_2", "eval_simulated_acceptance_length"} <= after.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_new_heads_begin_as_the_targets_head(target, kind):
    draft = new_heads(KINDS[kind], target)
    state = torch.randn(1, 1, 32)
    inputs = state if kind == "medusa" else torch.cat((state, torch.zeros(1, 1, 64)), dim=2)
    own = target.lm_head(state).softmax(-1)
    assert_close(draft.logits(1, inputs).softmax(-1), own, rtol=0.5, atol=0.05)
    with pytest.raises(ValueError, match="has no field 'depth'"):
        new_heads(KINDS[kind], target, depth=3)
    args = Eagle3TrainingArguments(output_dir="unused", use_cpu=True, feature_loss_weight=1.0)
    with pytest.raises(ValueError, match="`feature_loss_weight`"):
        HeadsTrainer(model=draft, target_model=target, args=args, train_dataset=written())


# Files


def written_as(folder, draft, layout: str) -> None:
    """The checkpoint `draft` in a published layout, with what its `config.json` says there."""
    tensors, config = draft.state_dict(), draft.config
    if layout == "FasterDecoding":  # two heads are named where there are five
        torch.save({name.removeprefix("medusa_head."): x for name, x in tensors.items()}, folder / "medusa_lm_head.pt")
        raw = {"base_model_name_or_path": "lmsys/vicuna-7b-v1.3", "medusa_num_heads": 2, "medusa_num_layers": 1}
    elif layout == "vLLM":
        named, last = {}, f".{config.num_layers}.weight"
        for name, x in tensors.items():
            _, head, *rest = name.split(".")
            if name.endswith(f"{head}{last}"):
                named[f"lm_heads.{head}.weight"] = x
            else:
                named[f"blocks.{head}.layers.{rest[0]}.{rest[-1]}"] = x
        torch.save(named, folder / "pytorch_model.bin")
        raw = {"model_type": "medusa", "num_heads": 5, "num_hidden_layers": 1, "hidden_size": 32, "vocab_size": 24}
        raw |= {"truncated_vocab_size": 24}
    else:
        torch.save(tensors, folder / "hydra_lm_head.pt")
        raw = {"hydra_num_heads": 4, "hydra_num_layers": 2, "hydra_head_arch": "mlp", "grounded_heads": True}
        raw |= {"base_model_name_or_path": "lmsys/vicuna-7b-v1.3", "hidden_state_offset": 0}
    (folder / "config.json").write_text(json.dumps(raw))


LAYOUTS = {
    "FasterDecoding": (MedusaDraftModel, {}),
    "FasterDecoding, no blocks": (MedusaDraftModel, {"num_layers": 0}),
    "vLLM": (MedusaDraftModel, {}),
    "vLLM, two blocks": (MedusaDraftModel, {"num_layers": 2}),
    "ankner": (HydraDraftModel, {"num_layers": 2}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_layout_loads(target, tmp_path, layout, caplog):
    kind, fields = LAYOUTS[layout]
    draft = tiny_heads(kind, target, **fields)
    written_as(tmp_path, draft, layout.partition(",")[0])
    for loaded in (kind.from_pretrained(tmp_path), load_any_draft(str(tmp_path))):
        assert (loaded.config.num_heads, loaded.config.num_layers) == (draft.config.num_heads, draft.config.num_layers)
        assert loaded.state_dict().keys() == draft.state_dict().keys()
        for name, tensor in draft.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    if "vLLM" not in layout:
        assert loaded.config.target_name_or_path == "lmsys/vicuna-7b-v1.3"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_loads_by_its_folder(target, tmp_path, kind, caplog):
    draft = tiny_heads(KINDS[kind], target, num_heads=3)
    draft.with_tree("sparse", sparse_tree="medusa").save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = KINDS[kind].from_pretrained(tmp_path)
    assert not caplog.text
    assert loaded.config.to_diff_dict() == draft.config.to_diff_dict()
    assert loaded.tree_config.tree_mode == "sparse"
    stats = assert_same(target, str(tmp_path), left_padded([9]), max_new_tokens=20, do_sample=False)
    assert max(map(max, stats.accepted_tokens)) <= 3  # as many as heads


@pytest.mark.parametrize(
    ("config", "raw", "message"),
    [
        (
            HydraDraftConfig,
            {"hydra_num_heads": 4, "hydra_head_arch": "prefix-mlp"},
            "`hydra_head_arch` is 'prefix-mlp'",
        ),
        (HydraDraftConfig, {"hydra_num_heads": 4, "grounded_heads": False}, "`grounded_heads` is False"),
        (HydraDraftConfig, {"medusa_num_heads": 4}, "no set of Hydra heads"),
        (MedusaDraftConfig, {"vocab_size": 8}, "no set of Medusa heads"),
        (
            MedusaDraftConfig,
            {"model_type": "medusa", "architectures": ["MedusaModel"], "vocab_size": 24, "truncated_vocab_size": 8},
            "`truncated_vocab_size` is 8",
        ),
        (MedusaDraftConfig, {"medusa_num_heads": 400}, "`num_heads` is 400"),
        (HydraDraftConfig, {"hydra_num_heads": 4, "hydra_num_layers": 0}, "`num_layers` is 0"),
    ],
    ids=lambda x: "",
)
def test_other_files_are_refused(config, raw, message):
    with pytest.raises(ValueError, match=message):
        config.from_dict(raw)


def test_a_missing_tensor_is_named(target, tmp_path):
    tensors = tiny_heads(MedusaDraftModel, target).state_dict()
    tensors.pop("medusa_head.1.0.linear.weight")
    torch.save(tensors, tmp_path / "medusa_lm_head.pt")
    (tmp_path / "config.json").write_text(json.dumps({"medusa_num_heads": 5, "medusa_num_layers": 1}))
    with pytest.raises(ValueError, match=r"`medusa_head.1.0.linear.weight` is missing"):
        MedusaDraftModel.from_pretrained(tmp_path)
