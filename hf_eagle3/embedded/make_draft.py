"""Second step of making the embedded pair: the target answers the training prompts, and a draft is trained on that.

`python -m hf_eagle3.embedded.make_draft --text DIR --out DIR`, after `make_target` with the same folders. It runs
`hf-eagle3 prepare regenerate` and `hf-eagle3 train`, and does nothing that these commands do not.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from . import text
from .held_out import MemorisationCheck, write_held_out


DRAFT = {"intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32}


def write_training_prompts(folder: Path, path: Path) -> None:
    """Write all prompts that are not held out, shuffled."""
    rows = [{"messages": messages[:1]} for _, messages in text.conversations(folder, held_out=False)]
    random.Random(0).shuffle(rows)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def run(*arguments: str) -> None:
    """Run one `hf-eagle3` command in a process of its own; a failure ends the program."""
    print("+ hf-eagle3", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "hf_eagle3.cli", *arguments], check=True)


def regenerate(out: Path, limit: int, *temperatures: str) -> None:
    """Answer those of the first `limit` training prompts that have no answer yet; batches alternate temperatures."""
    run(
        *("prepare", "regenerate", "--data", str(out / "training_prompts.jsonl"), "--target", str(out / "target")),
        *("--output", str(out / "answers.jsonl"), "--limit", str(limit), "--dtype", "bfloat16"),
        *("--temperature", *temperatures, "--batch-size", "128", "--max-new-tokens", "200"),
    )


def train(out: Path, folder: Path, max_steps: int, learning_rate: str, *options: str) -> None:
    """Train on all answers so far; `options` select the initial draft and the loss."""
    run(
        *("train", "--target", str(out / "target"), "--target-dtype", "bfloat16", "--output-dir", str(folder)),
        *("--train-data", str(out / "answers.jsonl"), "--max-length", "512", "--packing", "true", *options),
        *("--max-steps", str(max_steps), "--per-device-train-batch-size", "16", "--learning-rate", learning_rate),
        *("--lr-scheduler-type", "cosine", "--warmup-steps", "100", "--max-grad-norm", "1", "--bf16", "true"),
        *("--logging-steps", "50", "--eval-strategy", "steps", "--eval-steps", "500"),
        *("--save-steps", "500", "--save-total-limit", "1", "--report-to", "none", "--disable-tqdm", "true"),
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--answers", type=int, nargs=2, default=(7000, 11000), help="prompts answered before each training run"
    )
    parser.add_argument("--max-steps", type=int, nargs=2, default=(1500, 1250), help="steps of each training run")
    parser.add_argument(
        "--steps",
        type=int,
        default=7,
        help="training-time-test steps; 1 for the comparison, which consists of the first run only",
    )
    given = parser.parse_args()
    out: Path = given.out
    target = AutoModelForCausalLM.from_pretrained(out / "target", dtype=torch.float32)
    is_memorised = MemorisationCheck(target, AutoTokenizer.from_pretrained(out / "target"), given.text)
    write_held_out(given.text, out / "prompts.jsonl", is_memorised)
    write_training_prompts(given.text, out / "training_prompts.jsonl")
    regenerate(out, given.answers[0], "1", "0")
    shape = ["--draft-vocab-size", "896", *(f"--draft-option={name}={value}" for name, value in DRAFT.items())]
    steps = ("--training-time-test-steps", str(given.steps))
    first = out / ("first-draft" if given.steps == 7 else f"draft-{given.steps}-step")
    train(out, first, given.max_steps[0], "2e-3", *shape, *steps)
    if given.steps == 7:
        # The acceptance probability as loss, and more answers at temperature 1, the hardest to predict.
        regenerate(out, given.answers[1], "1")
        train(out, out / "draft", given.max_steps[1], "1.2e-3", "--draft", str(first), "--loss", "lk_lambda", *steps)


if __name__ == "__main__":
    main()
