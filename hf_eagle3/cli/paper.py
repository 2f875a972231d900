"""`hf-eagle3 paper`: the paper's tables on a target, from answers to a page; resumable."""

import argparse
import json
import shlex
from pathlib import Path

from .. import embedded
from ..benchmarks import environment, prompts
from ..benchmarks.methods import Assistant
from ..benchmarks.work import BenchmarkSettings
from ..configuration_eagle3 import num_decoder_layers
from ..errors import UserError
from ..model_loading import dtype_for, load_causal_lm, load_target, load_tokenizer, needs_extra, usable_device
from ..paper.drafts import KINDS, SCALED, SHARES, Plan, train_missing, trained_on
from ..paper.measure import CHAIN, SHORT_CHAIN, Bench, chains, quality, table_1_methods, trees
from ..paper.report import page
from . import main
from .options.paper import EMBEDDED


NEEDED = {
    "table-1": KINDS,
    "figure-7": ("eagle", "hass", "eagle3"),
    "table-3": ("eagle", "eagle3"),
    "quality": ("eagle3",),
}
NEEDED |= {"scaling": (*SCALED, *(f"{name}@{share}" for name in SCALED for share in SHARES))}


def run(arguments: argparse.Namespace) -> int:
    needs_extra("bench", ("matplotlib",))
    needs_extra("train", ("accelerate", "datasets"))
    from ..paper.plots import draw

    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    source = str(embedded.TARGET) if arguments.target == EMBEDDED else arguments.target
    dtype = dtype_for(source, arguments.dtype, usable_device(arguments.device))
    target = load_target(source, dtype=dtype, device=arguments.device)
    answers = arguments.answers or regenerated(arguments, source, dtype)
    plan = Plan(
        source, str(target.dtype).removeprefix("torch."), answers, output, arguments.steps, arguments.batch_size,
        arguments.learning_rate, arguments.max_length, num_decoder_layers(target.config.get_text_config(decoder=True)),
    )  # fmt: skip
    names = [name for piece in arguments.pieces for name in needed(piece, arguments.drafts)]
    names = list(dict.fromkeys(names))
    train_missing(plan, names, lambda line: print(line, flush=True))
    pieces = measured(arguments, Bench(
        plan, target, load_tokenizer(source), tasks_of(arguments),
        BenchmarkSettings(tuple(arguments.temperatures), (1,), repetitions=arguments.repetitions, warm_up=0,
                          max_new_tokens=arguments.max_new_tokens),
        load_assistant(arguments, target),
    ))  # fmt: skip
    facts = {
        "target": arguments.target,
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "hardware": environment.hardware(target.device)["device_name"],
        "versions": environment.versions(),
        "command": command(arguments),
        "trained": {name: trained_on(plan, name) for name in names},
    }
    text = page(pieces, facts)
    (output / "paper.md").write_text(text, encoding="utf-8")
    (output / "paper.json").write_text(json.dumps({"facts": facts, "pieces": pieces}, indent=1), encoding="utf-8")
    draw(pieces, output)
    print(text)
    print(f"Written: {output / 'paper.md'}")
    return 0


def needed(piece: str, drafts: list[str]) -> list[str]:
    """The drafts of a piece, of those that were asked for."""
    return [name for name in NEEDED[piece] if name.partition("@")[0] in drafts]


def measured(arguments: argparse.Namespace, bench: Bench) -> dict[str, dict]:
    """The pieces that were asked for, by name."""
    greedy = BenchmarkSettings((0.0,), (1,), repetitions=1, warm_up=0, max_new_tokens=arguments.max_new_tokens)
    batched = BenchmarkSettings(
        (0.0,), tuple(arguments.batch_sizes), repetitions=arguments.repetitions, warm_up=0,
        max_new_tokens=arguments.max_new_tokens, ignore_eos=True,
    )  # fmt: skip
    how = {
        "table-1": lambda: bench.run("table-1", table_1_methods(bench, arguments.drafts)),
        "figure-7": lambda: bench.run("figure-7", chains(bench, needed("figure-7", arguments.drafts), CHAIN), greedy),
        "scaling": lambda: bench.run("scaling", trees(bench, NEEDED["scaling"]), greedy),
        "table-3": lambda: bench.run("table-3", chains(bench, NEEDED["table-3"], SHORT_CHAIN), batched),
        "quality": lambda: quality(bench, arguments.texts, arguments.sample_tokens),
    }
    found = {}
    for piece in arguments.pieces:
        print(f"{piece} ...", flush=True)
        found[piece] = how[piece]()
    return found


def regenerated(arguments: argparse.Namespace, source: str, dtype: str) -> Path:
    """The target's own answers to `--data`, greedy and at temperature 1 in turn; an interrupted run continues."""
    path = arguments.output / "answers.jsonl"
    given = ["prepare", "regenerate", "--target", source, "--data", arguments.data, "--output", str(path)]
    given += ["--dtype", dtype, "--temperature", "1", "0", "--max-new-tokens", str(arguments.max_length // 2)]
    print("+ hf-eagle3", shlex.join(given), flush=True)
    if main(given):
        raise UserError("The target did not answer `--data`; see above.")
    return path


def tasks_of(arguments: argparse.Namespace) -> list[prompts.Task]:
    """The prompts to measure on, a task per domain of those of the embedded pair."""
    if arguments.tasks:
        return [prompts.load_task(source, arguments.limit) for source in arguments.tasks]
    tasks = []
    for domain in dict.fromkeys(row["domain"] for row in embedded.prompts()):
        lines = [json.dumps(row) for row in embedded.prompts(domain)[: arguments.limit]]
        tasks.append(prompts.Task(domain, tuple(prompts.read_lines(lines, []))))
    return tasks


def load_assistant(arguments: argparse.Namespace, target) -> Assistant | None:
    """The small model, which must have the target's vocabulary."""
    if arguments.assistant is None:
        return None
    model = load_causal_lm("--assistant", arguments.assistant, dtype=target.dtype).to(target.device).eval()
    return Assistant(model, {})


def command(arguments: argparse.Namespace) -> str:
    """The command, with the sizes that it ran with."""
    words = ["hf-eagle3", "paper", "--target", arguments.target, "--output", arguments.output.name]
    words += ["--data", arguments.data] if arguments.data else ["--answers", arguments.answers.name]
    names = ("steps", "batch_size", "learning_rate", "max_length", "limit", "max_new_tokens", "repetitions")
    for name in (*names, "texts", "sample_tokens"):
        if (value := vars(arguments)[name]) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += [
        "--pieces",
        *arguments.pieces,
        "--drafts",
        *arguments.drafts,
        "--temperatures",
        *(f"{x:g}" for x in arguments.temperatures),
    ]
    words += ["--batch-sizes", *map(str, arguments.batch_sizes)]
    return shlex.join(words)
