"""`hf-eagle3 train`: a draft for a target, from conversations, by flags or a config file."""

import argparse
import json
import logging
from pathlib import Path

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, set_seed

from ..modeling_eagle3 import Eagle3DraftModel
from .loading import DTYPES, needs_extra


HELP = "train a draft for a target by training-time test"
EXTRA = ("accelerate", "datasets")
DEFAULT_DRAFT_VOCABULARY = 32000  # the original code's, where the target knows more tokens
MOST_HELD_OUT, HELD_OUT_SHARE = 200, 0.02
COUNTED_FROM_STREAM = 10_000  # samples of a stream that choose the draft vocabulary
LORA_MODULES = ["fc", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


# What to train on what; the training arguments themselves come from their dataclass.
OPTIONS = {
    "--recipe": {"choices": ("paper", "specforge", "speculators"), "help": "a whole recipe (default: paper)"},
    "--target": {"help": "directory or Hub id of the target model"},
    "--train-data": {"help": "preset (sharegpt, ultrachat-200k, openthoughts-114k-math), file, folder or Hub id"},
    "--train-split": {"help": "default: train"},
    "--eval-data": {"help": "default: 2 %% of the training data, 1 to 200 samples, are held out"},
    "--eval-split": {"help": "default: train"},
    "--streaming": {"action": "store_true", "help": "read the data while training; needs --max-steps"},
    "--features": {"help": "folder of `prepare features`: train on these instead of running the target"},
    "--draft": {"help": "go on from this draft instead of a new one"},
    "--draft-vocab-size": {
        "type": int,
        "help": f"tokens the draft can propose (default: {DEFAULT_DRAFT_VOCABULARY}, or all if the target "
        "knows no more)",
    },
    "--vocabulary": {"help": "file of `prepare vocabulary`; default: counted in the training data"},
    "--draft-option": {
        "action": "append",
        "metavar": "NAME=VALUE",
        "help": "field of Eagle3Config, e.g. intermediate_size=4096 or target_layer_ids=[1,15,28]; repeatable",
    },
    "--random-start": {"action": "store_true", "help": "random head and fusion, as the original code"},
    "--lora-rank": {"type": int, "help": "train a LoRA adapter of this rank; a merged draft is saved too"},
    "--target-dtype": {"choices": DTYPES, "help": "of the target (default: auto)"},
    "--target-device-map": {"help": "e.g. auto: spread the target over devices (default: one device)"},
}
SWITCHES = [
    name[2:] for name, settings in OPTIONS.items() if settings.get("action") == "store_true"
]  # without a value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to train on what (also as keys of --config)")
    for name, settings in OPTIONS.items():
        group.add_argument(name, default=argparse.SUPPRESS, **settings)
    parser.epilog = "--config FILE: YAML or JSON with any of these options; flags win over it."


def parents() -> list[argparse.ArgumentParser]:
    """transformers' training arguments and ours, from the dataclass; nothing is set that was not given."""
    try:
        from ..training.arguments import Eagle3TrainingArguments
    except ImportError:  # said by `run`
        return []
    parser = HfArgumentParser(Eagle3TrainingArguments, add_help=False, allow_abbrev=False)
    for action in parser._actions:
        if action.help and action.default not in (None, argparse.SUPPRESS, ""):
            action.help += f" (default: {action.default})".replace("%", "%%")
        action.default = argparse.SUPPRESS
        if action.dest == "report_to":  # a list, although its annotation says otherwise
            action.nargs = "+"
    return [parser]


def run(arguments: argparse.Namespace) -> int:
    needs_extra("train", EXTRA)
    from ..data.features import CachedTarget, FeatureDataset
    from ..training import Eagle3Trainer, Eagle3TrainingArguments

    logging.basicConfig(format="%(message)s")
    settings = {name: value for name, value in vars(arguments).items() if name != "command"}
    own = {name: settings.pop(name, None) for name in (option[2:].replace("-", "_") for option in OPTIONS)}
    for name in ("target", *(() if own["features"] else ("train_data",))):
        if own[name] is None:
            raise ValueError(f"`--{name.replace('_', '-')}` is missing (as a flag or in the config file).")
    if own["features"] and own["eval_data"]:
        raise ValueError("`--eval-data` does not go with `--features`: a part of the features is held out instead.")
    args = Eagle3TrainingArguments.from_recipe(own["recipe"] or "paper", **settings)

    tokenizer = AutoTokenizer.from_pretrained(own["target"])
    target = load_target(own, args)
    if own["features"]:
        data = FeatureDataset(own["features"])
        draft = first_draft(own, args, target, data.tokens())
        data, held_out = split_off(data)
        target = CachedTarget(own["features"], target, tokenizer, args.chat_template_kwargs)
    else:
        data, held_out = load_data(own, tokenizer, args, target.config.get_text_config(decoder=True).vocab_size)
        draft = first_draft(own, args, target, data.take(COUNTED_FROM_STREAM) if own["streaming"] else data)
    trainer = Eagle3Trainer(
        model=draft,
        target_model=target,
        args=args,
        train_dataset=data,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=lora_config(own["lora_rank"]),
    )
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(args))
    trainer.save_model(args.output_dir)
    metrics = trainer.evaluate() if held_out is not None else {}
    if trainer.is_world_process_zero():
        if own["lora_rank"]:
            merged = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
            merged.save_pretrained(str(Path(args.output_dir) / "merged"))
        if metrics:
            print(json.dumps(metrics))
        print(f"Draft saved in {args.output_dir}")
    trainer.accelerator.end_training()  # a process that ends with its process group open may be aborted
    return 0


def first_draft(own: dict, args, target, samples) -> Eagle3DraftModel:
    """
    The draft to begin with; `samples` choose its vocabulary. An adapter needs the same one again when it resumes.
    """
    from ..training import new_draft

    base = Path(args.output_dir) / "base"
    start = own["draft"] or (str(base) if own["lora_rank"] and checkpoint_to_resume(args) else None)
    if start:
        return Eagle3DraftModel.from_pretrained(start, dtype=torch.float32)
    set_seed(args.seed)
    vocabulary = target.config.get_text_config(decoder=True).vocab_size
    size = own["draft_vocab_size"] or min(DEFAULT_DRAFT_VOCABULARY, vocabulary)
    counts = token_counts(own, samples, vocabulary) if size < vocabulary else None
    draft = new_draft(target, size, counts, not own["random_start"], **draft_options(own["draft_option"]))
    if own["lora_rank"] and args.process_index == 0:
        draft.save_pretrained(str(base))
    return draft


def lora_config(rank: int | None):
    if not rank:
        return None
    needs_extra("train", ("peft",))
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_MODULES)


def expand_config(argv: list[str]) -> list[str]:
    """`--config FILE` replaced by the flags that the file stands for; flags given beside it come later and win."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    known, rest = parser.parse_known_args(argv)
    if known.config is None:
        return argv
    content = parse_yaml(Path(known.config).read_text(encoding="utf-8"), f"`--config {known.config}`")
    if not isinstance(content, dict):
        raise ValueError(f"`--config {known.config}` must hold options and their values.")
    flags: list[str] = []
    for name, value in content.items():
        flag = "--" + str(name).replace("_", "-")
        if flag[2:] in SWITCHES:
            flags += [flag] if value else []
        elif isinstance(value, dict) and flag != "--draft-option":
            flags += [flag, json.dumps(value)]
        elif isinstance(value, dict):
            flags += [x for key, inner in value.items() for x in (flag, f"{key}={json.dumps(inner)}")]
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        elif value is not None:
            flags += [flag, str(value)]
    return [rest[0], *flags, *rest[1:]]  # the command stays first


def parse_yaml(text: str, source: str):
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}") from None


def draft_options(pairs: list[str] | None) -> dict:
    """`NAME=VALUE` flags as fields of `Eagle3Config`."""
    out = {}
    for pair in pairs or ():
        name, found, value = pair.partition("=")
        if not found:
            raise ValueError(f"`--draft-option {pair}` is not NAME=VALUE.")
        out[name.replace("-", "_")] = parse_yaml(value, f"`--draft-option {pair}`")
    return out


def load_target(own: dict, args):
    options = {"dtype": own["target_dtype"] or "auto"}
    if own["target_device_map"]:
        return AutoModelForCausalLM.from_pretrained(own["target"], device_map=own["target_device_map"], **options)
    # With features computed beforehand only its configuration, head and embedding are looked at.
    device = "cpu" if args.use_cpu or own["features"] else args.device
    return AutoModelForCausalLM.from_pretrained(own["target"], **options).to(device)


def load_data(own: dict, tokenizer, args, vocab_size: int):
    """(training data, evaluation data), tokenised."""
    from ..data.loading import load, tokenised

    options = {"template_kwargs": args.chat_template_kwargs, "vocab_size": vocab_size}
    data = load(own["train_data"], own["train_split"], streaming=bool(own["streaming"]))
    data = tokenised(data, tokenizer, args.max_length, name=f"`{own['train_data']}`", **options)
    if own["eval_data"]:
        held_out = load(own["eval_data"], own["eval_split"])
        return data, tokenised(held_out, tokenizer, args.max_length, name=f"`{own['eval_data']}`", **options)
    return (data, None) if own["streaming"] else split_off(data)


def split_off(data):
    """(most of it, a few evenly spread samples for evaluation)."""
    if len(data) < 2:
        return data, None
    count = min(MOST_HELD_OUT, max(1, int(len(data) * HELD_OUT_SHARE)))
    every = len(data) // count
    chosen = range(0, every * count, every)
    rest = [i for i in range(len(data)) if i not in set(chosen)]
    if hasattr(data, "select"):
        return data.select(rest), data.select(chosen)
    return torch.utils.data.Subset(data, rest), torch.utils.data.Subset(data, list(chosen))


def token_counts(own: dict, samples, vocabulary: int) -> torch.Tensor:
    from ..training import count_tokens

    if own["vocabulary"]:
        stored = json.loads(Path(own["vocabulary"]).read_text(encoding="utf-8"))
        if stored.get("vocab_size") != vocabulary:
            raise ValueError(
                f"`{own['vocabulary']}` counts {stored.get('vocab_size')} tokens, the target has {vocabulary}."
            )
        return torch.tensor(stored["counts"])
    return count_tokens(samples, vocabulary)


def checkpoint_to_resume(args) -> str | None:
    """`--resume-from-checkpoint true` means the last one, if there is any."""
    from transformers.trainer_utils import get_last_checkpoint

    wish = args.resume_from_checkpoint
    if wish is None or str(wish).lower() == "false":
        return None
    if str(wish).lower() != "true":
        return wish
    return get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
