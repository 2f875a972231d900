"""`hf-eagle3 make-draft`: from prompts to a measured draft, by running other commands of this package one by one.

Every stage is one command line, printed before it runs and recorded in `make-draft.json` in the output folder. A stage
that finished with the same command line is not run again; an unfinished one continues, as each command can.
"""

import argparse
import gc
import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from ..benchmarks.prompts import prompt_of
from ..data.messages import BadRow, row_of
from ..errors import UserError, explained
from ..model_loading import load_target_config, load_tokenizer, needs_extra
from .options.make_draft import HELD_OUT_SHARE, NUM_HELD_OUT, STAGES
from .verdict import verdict_of_benchmark, verdict_of_tau


STATE, FORMAT = "make-draft.json", 1
PROMPTS, HELD_OUT = "prompts.jsonl", "held-out.jsonl"
# What each stage writes, in the output folder.
RESULTS = {
    "regenerate": "answers.jsonl",
    "vocabulary": "vocabulary.json",
    "train": "draft",
    "benchmark": "benchmark",
    "card": "repository",
}
METHODS = ("lookup:10", "chain:7", "tree:24,6,6", "auto")
BENCHMARK_TOKENS = 128  # as `hf-eagle3 benchmark` by default
TEXT_DIFFERS = 1  # exit status of `benchmark`, which has measured everything
LEAST_PROMPTS = 4


def run(arguments: argparse.Namespace) -> int:
    needs_extra("train", ("accelerate", "datasets"))
    folder = Path(arguments.output)
    state = State.open(folder)
    check_tokenizer(arguments)
    write_prompts(arguments, state)
    if arguments.first:
        state.discard(STAGES[STAGES.index(arguments.first) :])
    for number, stage in enumerate(STAGES, start=1):
        if code := run_stage(f"[{number}/{len(STAGES)}] {stage}", stage, arguments, state):
            return code
    conclude(arguments, folder)
    return 0


class State:
    """
    `make-draft.json`: the data, and each stage's command and whether it finished.

    Args:
        folder: The output folder.
        content: As in the file.
    """

    def __init__(self, folder: Path, content: dict):
        self.folder, self.content = folder, content
        self.changed = False  # a stage ran, so the results of later ones are out of date

    @classmethod
    def open(cls, folder: Path) -> "State":
        """
        Raises:
            UserError: `folder` holds something else.
        """
        file = folder / STATE
        if folder.exists() and not folder.is_dir():
            raise UserError(f"`--output` {folder} is a file; choose a folder.")
        if file.is_file():
            with explained(f"`--output`: {file} cannot be read", "Choose a new folder."):
                content = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                raise UserError(f"`--output`: {file} is of another version; choose a new folder.")
            return cls(folder, content)
        if folder.is_dir() and (others := sorted(path.name for path in folder.iterdir())):
            raise UserError(
                f"`--output` {folder} holds other files ({', '.join(others[:3])}{', ...' * (len(others) > 3)}); "
                "choose a new or empty folder, or one that `hf-eagle3 make-draft` has written."
            )
        return cls(folder, {"format": FORMAT, "stages": {}})

    def write(self) -> None:
        """Save it, so that an interruption leaves the old or the new file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f"{STATE}.unfinished"
        unfinished.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(self.folder / STATE)

    def mark(self, stage: str, command: list[str], finished: bool) -> None:
        """Record a stage that starts or ends."""
        self.content["stages"][stage] = {"command": shlex.join(command), "finished": finished}
        self.write()

    def result(self, stage: str) -> Path:
        """Where the stage writes."""
        return self.folder / RESULTS[stage]

    def discard(self, stages: tuple[str, ...]) -> None:
        """Delete the results of stages."""
        for stage in stages:
            path = self.result(stage)
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            self.content["stages"].pop(stage, None)
        self.write()

    def is_finished(self, stage: str, command: list[str]) -> bool:
        """
        Whether the stage has run with this command, on what earlier stages have written.

        Raises:
            UserError: its result was made otherwise and is expensive to make.
        """
        known = self.content["stages"].get(stage)
        if known is None or not self.result(stage).exists():
            return False
        if known["command"] != shlex.join(command) and stage in ("regenerate", "train"):
            raise UserError(
                f"`--output` {self.folder}: its stage {stage} was run as `hf-eagle3 {known['command']}` and would now "
                f"be `hf-eagle3 {shlex.join(command)}`. Use `--from {stage}` to replace its result, `--skip {stage}` "
                "to keep it, or a new `--output`."
            )
        if self.changed and known["finished"] and stage == "train":
            raise UserError(
                f"`--output` {self.folder} has a draft trained on fewer answers. Use `--from train` to replace it, "
                "`--skip train` to keep it, or a new `--output`."
            )
        return known["finished"] and not self.changed and known["command"] == shlex.join(command)


def check_tokenizer(arguments: argparse.Namespace) -> None:
    """
    Raises:
        UserError: the target has no tokenizer, or no chat template and is not declared a base model.
    """
    load_target_config(arguments.target)
    has_template = load_tokenizer(arguments.target).chat_template is not None
    if arguments.base_model and has_template:
        raise UserError(f"`--base-model` has no effect: `--target` {arguments.target} has a chat template. Omit it.")
    if not has_template and not arguments.base_model:
        raise UserError(
            f"`--target` {arguments.target}: its tokenizer has no chat template. Save the model with the template it "
            "was trained with, or set `--base-model` to continue the prompts as plain text."
        )


# The prompts


def write_prompts(arguments: argparse.Namespace, state: State) -> None:
    """
    Split the data into `prompts.jsonl` and `held-out.jsonl`, once.

    Raises:
        UserError: the data cannot be read, has too few prompts, or is not the data of an earlier run.
    """
    from ..data.loading import load

    with explained(f"`--data` {arguments.data} cannot be read", "Use a preset, file, folder or Hub id."):
        data = load(arguments.data, arguments.split)
    lines, readable, problem = [], [], ""
    for row in data.select(range(min(arguments.limit or len(data), len(data)))):
        try:
            line = json.dumps({k: v for k, v in row_of(row).items() if v is not None}, ensure_ascii=False, default=str)
            lines.append(line)
            prompt_of(line, len(lines))
            readable.append(len(lines) - 1)
        except BadRow as error:
            problem = problem or f" First problem, row {len(lines)}: {error}"
    if len(readable) < LEAST_PROMPTS:
        raise UserError(
            f"`--data` {arguments.data} has {len(readable)} prompts in {len(data)} rows; at least {LEAST_PROMPTS} are "
            f'needed. Write one {{"prompt": "..."}} per line.{problem}'
        )
    count = arguments.held_out or min(NUM_HELD_OUT, max(2, int(len(readable) * HELD_OUT_SHARE)))
    if count > len(readable) // 2:
        raise UserError(f"`--held-out` {count} is more than half of {len(readable)} prompts; use fewer.")
    chosen = {readable[i * (len(readable) // count)] for i in range(count)}  # evenly spaced
    held_out = [lines[i] for i in sorted(chosen)]
    known = set(held_out)  # duplicates of held-out prompts are not trained on
    texts = {
        PROMPTS: "".join(f"{line}\n" for line in lines if line not in known),
        HELD_OUT: "".join(f"{line}\n" for line in held_out),
    }
    digest = hashlib.sha256("\0".join(texts.values()).encode()).hexdigest()[:16]
    earlier = state.content.get("data")
    if earlier is not None and earlier != digest and arguments.first != "regenerate":
        raise UserError(
            f"`--data` {arguments.data} (or `--limit`, `--held-out`) is not what `--output` {state.folder} was made "
            "of; choose a new `--output`, or replace everything in it with `--from regenerate`."
        )
    state.content["data"] = digest
    state.write()
    for name, text in texts.items():
        (state.folder / name).write_text(text, encoding="utf-8")
    print(f"{len(lines) - len(held_out)} prompts to train on, {len(held_out)} held out for the benchmark", flush=True)


# The stages


def run_stage(title: str, stage: str, arguments: argparse.Namespace, state: State) -> int:
    """Run one stage unless it is skipped or finished; its exit status."""
    from . import main

    if stage in arguments.skip:
        print(f"\n{title}: skipped", flush=True)
        return 0
    command = COMMANDS[stage](arguments, state)
    if state.is_finished(stage, command):
        print(f"\n{title}: done before, by `hf-eagle3 {shlex.join(command)}`", flush=True)
        return 0
    if stage in ("benchmark", "card"):  # they do not continue an interrupted run
        state.discard((stage,))
    state.mark(stage, command, finished=False)
    print(f"\n{title}\n+ hf-eagle3 {shlex.join(command)}", flush=True)
    code = main(command)
    gc.collect()  # the models of this stage, before the next one loads its own
    if code and not (stage == "benchmark" and code == TEXT_DIFFERS):
        return code
    state.mark(stage, command, finished=True)
    state.changed = True
    return 0


def model_options(arguments: argparse.Namespace) -> list[str]:
    """Options on devices that `prepare` and `benchmark` share."""
    dtype = ["--dtype", arguments.dtype] if arguments.dtype != "auto" else []
    return dtype + (["--device", arguments.device] if arguments.device else [])


def template_options(arguments: argparse.Namespace) -> list[str]:
    """The chat template's arguments, for every command."""
    given = arguments.chat_template_kwargs
    return ["--chat-template-kwargs", json.dumps(given)] if given else []


def regenerate_command(arguments: argparse.Namespace, state: State) -> list[str]:
    """The target answers the prompts."""
    where = ["--endpoint", arguments.endpoint] if arguments.endpoint else model_options(arguments)
    return [
        *("prepare", "regenerate", "--data", str(state.folder / PROMPTS)),
        *("--target", arguments.served_name or arguments.target, "--output", str(state.result("regenerate"))),
        *("--max-new-tokens", str(arguments.max_new_tokens), "--seed", str(arguments.seed)),
        *("--temperature", *(f"{value:g}" for value in arguments.temperature)),
        *where,
        *template_options(arguments),
    ]


def answers(state: State) -> Path:
    """What is trained on: the target's answers, or those in the data."""
    path = state.result("regenerate")
    return path if path.exists() else state.folder / PROMPTS


def vocabulary_command(arguments: argparse.Namespace, state: State) -> list[str]:
    """Count the answers' tokens."""
    from ..training_plan import LONGEST

    return [
        *("prepare", "vocabulary", "--data", str(answers(state)), "--target", arguments.target),
        *("--output", str(state.result("vocabulary")), "--max-length", str(LONGEST), *template_options(arguments)),
    ]


def train_command(arguments: argparse.Namespace, state: State) -> list[str]:
    """Train on the answers, with options by their number."""
    from ..training_plan import Amount, plan, vocabulary_size

    counted = state.result("vocabulary")
    if not counted.exists():
        raise UserError(f"The stage train needs {counted}; omit `--skip vocabulary`.")
    found = json.loads(counted.read_text(encoding="utf-8"))
    amount = Amount(found["samples"], found["tokens"], sum(found["counts"]), found["long_sample"])
    width = load_target_config(arguments.target).get_text_config(decoder=True).hidden_size
    chosen = plan(amount, width, arguments.epochs, arguments.learning_rate)
    all_tokens = found["vocab_size"]
    size = min(arguments.draft_vocab_size or vocabulary_size(found["counts"], all_tokens), all_tokens)
    is_cpu = arguments.device == "cpu" or not torch.accelerator.is_available()
    has_bf16 = not is_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return [
        *("train", "--target", arguments.target, "--train-data", str(answers(state))),
        *("--output-dir", str(state.result("train")), "--draft-vocab-size", str(size)),
        *(("--vocabulary", str(counted)) if size < all_tokens else ()),
        *("--num-train-epochs", str(chosen.epochs), "--learning-rate", f"{chosen.learning_rate:g}"),
        *("--lr-scheduler-type", "cosine", "--warmup-steps", f"{chosen.warm_up:g}"),
        *("--per-device-train-batch-size", str(chosen.batch_samples), "--packing", "true"),
        *(("--gradient-accumulation-steps", str(chosen.accumulation)) if chosen.accumulation > 1 else ()),
        *("--max-length", str(chosen.max_length), "--seed", str(arguments.seed), "--report-to", "none"),
        *(("--target-dtype", arguments.dtype) if arguments.dtype != "auto" else ()),
        *(("--use-cpu", "true") if is_cpu else ()),
        *(("--bf16", "true") if has_bf16 else ()),
        *template_options(arguments),
        *("--resume-from-checkpoint", "true"),
    ]


def draft_folder(state: State, stage: str) -> str:
    """The trained draft; UserError if there is none."""
    if not state.result("train").exists():
        raise UserError(f"The stage {stage} needs a draft in {state.result('train')}; omit `--skip train`.")
    return str(state.result("train"))


def benchmark_command(arguments: argparse.Namespace, state: State) -> list[str]:
    """Measure the draft on the held-out prompts."""
    return [
        *("benchmark", "--target", arguments.target, "--draft", draft_folder(state, "benchmark")),
        *("--tasks", str(state.folder / HELD_OUT), "--methods", *METHODS, "--repetitions", "1"),
        *("--max-new-tokens", str(min(arguments.max_new_tokens, BENCHMARK_TOKENS))),
        *("--output-dir", str(state.result("benchmark")), "--no-plots"),
        *model_options(arguments),
        *template_options(arguments),
    ]


def card_command(arguments: argparse.Namespace, state: State) -> list[str]:
    """Write the repository with its model card, without uploading."""
    figures = state.result("benchmark") / "benchmark.json"
    return [
        *("push", draft_folder(state, "card"), repository(arguments), "--dry-run", str(state.result("card"))),
        *("--target", arguments.target, *(("--benchmark", str(figures)) if figures.exists() else ())),
    ]


COMMANDS: dict[str, Callable[[argparse.Namespace, State], list[str]]] = {
    "regenerate": regenerate_command,
    "vocabulary": vocabulary_command,
    "train": train_command,
    "benchmark": benchmark_command,
    "card": card_command,
}


def repository(arguments: argparse.Namespace) -> str:
    """Hub id of the draft: the given one, or the folder's name with what the Hub does not allow replaced."""
    name = re.sub(r"[^\w-]+", "-", Path(arguments.output).resolve().name).strip("-_") or "draft"
    return arguments.repo_id or f"user/{name}"


# The end


def conclude(arguments: argparse.Namespace, folder: Path) -> None:
    """Print the verdict and the next commands."""
    figures, trained = folder / RESULTS["benchmark"] / "benchmark.json", folder / RESULTS["train"] / "training.json"
    record = json.loads(trained.read_text(encoding="utf-8")) if trained.exists() else {}
    answer_tokens = record.get("data", {}).get("answer_tokens")
    is_worth = True
    if figures.exists():
        rows = json.loads(figures.read_text(encoding="utf-8"))["rows"]
        text, is_worth = verdict_of_benchmark(rows, answer_tokens)
        print(f"\n{text}")
    elif history := record.get("evaluation", {}).get("history"):
        best = max(history, key=lambda entry: entry["acceptance_length"])["acceptance_length"]
        print(f"\n{verdict_of_tau(best, record['evaluation']['tree'], answer_tokens)}")
    draft, target = folder / RESULTS["train"], arguments.target
    options = template_options(arguments)
    try_it = ["generate", "--target", target, "--draft", str(draft), "--prompt", "Hello", "--compare", *options]
    lines = [("Try it", try_it)]
    if is_worth:
        push = ["push", str(draft), repository(arguments), "--target", target]
        push += ["--benchmark", str(figures)] if figures.exists() else []
        lines += [("Publish it", push), ("Serve it", ["convert", str(draft), f"{folder}-plain", "--target", target])]
    else:
        again = ["make-draft", "--target", target, "--data", "MORE-PROMPTS.jsonl", "--output", f"{folder}-2", *options]
        lines.append(("With more data", again))
    for what, command in lines:
        print(f"{what + ':':<16} hf-eagle3 {shlex.join(command)}")
