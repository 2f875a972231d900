"""Options of `hf-eagle3 make-draft`."""

import argparse
from pathlib import Path

from .shared import (
    add_device_arguments,
    add_template_argument,
    check_sources,
    is_path,
    natural,
    positive,
    refuse,
    temperature,
)


HELP = "from prompts to a measured draft: regenerate, vocabulary, train, benchmark, card; resumable"
STAGES = ("regenerate", "vocabulary", "train", "benchmark", "card")
NUM_HELD_OUT, HELD_OUT_SHARE = 20, 0.05
# Greedy and sampled answers in turn, as the embedded draft was trained: users do both.
TEMPERATURES = [0.0, 1.0]
DATA_FILES = (".json", ".jsonl", ".parquet", ".arrow", ".txt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Each stage is one command, which is printed before it runs; results are kept in --output, and the same "
        "command again continues where it stopped. What is not set here follows from the number of answer tokens "
        "(hf_eagle3/training_plan.py has the table and its sources); to set more, run the printed commands yourself."
    )
    parser.add_argument("--target", required=True, help="directory (also of a PEFT adapter) or Hub id of the target")
    parser.add_argument("--data", required=True, help="prompts: preset, file, folder or Hub id")
    parser.add_argument("--output", required=True, help="folder for all results; new, empty, or of this command")
    parser.add_argument("--split", help="of the data (default: train)")
    parser.add_argument("--limit", type=positive, help="maximum number of prompts")
    parser.add_argument(
        "--held-out",
        type=positive,
        help=f"prompts kept for the benchmark (default: {HELD_OUT_SHARE:.0%}, 2 to {NUM_HELD_OUT})".replace("%", "%%"),
    )
    stages = parser.add_argument_group("stages")
    stages.add_argument(
        "--skip",
        nargs="+",
        choices=STAGES,
        default=[],
        help="do not run these; what they have written already is used (without regenerate: the answers in --data)",
    )
    stages.add_argument(
        "--from", dest="first", choices=STAGES, help="run this stage and all later ones again, replacing their results"
    )
    answers = parser.add_argument_group("answers")
    answers.add_argument("--endpoint", help="let this OpenAI-compatible server answer, e.g. http://localhost:8000/v1")
    answers.add_argument("--served-name", help="name of the target at --endpoint (default: --target)")
    answers.add_argument("--max-new-tokens", type=positive, default=512, help="per answer (default: 512)")
    answers.add_argument(
        "--temperature", type=temperature, nargs="+", default=TEMPERATURES, help="cycled through (default: 0 1)"
    )
    answers.add_argument(
        "--base-model",
        action="store_true",
        help="the target has no chat template: continue the prompts as plain text",
    )
    add_template_argument(answers)
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=positive, help="default: 16 to 2, by the number of answer tokens")
    training.add_argument("--learning-rate", type=float, help="default: by the number of answer tokens and the width")
    training.add_argument(
        "--draft-vocab-size",
        type=positive,
        help="default: the smallest of 4k, 8k, 16k, ... that covers 99.5 %% of the answers' tokens",
    )
    parser.add_argument("--repo-id", help="Hub id for the card (default: user/NAME, with the name of --output)")
    parser.add_argument("--seed", type=natural, default=0, help="(default: 0)")
    add_device_arguments(parser, "the target")


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for missing files, invalid combinations and options without effect."""
    check_sources(arguments, "--target")
    path = Path(arguments.data)
    if not path.exists() and (is_path(arguments.data) or path.suffix in DATA_FILES):
        raise ValueError(f"`--data` {arguments.data} does not exist; use a preset, file, folder or Hub id.")
    if arguments.learning_rate is not None and not 0 < arguments.learning_rate < 1:
        raise ValueError(f"`--learning-rate` is {arguments.learning_rate:g}; use a number between 0 and 1, e.g. 1e-3.")
    if arguments.first in arguments.skip:
        raise ValueError(f"`--from` {arguments.first} contradicts `--skip` {arguments.first}; omit one.")
    if arguments.endpoint is None:
        refuse(arguments, ("--served-name",), "without `--endpoint`; add it.")
    if arguments.base_model:
        refuse(arguments, ("--chat-template-kwargs",), "with `--base-model`, which has no chat template; omit one.")
    if "regenerate" in arguments.skip:
        refuse(arguments, ("--endpoint",), "with `--skip regenerate`; omit one.")
