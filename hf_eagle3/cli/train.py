"""`hf-eagle3 train`: train a draft for a target on conversations, configured by flags or a file."""

import argparse
import json
import logging
import shlex
import sys
import zipfile
from dataclasses import fields
from pathlib import Path

import torch
import yaml
from safetensors import safe_open
from transformers import HfArgumentParser, PreTrainedConfig, set_seed

from ..benchmarks.environment import hardware, versions
from ..draft_model import DraftModel
from ..errors import UserError, explained
from ..fitting import fit_to
from ..model_loading import BASE, load_causal_lm, load_tokenizer, needs_extra, read_draft
from ..modeling_eagle3 import Eagle3DraftModel
from ..training_options import BLOCK_RECIPES
from .kinds import KINDS, kind_of
from .options.shared import value_of
from .options.train import (
    BLOCK,
    DEFAULT_BLOCK_SIZE,
    DEFAULT_DRAFT_VOCABULARY,
    DEFAULT_RECIPES,
    EAGLE,
    EAGLE3,
    HASS,
    HYDRA,
    MEDUSA,
    OPTIONS,
    SWITCHES,
    with_default,
)
from .progress import LOGGED, print_lines
from .verdict import verdict_of_tau


ARGUMENTS_REMEDY = "See `hf-eagle3 train --help-all` for all arguments."
DATA_REMEDY = "Use a preset, file, folder or Hub id."
VOCABULARY_REMEDY = "Create it with `hf-eagle3 prepare vocabulary`."
TRAINER_MODULES = ("transformers.train", "transformers.integrations", "accelerate", "peft")
EXTRA = ("accelerate", "datasets")
MOST_HELD_OUT, HELD_OUT_SHARE = 200, 0.02
TAU_PROMPTS, TAU_SHARE = 8, 0.1  # tau is measured on 8 prompts; of little data, a tenth
COUNTED_FROM_STREAM = 10_000  # samples of a stream whose token counts determine the draft vocabulary
TRAINER_STATE = "trainer_state.json"
LORA_MODULES = ["fc", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def parents() -> list[argparse.ArgumentParser]:
    """A parser of all training arguments, from the dataclass; arguments that are not given stay unset."""
    needs_extra("train", EXTRA)
    from ..training.arguments import Eagle3TrainingArguments

    parser = HfArgumentParser(Eagle3TrainingArguments, add_help=False, allow_abbrev=False)
    for action in parser._actions:
        if action.help:
            action.help = with_default(action.help, action.default)
        action.default = argparse.SUPPRESS
        if action.dest == "report_to":  # accepts a list, unlike its annotation
            action.nargs = "+"
    return [parser]


def run(arguments: argparse.Namespace) -> int:
    from ..training import Eagle3TrainingArguments
    from ..training.best import keep_best

    logging.basicConfig(format="%(message)s")
    own = {name: value_of(arguments, name) for name in (option[2:].replace("-", "_") for option in OPTIONS)}
    names = {field.name for field in fields(Eagle3TrainingArguments)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    settings = {"disable_tqdm": not sys.stderr.isatty()} | given  # a bar in a file is a line per step
    if "logging_strategy" not in given:
        settings = {"logging_steps": LOGGED} | settings
    with explained("The training arguments cannot be used", ARGUMENTS_REMEDY, TRAINER_MODULES):
        own["drafter"] = own["drafter"] or EAGLE3
        own["recipe"] = own["recipe"] or DEFAULT_RECIPES[own["drafter"]]
        args = Eagle3TrainingArguments.from_recipe(own["recipe"], **settings)
    start = draft_to_start_from(own, args)
    checkpoint = checkpoint_to_resume(args)
    if checkpoint:
        refuse_broken_checkpoint(Path(checkpoint))
    with explained("The Trainer rejects this configuration", ARGUMENTS_REMEDY, TRAINER_MODULES):
        trainer = make_trainer(start, own, args)
        print_lines(trainer)
        keep_best(trainer, given)
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model(args.output_dir)
        metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    if trainer.is_world_process_zero():
        finish(trainer, own, metrics)
    trainer.accelerator.end_training()  # exiting with an open process group may abort the process
    return 0


def finish(trainer, own: dict, metrics: dict) -> None:
    """Write `training.json` and the merge of an adapter; print figures, a verdict in words and the next command."""
    from ..training.record import training_record, write_record

    folder = Path(trainer.args.output_dir)
    data = [own["features"]] if own["features"] else [own[name] for name in ("train_data", "eval_data") if own[name]]
    record = training_record(trainer, data, versions(), hardware(trainer.args.device), own["draft"])
    write_record(record, folder)
    if own["lora_rank"]:
        merged = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
        merged.save_pretrained(str(folder / "merged"))
        write_record(record, folder / "merged")
    print(f"Draft saved in {folder}")
    tau, tree = metrics.get("eval_acceptance_length"), trainer.args.generation_tree
    if tau is not None:
        print(verdict_of_tau(tau, tree, record["data"]["answer_tokens"]))
    template = trainer.args.chat_template_kwargs
    options = ["--chat-template-kwargs", json.dumps(template)] if template else []
    measure = ["hf-eagle3", "benchmark", "--target", own["target"], "--draft", str(folder), *options]
    print(f"Next, measure the speedup: {shlex.join(measure)}")


def draft_to_start_from(own: dict, args) -> str | None:
    """Directory or Hub id of the initial draft; `None` for a new one."""
    base = Path(args.output_dir) / BASE
    if own["draft"] or not own["lora_rank"]:
        return own["draft"]
    if checkpoint_to_resume(args) and base.is_dir():  # a run of an older version
        return str(base)
    raise UserError(
        f"`--lora-rank` {own['lora_rank']} adapts a trained draft: set `--draft`. A new draft has random layers and "
        "is trained as a whole: omit `--lora-rank`."
    )


def make_trainer(start: str | None, own: dict, args):
    """The Trainer with target, data and draft; `own` holds the values of `OPTIONS`."""
    from ..data.features import CachedTarget, FeatureDataset

    tokenizer = load_tokenizer(own["target"])
    target = load_target(own, args)
    if own["features"]:
        with explained(f"`--features` {own['features']} cannot be read", "Recompute them in a new folder."):
            data = FeatureDataset(own["features"])
            cached = CachedTarget(own["features"], target, tokenizer, args.chat_template_kwargs)
        draft = first_draft(start, own, args, target, data.tokens())
        data, held_out = split_off(data)
        target = cached
    else:
        data, held_out = load_data(own, tokenizer, args, target.config.get_text_config(decoder=True).vocab_size)
        draft = first_draft(start, own, args, target, data.take(COUNTED_FROM_STREAM) if own["streaming"] else data)
    return KINDS[own["drafter"]].trainer()(
        model=draft,
        target_model=target,
        args=args,
        train_dataset=data,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=lora_config(own["lora_rank"]),
    )


def first_draft(start: str | None, own: dict, args, target, samples) -> DraftModel:
    """The initial draft: `start`, or a new one with the most frequent tokens of `samples` as vocabulary."""
    kind = KINDS[own["drafter"]]
    options = draft_options(own["draft_option"])
    if start:
        refuse_unknown_fields(options, kind.config)
        # A published EAGLE draft's file does not say what it is.
        draft = read_draft(
            start, kind.model if own["drafter"] in (EAGLE, HASS) else None, dtype=torch.float32, **options
        )
        if type(draft.config) is not kind.config:
            raise UserError(f"`--draft` {start} is a {type(draft).__name__}; set `--drafter {kind_of(draft.config)}`.")
        return fit_to(draft, target) if isinstance(draft, Eagle3DraftModel) else draft
    set_seed(args.seed)
    if own["layers"]:
        options.setdefault("num_layers" if own["drafter"] in (MEDUSA, HYDRA) else "num_hidden_layers", own["layers"])
    if kind.new is not None:
        if own["drafter"] == BLOCK:
            size = own["block_size"] or DEFAULT_BLOCK_SIZE
            options = {"block_size": size, "is_causal": BLOCK_RECIPES[own["recipe"]]} | options
        return kind.new(target, not own["random_start"], options)
    from ..training import new_draft

    vocabulary = target.config.get_text_config(decoder=True).vocab_size
    size = own["draft_vocab_size"] or min(DEFAULT_DRAFT_VOCABULARY, vocabulary)
    if own["vocabulary"] and size >= vocabulary:
        raise UserError(
            f"`--vocabulary` has no effect, as the draft proposes all {vocabulary} tokens of the target; omit it or "
            "set a smaller `--draft-vocab-size`."
        )
    counts = token_counts(own, samples, vocabulary) if size < vocabulary else None
    return new_draft(target, size, counts, not own["random_start"], **options)


def lora_config(rank: int | None):
    if not rank:
        return None
    needs_extra("train", ("peft",))
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_MODULES)


def expand_config(argv: list[str]) -> list[str]:
    """Replace `--config FILE` by the flags in the file; explicit flags come later and take precedence."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    known, rest = parser.parse_known_args(argv)
    if known.config is None:
        return argv
    with explained(f"`--config {known.config}` cannot be read", "Use a YAML or JSON file."):
        text = Path(known.config).read_text(encoding="utf-8")
    content = parse_yaml(text, f"`--config {known.config}`")
    if not isinstance(content, dict):
        raise ValueError(f"`--config {known.config}` must map options to values.")
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
        raise ValueError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None


def draft_options(pairs: list[str] | None) -> dict:
    """`NAME=VALUE` flags as a dictionary of a configuration's fields."""
    out = {}
    for pair in pairs or ():
        name, found, value = pair.partition("=")
        if not found:
            raise ValueError(f"`--draft-option {pair}` is not NAME=VALUE.")
        out[name.replace("-", "_")] = parse_yaml(value, f"`--draft-option {pair}`")
    return out


def refuse_unknown_fields(overrides: dict, config_class: type[PreTrainedConfig]) -> None:
    """Raises UserError if a name is not a field of `config_class`."""
    known = {field.name for field in fields(config_class)} - {field.name for field in fields(PreTrainedConfig)}
    if unknown := overrides.keys() - known - {"rope_theta"}:
        raise UserError(
            f"`--draft-option {min(unknown)}` is not a field of {config_class.__name__}; choose from "
            f"{', '.join(sorted(known))}."
        )


def load_target(own: dict, args):
    options = {"dtype": own["target_dtype"] or "auto"}
    if own["target_device_map"]:
        return load_causal_lm("--target", own["target"], device_map=own["target_device_map"], **options)
    # With offline features only its configuration, head and embedding are read.
    device = "cpu" if args.use_cpu or own["features"] else args.device
    return load_causal_lm("--target", own["target"], **options).to(device)


def load_data(own: dict, tokenizer, args, vocab_size: int):
    """(training data, evaluation data), tokenised."""
    from ..data.loading import load, tokenised

    options = {"template_kwargs": args.chat_template_kwargs, "vocab_size": vocab_size}
    with explained(f"`--train-data` {own['train_data']} cannot be read", DATA_REMEDY):
        data = load(own["train_data"], own["train_split"], streaming=bool(own["streaming"]))
    data = tokenised(data, tokenizer, args.max_length, name=f"`{own['train_data']}`", **options)
    if own["eval_data"]:
        with explained(f"`--eval-data` {own['eval_data']} cannot be read", DATA_REMEDY):
            held_out = load(own["eval_data"], own["eval_split"])
        return data, tokenised(held_out, tokenizer, args.max_length, name=f"`{own['eval_data']}`", **options)
    return (data, None) if own["streaming"] else split_off(data)


def split_off(data):
    """(training data, a few evenly spaced samples for evaluation)."""
    from datasets import Dataset

    if len(data) < 2:
        return data, None
    few = min(TAU_PROMPTS, int(len(data) * TAU_SHARE))
    count = min(MOST_HELD_OUT, max(1, few, int(len(data) * HELD_OUT_SHARE)))
    every = len(data) // count
    chosen = range(0, every * count, every)
    rest = [i for i in range(len(data)) if i not in set(chosen)]
    if isinstance(data, Dataset):
        return data.select(rest), data.select(chosen)
    return torch.utils.data.Subset(data, rest), torch.utils.data.Subset(data, list(chosen))


def token_counts(own: dict, samples, vocabulary: int) -> torch.Tensor:
    from ..training import count_tokens

    if own["vocabulary"]:
        with explained(f"`--vocabulary` {own['vocabulary']} cannot be read", VOCABULARY_REMEDY):
            stored = json.loads(Path(own["vocabulary"]).read_text(encoding="utf-8"))
        if not isinstance(stored, dict) or not isinstance(stored.get("counts"), list):
            raise UserError(f"`--vocabulary` {own['vocabulary']} contains no counts. {VOCABULARY_REMEDY}")
        if stored.get("vocab_size") != vocabulary:
            raise ValueError(
                f"`{own['vocabulary']}` counts {stored.get('vocab_size')} tokens, the target has {vocabulary}."
            )
        return torch.tensor(stored["counts"])
    return count_tokens(samples, vocabulary)


def checkpoint_to_resume(args) -> str | None:
    """`--resume-from-checkpoint true` means the latest complete one, if any."""
    requested = args.resume_from_checkpoint
    if requested is None or str(requested).lower() == "false":
        return None
    if str(requested).lower() != "true":
        return requested
    # The Trainer writes this file last: a checkpoint without it was interrupted.
    complete = [path.parent for path in Path(args.output_dir).glob(f"checkpoint-*/{TRAINER_STATE}")]
    steps = {int(path.name.rpartition("-")[2]): str(path) for path in complete if path.name[-1].isdigit()}
    return steps[max(steps)] if steps else None


def refuse_broken_checkpoint(folder: Path) -> None:
    """
    Raises:
        UserError: the folder does not exist, or writing it was interrupted.
    """
    if not folder.is_dir():
        raise UserError(f"`--resume-from-checkpoint` {folder} is not a directory; use one, or true for the latest.")
    remedy = "Writing it was interrupted: delete it and resume from the previous checkpoint."
    with explained(f"`--resume-from-checkpoint`: {folder} is incomplete", remedy):
        json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
        for path in folder.glob("*.safetensors"):
            with safe_open(path, framework="pt"):
                pass
    for path in (path for pattern in ("*.pt", "*.pth", "*.bin") for path in folder.glob(pattern)):
        if not zipfile.is_zipfile(path):
            raise UserError(f"`--resume-from-checkpoint`: {path} is truncated. {remedy}")
