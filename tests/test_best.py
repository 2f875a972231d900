"""The checkpoint that is kept is the one with the highest true acceptance length, and over-training is noticed.

step       2     4     6
tau      1.5   2.5   2.0   -> the weights of step 4
"""

import json
import logging

import pytest
import torch
import training_setup
from safetensors.torch import load_file
from transformers import TrainerState

from hf_eagle3.cli.progress import progress_line
from hf_eagle3.hub.trained import read_training, training_rows
from hf_eagle3.training.best import keep_best, over_training
from hf_eagle3.training.record import totals, training_record


TAUS = (1.1, 1.5, 2.5, 2.0)  # before training, and after steps 2, 4 and 6


def trainer(folder, monkeypatch, taus=TAUS, **arguments):
    """A trainer whose measured tau is `taus`, one after the other."""
    run = training_setup.trainer(
        folder, eval_data=training_setup.written(8, seed=1), **{"num_generation_prompts": 1} | arguments
    )
    measured = iter(taus)
    monkeypatch.setattr(run, "generation_figures", lambda dataset: {"acceptance_length": next(measured)})
    return run


def test_the_checkpoint_of_the_highest_tau_is_kept(tmp_path, monkeypatch, caplog):
    run = trainer(tmp_path, monkeypatch, eval_steps=2, save_strategy="steps")
    assert keep_best(run, {"eval_steps"})
    with caplog.at_level(logging.WARNING):
        run.train()
    run.save_model()
    kept = load_file(tmp_path / "model.safetensors")
    for name, tensor in load_file(tmp_path / "checkpoint-4" / "model.safetensors").items():
        torch.testing.assert_close(kept[name], tensor, msg=name)
    assert not torch.equal(kept["fc.weight"], load_file(tmp_path / "checkpoint-6" / "model.safetensors")["fc.weight"])
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert "tau fell from 2.50 at step 4 to 2.00 at step 6" in caplog.text
    assert "The checkpoint of step 4 is kept." in caplog.text

    record = training_record(run, ["answers.jsonl"], {"torch": "2"}, {"device": "cpu"})
    assert (record["steps"], record["kept_step"]) == (6, 4)
    assert [entry["acceptance_length"] for entry in record["evaluation"]["history"]] == list(TAUS[1:])
    data = training_setup.written()
    assert record["data"] == {
        "names": ["answers.jsonl"],
        "samples": 48,
        "tokens": sum(map(len, data["input_ids"])),
        "answer_tokens": sum(map(sum, data["loss_mask"])),
        "held_out_samples": 8,
    }
    assert record["chat_template"] is None  # tokenised data, no tokenizer
    assert record["batch_tokens"] == round(8 * record["data"]["tokens"] / 48)


@pytest.mark.parametrize(
    ("given", "arguments", "taus"),
    [
        (("save_strategy",), {"save_strategy": "no"}, TAUS),
        (("eval_strategy",), {"eval_strategy": "no"}, TAUS),
        (("metric_for_best_model",), {"metric_for_best_model": "loss"}, TAUS),
        (("eval_strategy", "save_strategy"), {"eval_strategy": "epoch", "save_strategy": "steps"}, TAUS),
        (("eval_steps", "save_steps"), {"eval_steps": 4, "save_steps": 6}, TAUS),
        ((), {"num_generation_prompts": 0}, None),  # tau cannot be measured
    ],
    ids=str,
)
def test_what_the_user_chose_stays(tmp_path, monkeypatch, given, arguments, taus):
    run = trainer(tmp_path, monkeypatch, **arguments)
    if taus is None:
        monkeypatch.setattr(run, "generation_figures", lambda dataset: {})
    before = {name: value for name, value in vars(run.args).items() if name in ("eval_steps", "save_strategy")}
    assert not keep_best(run, set(given))
    assert not run.args.load_best_model_at_end
    assert {name: vars(run.args)[name] for name in before} == before


def test_without_evaluation_data_nothing_is_compared(tmp_path):
    assert not keep_best(training_setup.trainer(tmp_path), set())


def test_by_default_there_are_ten_evaluations(tmp_path, monkeypatch):
    run = trainer(tmp_path, monkeypatch)
    assert keep_best(run, set())
    assert (run.args.eval_steps, run.args.save_steps, run.args.save_total_limit) == (0.1, 0.1, 2)


def log(*entries: tuple[int, float, float]) -> list[dict]:
    """A Trainer's history of (step, training loss, tau)."""
    history = []
    for step, loss, tau in entries:
        history += [{"step": step, "loss": loss}, {"step": step, "eval_acceptance_length": tau}]
    return history


@pytest.mark.parametrize(
    ("history", "is_over_trained"),
    [
        (log((10, 3.0, 1.5), (20, 2.0, 2.5), (30, 1.5, 2.0)), True),
        (log((10, 3.0, 1.5), (20, 2.0, 2.5), (30, 1.5, 2.6)), False),  # still rising
        (log((10, 3.0, 1.5), (20, 2.0, 2.5), (30, 1.5, 2.45)), False),  # within noise
        (log((10, 3.0, 1.5), (20, 2.0, 2.5), (30, 2.5, 2.0)), False),  # the loss rises too: it diverges
        (log((10, 3.0, 1.5)), False),
        ([], False),
    ],
)
def test_over_training_is_a_falling_tau_with_a_falling_loss(history, is_over_trained):
    line = over_training(history)
    assert (line is not None) is is_over_trained
    if line is not None:
        assert "tau fell from 2.50 at step 20 to 2.00 at step 30 while the training loss fell from 2.000 to" in line
        assert "\n" not in line


def test_a_line_of_progress():
    state = TrainerState(global_step=35, max_steps=100)
    logs = {"loss": 1.2345, "learning_rate": 1e-3, "accuracy_0": 0.61, "accuracy_1": 0.6, "accuracy_2": 0.58}
    assert progress_line(logs, state) == (
        " 35%  step 35 of 100  loss 1.234  accuracy 0.61 to 0.58  learning rate 1.0e-03"
    )
    logs = {"eval_loss": 1.5, "eval_accuracy_0": 0.6, "eval_acceptance_length": 2.345}
    assert progress_line(logs, state) == " 35%  step 35 of 100  evaluation: loss 1.500  accuracy 0.60  tau 2.35"
    assert progress_line({"train_runtime": 1.0}, state) is None


def test_tokens_are_counted_in_parts_of_features():
    """Offline features, of which a part is trained on."""

    class Features(torch.utils.data.Dataset):
        def tokens(self):
            return ({"loss_mask": torch.tensor([0] * i + [1])} for i in range(4))

    chosen = torch.utils.data.Subset(Features(), [1, 3])
    assert totals(chosen) == {"samples": 2, "tokens": 2 + 4, "answer_tokens": 2}


# training.json in the card


RECORD = {
    "data": {"names": ["/home/me/answers.jsonl", "openai/gsm8k"], "samples": 1536, "answer_tokens": 257000},
    "target": {"name": "/home/me/target", "fingerprint": "0123456789abcdef"},
    "hardware": {"device": "cpu", "device_name": "Two cores"},
    "epochs": 8,
    "steps": 320,
    "kept_step": 256,
    "batch_tokens": 2048,
    "learning_rate": 0.0015,
    "seconds": 5400,
    "lr_scheduler_type": "cosine",
    "loss": "kl",
    "training_time_test_steps": 7,
}


def test_the_cards_table_has_what_is_recorded_and_no_paths():
    assert training_rows(RECORD) == [
        ("data", "answers.jsonl, openai/gsm8k"),
        ("amount", "1,536 samples, 257,000 answer tokens"),
        ("length", "8 epochs, 320 steps, 2,048 tokens per step; kept: step 256"),
        ("learning rate", "0.0015, cosine"),
        ("loss", "kl, 7 steps of training-time test"),
        ("device", "Two cores, 1.5 hours"),
        ("target's weights", "fingerprint 0123456789abcdef"),
    ]


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("[]", "is not a record"), ("{}", "is not a record")]
)
def test_another_training_json_is_refused(tmp_path, text, message):
    assert read_training(str(tmp_path)) is None
    (tmp_path / "training.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_training(str(tmp_path))
    (tmp_path / "training.json").write_text(json.dumps(RECORD))
    assert read_training(str(tmp_path)) == RECORD
