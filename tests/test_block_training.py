"""Training of block drafters: which blocks, what they see, what they lose; the command that trains and serves one.

0 1 2 3 4 5 6   tokens
. . 1 1 1 1 .   loss mask       an anchor was generated, and what follows it counts: 2, 3, 4
                                the block of 3 below anchor 3 predicts 4 and 5, below anchor 4 only 5
"""

import json

import pytest
import torch
from conftest import DATA
from models import left_padded, tiny_target
from safetensors.torch import load_file
from test_generate import assert_same
from torch.testing import assert_close
from training_setup import SETTINGS, written

from hf_eagle3.cli import main
from hf_eagle3.drafters.block import objective
from hf_eagle3.drafters.block.modeling import BlockDraftModel
from hf_eagle3.drafters.block.objective import BlockObjective, block_states, blocks_of, compute_losses, sample_anchors
from hf_eagle3.drafters.block.training import BlockTrainer, new_block_draft
from hf_eagle3.hub.trained import training_rows
from hf_eagle3.training import Eagle3TrainingArguments
from hf_eagle3.training.best import OverTrainingNotice


PARITY = DATA / "parity" / "block"
MASKS = {
    "loss_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 0], [1, 1, 1, 0, 1, 1, 1]]),
    "document_ids": torch.tensor([[0] * 7, [0, 0, 0, 0, 1, 1, 1]]),
    "position_ids": torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 0, 1, 2]]),
}


def test_anchors_were_generated_and_what_follows_counts():
    assert sample_anchors(**MASKS, count=9).tolist() == [[2, 3, 4], [-1, 1, 5]]
    few = sample_anchors(**MASKS, count=2)
    assert few.shape == (2, 2)
    assert set(few[0].tolist()) <= {2, 3, 4}
    assert few[1].tolist() == [1, 5]


def test_blocks_end_with_their_document_and_before_tokens_without_loss():
    blocks = blocks_of(torch.tensor([[2, 3, 4], [-1, 1, 5]]), MASKS["loss_mask"], MASKS["document_ids"], 3, 0.0)
    assert blocks.weights.tolist() == [[[1, 1, 1], [1, 1, 0], [1, 0, 0]], [[0, 0, 0], [1, 0, 0], [1, 0, 0]]]
    assert blocks.indices[0].tolist() == [[3, 4, 5], [4, 5, 6], [5, 6, 0]]
    decayed = blocks_of(torch.tensor([[2]]), MASKS["loss_mask"][:1], MASKS["document_ids"][:1], 3, 2.0)
    assert_close(decayed.weights[0, 0], torch.tensor([1.0, 0.6065307, 0.3678794]))


def draft_of(kind: str, **fields) -> BlockDraftModel:
    kinds = {
        "bidirectional": {},
        "causal": {"is_causal": True},
        "shifted": {"is_shifted": True},
        "sliding": {"is_causal": None, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4},
    }
    torch.manual_seed(1)
    draft = new_block_draft(tiny_target(), num_hidden_layers=2, block_size=4, mask_token_id=3, **kinds[kind] | fields)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.mul_(4) if parameter.dim() > 1 else None
    return draft


@pytest.mark.parametrize("queries", [4, 12, 4096])
@pytest.mark.parametrize("kind", ["bidirectional", "causal", "shifted", "sliding"])
def test_packed_blocks_have_the_states_of_single_ones(kind, queries, monkeypatch):
    """Each block alone below its document's features before it, as in generation."""
    monkeypatch.setattr(objective, "QUERIES", queries)
    draft, generator = draft_of(kind), torch.Generator().manual_seed(0)
    ids = torch.randint(4, 24, (2, 12), generator=generator)
    documents = torch.tensor([[0] * 5 + [1] * 7, [0] * 10 + [-1] * 2])
    positions = torch.tensor([[*range(5), *range(7)], [*range(10), 0, 0]])
    features = torch.randn(2, 12, draft.config.fused_features_size, generator=generator)
    rows = torch.randn(24, 32, generator=generator)
    anchors = torch.tensor([[2, 3, 6, 9, 11], [1, 4, 5, 8, 9]])
    batch = {"input_ids": ids, "document_ids": documents, "position_ids": positions}
    states = block_states(draft, lambda tokens: rows[tokens], batch, features, anchors)
    for sequence in range(2):
        for place, anchor in enumerate(anchors[sequence].tolist()):
            start = anchor - int(positions[sequence, anchor])
            block = rows[torch.tensor([[ids[sequence, anchor], 3, 3, 3]])]
            alone = draft.predictions(draft(block, features[sequence : sequence + 1, start:anchor]))
            assert_close(states[sequence, place], alone[0], rtol=1e-4, atol=1e-5)


def recorded_step(peer: str):
    """(draft, blocks, everything recorded, a function of the objective's options -> its losses)."""
    recorded = load_file(PARITY / "steps.safetensors")
    draft = BlockDraftModel.from_pretrained(PARITY / ("deepspec" if peer == "deepspec" else "zlab"))
    ids, mask = recorded["input_ids"], recorded["loss_mask"].long()
    documents, positions = torch.zeros_like(ids), torch.arange(ids.shape[1]).expand_as(ids)
    batch = {"input_ids": ids, "document_ids": documents, "position_ids": positions}

    def run(loss: str, decay: float, temperature: float = 1.0, chunk: int = 7):
        blocks = blocks_of(recorded[f"{peer}.anchors"], mask, documents, draft.config.num_predictions, decay)
        states = block_states(
            draft, lambda tokens: recorded["embedding"][tokens], batch, recorded["features"], blocks.anchors
        )
        return compute_losses(
            BlockObjective(loss, decay, temperature, 5, chunk),
            states,
            blocks,
            ids,
            recorded["last_hidden"],
            lambda hidden: hidden @ recorded["head"].T,
            blocks.weights.sum()[None],
        )

    return draft, recorded, run


@pytest.mark.parametrize(
    ("peer", "decay"), [("specforge", 7.0), ("specforge_uniform", 0.0), ("deepspec", 4.0)], ids=lambda x: str(x)
)
def test_a_step_has_the_recorded_loss_and_gradients(peer, decay):
    draft, recorded, run = recorded_step(peer)
    found = run("cross_entropy", decay).loss
    assert_close(found[None], recorded[f"{peer}.loss"], rtol=1e-5, atol=1e-5)
    found.backward()
    gradients = {name: parameter.grad for name, parameter in draft.named_parameters() if parameter.grad is not None}
    expected = {name.removeprefix(f"{peer}.grad."): x for name, x in recorded.items() if f"{peer}.grad." in name}
    assert set(gradients) >= set(expected)
    for name, gradient in expected.items():
        assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5)
    assert len(expected) >= 20 or peer == "specforge_uniform"


def test_the_kl_is_torchs_own_at_a_temperature():
    _, recorded, run = recorded_step("deepspec")
    assert_close(run("kl", 0.0, 1.5).loss[None], recorded["deepspec.kl"], rtol=1e-5, atol=1e-5)


def test_chunks_of_the_head_change_nothing():
    draft, _, run = recorded_step("deepspec")
    found = []
    for chunk in (0, 3, 1000):
        draft.zero_grad()
        out = run("kl", 4.0, chunk=chunk)
        out.loss.backward()
        assert_close(out.step_losses.sum(), out.loss.detach())
        found.append((out.loss.detach(), draft.fc.weight.grad.clone()))
    for loss, gradient in found[1:]:
        assert_close(loss, found[0][0])
        assert_close(gradient, found[0][1])


def trainer(folder, recipe: str = "jetspec", draft=None, **arguments) -> BlockTrainer:
    settings = SETTINGS | {"warmup_steps": 0} | arguments
    args = Eagle3TrainingArguments.from_recipe(recipe, output_dir=str(folder), **settings)
    return BlockTrainer(model=draft, target_model=tiny_target(), args=args, train_dataset=written())


def curve(folder, recipe: str = "jetspec", **arguments) -> list[float]:
    run = trainer(folder, recipe, draft_of("causal" if recipe == "jetspec" else "bidirectional"), **arguments)
    run.train()
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize("recipe", ["dflash", "jetspec"])
def test_training_reduces_the_loss_and_accumulation_does_not_change_it(recipe, tmp_path):
    """All anchors fit, so that nothing but their order is drawn."""
    long = curve(tmp_path, recipe, max_steps=24, learning_rate=1e-2)
    assert sum(long[-3:]) < 0.95 * sum(long[:3])
    whole = curve(tmp_path, recipe)
    parts = curve(tmp_path, recipe, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert_close(torch.tensor(parts), torch.tensor(whole), rtol=2e-3, atol=2e-3)


def test_evaluation_draws_the_same_anchors(tmp_path):
    run = trainer(tmp_path, draft=draft_of("causal"), num_anchors=2)
    assert any(isinstance(callback, OverTrainingNotice) for callback in run.callback_handler.callbacks)
    first, second = (run.evaluate(written(8, 1)) for _ in range(2))
    assert first["eval_loss"] == second["eval_loss"]
    assert {"eval_accuracy_0", "eval_acceptance_2"} <= first.keys()
    assert "eval_simulated_acceptance_length" not in first


def test_a_mask_of_zeros_is_refused_and_another_chosen():
    target = tiny_target()
    with torch.no_grad():
        target.get_input_embeddings().weight[0] = 0
    assert new_block_draft(target, num_hidden_layers=1).config.mask_token_id == 23  # the padding token, 0, has no row
    with pytest.raises(ValueError, match="`mask_token_id` 0 has an embedding row of zeros"):
        new_block_draft(target, num_hidden_layers=1, mask_token_id=0)


def test_what_does_not_go_together_is_refused(tmp_path):
    with pytest.raises(TypeError, match="it must be the draft, an `BlockDraftModel`"):
        trainer(tmp_path, draft=tiny_target())
    with pytest.raises(ValueError, match="`BlockDraftConfig` has no field 'sise'"):
        new_block_draft(tiny_target(), sise=4)
    for name, value in (("block_temperature", 0.0), ("block_loss_decay", -1.0), ("num_anchors", 0)):
        with pytest.raises(ValueError, match=name):
            Eagle3TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value})


CLI_MISTAKES = {
    "an EAGLE-3 recipe": (["--drafter", "block", "--recipe", "paper"], "`--recipe` paper does not go with"),
    "a block recipe": (["--recipe", "dflash"], "`--recipe` dflash does not go with `--drafter` eagle3"),
    "a vocabulary": (["--drafter", "block", "--draft-vocab-size", "9"], "`--draft-vocab-size`"),
    "a block": (["--block-size", "9"], "`--block-size`"),
}


@pytest.mark.parametrize("mistake", CLI_MISTAKES)
def test_options_of_another_kind_are_refused(mistake, capsys, tmp_path):
    options, message = CLI_MISTAKES[mistake]
    given = ["train", "--target", "t", "--train-data", "d", "--output-dir", str(tmp_path), *options]
    assert main(given) != 0
    assert message in capsys.readouterr().err


def test_the_command_line_trains_and_serves_one(tmp_path, capsys):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    target = tiny_target()
    target.save_pretrained(tmp_path / "target")
    words = {f"w{i}": i for i in range(24)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0")
    fast.save_pretrained(tmp_path / "target")
    texts = [{"text": " ".join(f"w{i}" for i in sample["input_ids"])} for sample in written()]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    options = ["--drafter", "block", "--recipe", "dflash", "--block-size", "4", "--layers", "1", "--use-cpu", "true"]
    options += ["--target", str(tmp_path / "target"), "--train-data", str(tmp_path / "data.jsonl")]
    options += ["--output-dir", str(tmp_path / "out"), "--max-steps", "2", "--report-to", "none"]
    assert main(["train", *options, "--disable-tqdm", "true", "--draft-option", "mask_token_id=3"]) == 0
    printed = capsys.readouterr().out
    assert "evaluation: loss" in printed
    assert "Verdict: tau" in printed
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (record["block_loss"], record["block_loss_decay"], record["steps"]) == ("cross_entropy", 7.0, 2)
    assert [entry["step"] for entry in record["evaluation"]["history"]][:2] == [1, 2]  # the best of them is kept
    assert record["kept_step"] in (1, 2)
    assert ("loss", "cross_entropy") in training_rows(record)
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (raw["block_size"], raw["num_hidden_layers"], raw["dflash_config"]["causal_head"]) == (4, 1, False)
    stats = assert_same(target, str(tmp_path / "out"), left_padded([9]), max_new_tokens=20, do_sample=False)
    assert stats.num_draft_tokens > 0
    stored = ["--data", str(tmp_path / "data.jsonl"), "--target", str(tmp_path / "target")]
    stored += ["--draft", str(tmp_path / "out"), "--output", str(tmp_path / "features"), "--limit", "2"]
    assert main(["prepare", "features", *stored]) == 0
    provenance = json.loads((tmp_path / "features" / "provenance.json").read_text())
    assert provenance["target_layer_ids"] == raw["dflash_config"]["target_layer_ids"]
    again = ["--draft", str(tmp_path / "out"), *options[-10:-6], "--output-dir", str(tmp_path / "again")]
    assert main(["train", *again, "--use-cpu", "true"]) != 0
    assert "is a BlockDraftModel; set `--drafter block`" in capsys.readouterr().err


def test_recomputing_activations_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"does not support (activation|gradient) checkpointing"):
        trainer(tmp_path, draft=draft_of("causal"), gradient_checkpointing=True).train()
