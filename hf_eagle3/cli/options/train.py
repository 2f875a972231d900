"""Options of `hf-eagle3 train`."""

import argparse
from dataclasses import MISSING, fields

from ...training_options import RECIPES, RECIPES_OF, TrainingOptions
from .shared import DTYPES, check_sources, positive, refuse, value_of


HELP = "train a draft for a target"
EAGLE3, BLOCK, EAGLE, HASS, MEDUSA, HYDRA = DRAFTERS = tuple(RECIPES_OF)
DEFAULT_RECIPES = {kind: names[0] for kind, names in RECIPES_OF.items()}
DEFAULT_BLOCK_SIZE = 8  # a tree rarely goes deeper
DEFAULT_DRAFT_VOCABULARY = 32000  # as in the original code, if the target's vocabulary is larger

# Models and data; the training arguments come from their dataclass.
OPTIONS = {
    "--recipe": {
        "choices": tuple(RECIPES),
        "help": "a complete recipe (default: paper; jetspec for block drafters, which take dflash or jetspec; the "
        "drafter's own for the others)",
    },
    "--drafter": {
        "choices": DRAFTERS,
        "help": "kind of the draft: eagle3 (default); block: a whole tree from one pass (DFlash, JetSpec); eagle: "
        "EAGLE and EAGLE-2; hass; medusa; hydra",
    },
    "--block-size": {
        "type": positive,
        "help": f"positions of a block, the last token included (default: {DEFAULT_BLOCK_SIZE}); block drafters only",
    },
    "--layers": {
        "type": positive,
        "help": "layers of the draft, or residual blocks of a head (default: 1; 5 for block drafters)",
    },
    "--target": {"help": "directory or Hub id of the target model"},
    "--train-data": {"help": "preset (sharegpt, ultrachat-200k, openthoughts-114k-math), file, folder or Hub id"},
    "--train-split": {"help": "default: train"},
    "--eval-data": {
        "help": "default: 2 %% of the training data (8 to 200 samples; at most a tenth of little data) is held out"
    },
    "--eval-split": {"help": "default: train"},
    "--streaming": {"action": "store_true", "help": "read the data while training; needs --max-steps"},
    "--features": {"help": "folder of `prepare features` to train on instead of running the target"},
    "--draft": {"help": "initial draft (default: a new one)"},
    "--draft-vocab-size": {
        "type": positive,
        "help": f"number of tokens the draft can propose (default: {DEFAULT_DRAFT_VOCABULARY}, or all if the "
        "target's vocabulary is smaller)",
    },
    "--vocabulary": {"help": "file of `prepare vocabulary`; default: count tokens of the training data"},
    "--draft-option": {
        "action": "append",
        "metavar": "NAME=VALUE",
        "help": "field of the draft's configuration, e.g. intermediate_size=4096 or target_layer_ids=[1,15,28]; with "
        "--draft it overrides the stored value; repeatable",
    },
    "--random-start": {"action": "store_true", "help": "random head and fusion layer, as in the original code"},
    "--lora-rank": {
        "type": positive,
        "help": "train a LoRA adapter of this rank on --draft; a merged draft is saved as well",
    },
    "--target-dtype": {"choices": DTYPES, "help": "dtype of the target (default: auto)"},
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
    group = parser.add_argument_group("models and data (also as keys of --config)")
    for name, settings in OPTIONS.items():
        group.add_argument(name, default=argparse.SUPPRESS, **settings)
    parser.add_argument("--help-all", action="help", help="also show transformers' training arguments")
    parser.epilog = (
        "--config FILE: YAML or JSON with any of these options; flags take precedence. All arguments of transformers' "
        f"TrainingArguments are options as well ({', '.join(COMMON_ARGUMENTS)}, ...): see --help-all."
    )


def show_fields(parser: argparse.ArgumentParser) -> None:
    """
    Add the fields of [`TrainingOptions`] for `--help`. They are parsed, with transformers' own, by `HfArgumentParser`,
    which takes seconds to import.
    """
    group = parser.add_argument_group(
        "training arguments of this package, and those whose default differs from transformers'"
    )
    for field in fields(TrainingOptions):
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            choices=field.metadata.get("choices"),
            metavar=None if "choices" in field.metadata else metavar_of(field.type),
            help=with_default(field.metadata["help"], field.default),
        )


def metavar_of(kind) -> str:
    """Metavar of a field type: its name, or JSON for unions."""
    return kind.__name__.upper() if isinstance(kind, type) else "JSON"


def with_default(text: str, default) -> str:
    """A help text with the default appended, if there is one."""
    if default in (None, MISSING, argparse.SUPPRESS, ""):
        return text
    return text + f" (default: {default})".replace("%", "%%")


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for missing options, invalid combinations and options without effect."""
    given = vars(arguments)
    for flag in ("--target", *(() if given.get("features") else ("--train-data",))):
        if value_of(arguments, flag) is None:
            raise ValueError(f"`{flag}` is missing (as a flag or in the config file).")
    check_sources(arguments, "--target", "--draft")
    if given.get("features"):
        if given.get("eval_data"):
            raise ValueError(
                "`--eval-data` cannot be combined with `--features`, a part of which is held out instead."
            )
        unused = ("--train-data", "--train-split", "--eval-split", "--streaming")
        refuse(arguments, unused, "together with `--features`; omit one of them.")
    check_kind(arguments)
    if given.get("eval_data") is None:
        refuse(arguments, ("--eval-split",), "without `--eval-data`; add it.")
    if given.get("draft"):
        why = "together with `--draft`, which has its own vocabulary and weights; omit one of them."
        refuse(arguments, ("--draft-vocab-size", "--vocabulary", "--random-start", "--block-size", "--layers"), why)


def check_kind(arguments: argparse.Namespace) -> None:
    """Raises ValueError where options are another kind of drafter's."""
    kind, recipe = value_of(arguments, "--drafter") or EAGLE3, value_of(arguments, "--recipe")
    if recipe is not None and recipe not in RECIPES_OF[kind]:
        raise ValueError(
            f"`--recipe` {recipe} does not go with `--drafter` {kind}; choose from {', '.join(RECIPES_OF[kind])}, or "
            "change `--drafter`."
        )
    if kind != EAGLE3:
        why = f"with `--drafter` {kind}, which proposes the target's whole vocabulary; omit it."
        refuse(arguments, ("--draft-vocab-size", "--vocabulary"), why)
    if kind != BLOCK:
        refuse(arguments, ("--block-size",), "without `--drafter block`; add it.")
