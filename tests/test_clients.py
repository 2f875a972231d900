"""Programs from the package index that take no `assistant_model`, with a draft attached: the same results.

lm-evaluation-harness   a generation task of its own folder: answers and score
TRL                     two steps of GRPO: rollouts, rewards and losses

Nightly; `pip install lm_eval trl` next to this package. Each prints CPU seconds without and with the draft.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import hf_eagle3
from hf_eagle3 import embedded


pytestmark = pytest.mark.nightly
ROUNDS = 2
TASK = """
task: word_problems
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["####"]
  do_sample: false
  max_gen_toks: 48
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def measured(name: str, run: Callable, target, draft, capsys) -> tuple:
    """(plain result, result with the draft, stats), after printing the CPU seconds of both, in turns."""
    seconds = {"plain": [], "drafted": []}
    for _ in range(ROUNDS + 1):
        started = time.process_time()
        plain = run()
        seconds["plain"].append(time.process_time() - started)
        started = time.process_time()
        with hf_eagle3.attach(target, draft), hf_eagle3.record() as stats:
            drafted = run()
        seconds["drafted"].append(time.process_time() - started)
    # The first round pays for what is slow once.
    without, with_draft = (sum(values[1:]) / ROUNDS for values in seconds.values())
    with capsys.disabled():
        sys.stdout.write(
            f"\n{name}: {without:.2f} s plain, {with_draft:.2f} s with the draft (CPU time), tau "
            f"{stats.acceptance_length:.2f}\n"
        )
    return plain, drafted, stats


def questions(count: int) -> list[str]:
    return [row["prompt"] for row in embedded.prompts("math")[:count]]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_lm_evaluation_harness(batch_size, tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="pip install lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    data = tmp_path / "problems.jsonl"
    rows = [{"question": question, "answer": "42"} for question in questions(8)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "word_problems.yaml").write_text(TASK.format(data=Path(data).as_posix()), encoding="utf-8")
    target, draft, tokenizer = embedded.load_pair()
    model = HFLM(pretrained=target, tokenizer=tokenizer, batch_size=batch_size)
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)

    def run() -> tuple[list, dict]:
        found = simple_evaluate(
            model=model, tasks=["word_problems"], task_manager=tasks, apply_chat_template=True, bootstrap_iters=0
        )
        samples = sorted(found["samples"]["word_problems"], key=lambda sample: sample["doc_id"])
        return [sample["resps"] for sample in samples], found["results"]["word_problems"]

    plain, drafted, stats = measured(f"lm_eval, batch size {batch_size}", run, target, draft, capsys)
    assert drafted == plain
    assert len(drafted[0]) == len(rows)
    assert len(stats.accepted_tokens) == len(rows), "every answer was drafted"
    assert stats.acceptance_length > 1.2


def test_rollouts_of_trl(tmp_path, capsys):
    pytest.importorskip("trl", reason="pip install trl")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    target, draft, tokenizer = embedded.load_pair()
    weights = {name: value.clone() for name, value in target.state_dict().items()}
    prompts = [[{"role": "user", "content": question}] for question in questions(4)]

    def run() -> tuple[list[str], list[float]]:
        target.load_state_dict(weights)
        torch.manual_seed(0)
        answers = []

        def reward(completions, **_) -> list[float]:
            answers.extend(completion[0]["content"] for completion in completions)
            return [float(len(completion[0]["content"])) for completion in completions]

        arguments = GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=32,
            max_steps=2,
            logging_steps=1,
            learning_rate=1e-5,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
        )
        trainer = GRPOTrainer(
            model=target,
            reward_funcs=reward,
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
        )
        trainer.train()
        return answers, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    plain, drafted, stats = measured("TRL GRPO", run, target, draft, capsys)
    assert drafted[0] == plain[0]
    assert drafted[1] == pytest.approx(plain[1], abs=1e-6)
    assert len(plain[0]) == 8
    assert len(stats.accepted_tokens) == 8, "every rollout was drafted"
    assert stats.acceptance_length > 1.2
