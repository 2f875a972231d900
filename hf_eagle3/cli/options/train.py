"""Options of `hf-eagle3 train`."""

import argparse
from dataclasses import MISSING, fields

from ...training_options import RECIPES, TrainingOptions
from .shared import DTYPES, check_sources, positive, refuse, value_of


HELP = "train a draft for a target by training-time test"
DEFAULT_DRAFT_VOCABULARY = 32000  # the original code's, where the target knows more tokens

# What to train on what; the training arguments themselves come from their dataclass.
OPTIONS = {
    "--recipe": {"choices": tuple(RECIPES), "help": "a whole recipe (default: paper)"},
    "--target": {"help": "directory or Hub id of the target model"},
    "--train-data": {"help": "preset (sharegpt, ultrachat-200k, openthoughts-114k-math), file, folder or Hub id"},
    "--train-split": {"help": "default: train"},
    "--eval-data": {"help": "default: 2 %% of the training data, 1 to 200 samples, are held out"},
    "--eval-split": {"help": "default: train"},
    "--streaming": {"action": "store_true", "help": "read the data while training; needs --max-steps"},
    "--features": {"help": "folder of `prepare features`: train on these instead of running the target"},
    "--draft": {"help": "continue from this draft instead of a new one"},
    "--draft-vocab-size": {
        "type": positive,
        "help": f"tokens the draft can propose (default: {DEFAULT_DRAFT_VOCABULARY}, or all if the target "
        "knows no more)",
    },
    "--vocabulary": {"help": "file of `prepare vocabulary`; default: counted in the training data"},
    "--draft-option": {
        "action": "append",
        "metavar": "NAME=VALUE",
        "help": "field of Eagle3Config, e.g. intermediate_size=4096 or target_layer_ids=[1,15,28]; beside --draft it "
        "overrides the draft's own; repeatable",
    },
    "--random-start": {"action": "store_true", "help": "random head and fusion, as the original code"},
    "--lora-rank": {
        "type": positive,
        "help": "train a LoRA adapter of this rank over --draft; a merged draft is saved too",
    },
    "--target-dtype": {"choices": DTYPES, "help": "of the target (default: auto)"},
    "--target-device-map": {"help": "e.g. auto: spread the target over devices (default: one device)"},
}
SWITCHES = [
    name[2:] for name, settings in OPTIONS.items() if settings.get("action") == "store_true"
]  # without a value
COMMON_ARGUMENTS = (
    "--output-dir",
    "--num-train-epochs",
    "--per-device-train-batch-size",
    "--bf16",
    "--eval-strategy",
    "--save-steps",
    "--resume-from-checkpoint",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "hf-eagle3 train --target TARGET --train-data DATA --output-dir DIR [options]"
    group = parser.add_argument_group("what to train on what (also as keys of --config)")
    for name, settings in OPTIONS.items():
        group.add_argument(name, default=argparse.SUPPRESS, **settings)
    parser.add_argument("--help-all", action="help", help="show transformers' training arguments too")
    parser.epilog = (
        "--config FILE: YAML or JSON with any of these options; flags win over it. Every argument of transformers' "
        f"TrainingArguments is an option too ({', '.join(COMMON_ARGUMENTS)}, ...): --help-all shows them."
    )


def show_fields(parser: argparse.ArgumentParser) -> None:
    """
    The fields of [`TrainingOptions`] as `--help` shows them. To parse them, and transformers' own, is the work of
    `HfArgumentParser`, which takes seconds to import.
    """
    group = parser.add_argument_group("training arguments: ours, and those with another default than transformers'")
    for field in fields(TrainingOptions):
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            choices=field.metadata.get("choices"),
            metavar=None if "choices" in field.metadata else metavar_of(field.type),
            help=with_default(field.metadata["help"], field.default),
        )


def metavar_of(kind) -> str:
    """What stands for a value of a field of this type: its name, or JSON where several types are taken."""
    return kind.__name__.upper() if isinstance(kind, type) else "JSON"


def with_default(text: str, default) -> str:
    """A help text with the default behind it, if there is one to name."""
    if default in (None, MISSING, argparse.SUPPRESS, ""):
        return text
    return text + f" (default: {default})".replace("%", "%%")


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for what is missing, cannot be or would have no effect, before anything is loaded."""
    given = vars(arguments)
    for flag in ("--target", *(() if given.get("features") else ("--train-data",))):
        if value_of(arguments, flag) is None:
            raise ValueError(f"`{flag}` is missing (as a flag or in the config file).")
    check_sources(arguments, "--target", "--draft")
    if given.get("features"):
        if given.get("eval_data"):
            raise ValueError("`--eval-data` does not go with `--features`: a part of those is held out instead.")
        unused = ("--train-data", "--train-split", "--eval-split", "--streaming")
        refuse(arguments, unused, "beside `--features`; leave one of them out.")
    if given.get("eval_data") is None:
        refuse(arguments, ("--eval-split",), "without `--eval-data`; add it.")
    if given.get("draft"):
        why = "beside `--draft`, which has its vocabulary and weights; leave one of them out."
        refuse(arguments, ("--draft-vocab-size", "--vocabulary", "--random-start"), why)
