"""Second half of making the embedded pair: the target answers the training prompts, and a draft learns from that.

`python -m hf_eagle3.embedded.make_draft --text DIR --out DIR`, after `make_target` with the same folders. Only
commands that every user has: `hf-eagle3 prepare regenerate` and `hf-eagle3 train`.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..cli import main as command
from . import text
from .held_out import Repetition, write_held_out


DRAFT = {"intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32}


def write_training_prompts(folder: Path, path: Path) -> None:
    """All prompts that are not held out, shuffled."""
    rows = [{"messages": messages[:1]} for _, messages in text.conversations(folder, held_out=False)]
    random.Random(0).shuffle(rows)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def run(*arguments: str) -> None:
    """One command; the program ends where it fails."""
    print("+ hf-eagle3", *arguments, flush=True)
    if code := command([str(argument) for argument in arguments]):
        sys.exit(code)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--answers", type=int, default=7000, help="prompts that the target answers (default: 7000)")
    parser.add_argument("--max-steps", type=int, default=1500, help="(default: 1500)")
    parser.add_argument(
        "--steps", type=int, default=7, help="of training-time test; 1 for the comparison (default: 7)"
    )
    arguments = parser.parse_args()
    out: Path = arguments.out
    target = AutoModelForCausalLM.from_pretrained(out / "target", dtype=torch.float32)
    repetition = Repetition(target, AutoTokenizer.from_pretrained(out / "target"), arguments.text)
    write_held_out(arguments.text, out / "prompts.jsonl", repetition)
    write_training_prompts(arguments.text, out / "training_prompts.jsonl")
    run(
        *("prepare", "regenerate", "--data", str(out / "training_prompts.jsonl"), "--target", str(out / "target")),
        *("--output", str(out / "answers.jsonl"), "--limit", str(arguments.answers), "--dtype", "bfloat16"),
        *("--temperature", "1", "0", "--batch-size", "128", "--max-new-tokens", "200"),
    )
    folder = out / ("draft" if arguments.steps == 7 else f"draft-{arguments.steps}-step")
    run(
        *("train", "--target", str(out / "target"), "--target-dtype", "bfloat16", "--output-dir", str(folder)),
        *("--train-data", str(out / "answers.jsonl"), "--draft-vocab-size", "896", "--max-length", "512"),
        *("--packing", "true"),
        *(f"--draft-option={name}={value}" for name, value in DRAFT.items()),
        *("--training-time-test-steps", str(arguments.steps), "--max-steps", str(arguments.max_steps)),
        *("--per-device-train-batch-size", "16", "--learning-rate", "2e-3", "--lr-scheduler-type", "cosine"),
        *("--warmup-steps", "100", "--max-grad-norm", "1", "--bf16", "true", "--logging-steps", "50"),
        *("--eval-strategy", "steps", "--eval-steps", "500", "--save-steps", "500", "--save-total-limit", "1"),
        *("--report-to", "none", "--disable-tqdm", "true"),
    )


if __name__ == "__main__":
    main()
