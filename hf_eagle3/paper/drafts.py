"""The drafts of the tables: each trained by `hf-eagle3 train` on the same answers, for the same number of tokens.

A draft is trained once: its folder with a `training.json` is what resuming looks for.
"""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cli import main
from ..cli.options.paper import DRAFTS
from ..errors import UserError


TOP = "eagle3-top"  # EAGLE-3 that reads the top layer only: Table 2's middle row
KINDS = DRAFTS
SHARES = (8, 4, 2)  # of the data: an eighth, a quarter, a half; figures 1 and 4
SCALED = ("eagle", "eagle3")


@dataclass(frozen=True)
class Plan:
    """
    What is trained, and how long.

    Attributes:
        target, dtype: Of the target.
        answers: Its answers, JSON lines.
        output: Folder of everything.
        steps, batch_size: Optimiser steps, and samples in each.
        learning_rate: For all kinds; `None`: each recipe's own.
        max_length: Tokens of a packed sequence.
        num_layers: Of the target.
    """

    target: str
    dtype: str
    answers: Path
    output: Path
    steps: int
    batch_size: int
    learning_rate: float | None
    max_length: int
    num_layers: int

    def folder(self, name: str) -> Path:
        """Where a draft is."""
        return self.output / "drafts" / name

    def is_trained(self, name: str) -> bool:
        """Whether it is there."""
        return (self.folder(name) / "training.json").is_file()


def arguments(plan: Plan, name: str) -> list[str]:
    """The command that trains `name`: a kind, perhaps with "@8" for an eighth of the data."""
    kind, _, part = name.partition("@")
    share = int(part or 1)
    drafter = "eagle3" if kind == TOP else kind
    options = ["--draft-option", f"target_layer_ids=[{plan.num_layers - 1}]"] if kind == TOP else []
    rate = [] if plan.learning_rate is None else ["--learning-rate", f"{plan.learning_rate:g}"]
    return [
        *("train", "--drafter", drafter, *options, "--target", plan.target, "--target-dtype", plan.dtype),
        *("--train-data", str(part_of(plan, share)), "--output-dir", str(plan.folder(name))),
        *("--max-steps", str(max(1, plan.steps // share)), "--per-device-train-batch-size", str(plan.batch_size)),
        *("--max-length", str(plan.max_length), "--packing", "true", *rate, "--lr-scheduler-type", "cosine"),
        *("--warmup-steps", "0.05", "--logging-steps", "20", "--eval-strategy", "no", "--save-strategy", "no"),
        *("--report-to", "none", "--disable-tqdm", "true", "--num-generation-prompts", "0"),
    ]


def part_of(plan: Plan, share: int) -> Path:
    """The answers, or a file of the first of them, one in `share`."""
    if share == 1:
        return plan.answers
    path = plan.output / f"answers-{share}.jsonl"
    lines = plan.answers.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[: max(2, len(lines) // share)]), encoding="utf-8")
    return path


def train_missing(plan: Plan, names: Sequence[str], show: Callable[[str], None]) -> None:
    """
    Train those of `names` that are not there; `show` gets each command before it runs.

    Raises:
        UserError: a training fails.
    """
    for name in names:
        if plan.is_trained(name):
            continue
        given = arguments(plan, name)
        show(f"+ hf-eagle3 {shlex.join(given)}")
        if main(given) or not plan.is_trained(name):
            raise UserError(f"The draft `{name}` was not trained; see above, and run the same command again.")


def trained_on(plan: Plan, name: str) -> dict:
    """Its `training.json`."""
    return json.loads((plan.folder(name) / "training.json").read_text(encoding="utf-8"))
