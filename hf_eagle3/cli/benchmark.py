"""`hf-eagle3 benchmark`: a draft against plain `generate` and transformers' own speculation; JSON, Markdown, plots."""

import argparse
import json
import shlex
import sys
from collections import Counter

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .. import pairs
from ..benchmarks import environment, methods, prompts, report
from ..benchmarks.ceiling import Ceiling, probe, probe_tokens
from ..benchmarks.runner import Runner
from ..benchmarks.statistics import rows
from ..benchmarks.work import BenchmarkSettings, Workload
from ..compat.models import attention_name
from ..configuration_eagle3 import Eagle3Config
from ..draft_model import DraftModel
from ..errors import explained
from ..model_loading import (
    dtype_for,
    load_any_draft,
    load_causal_lm,
    load_draft,
    load_target,
    load_tokenizer,
    needs_extra,
    read_draft,
    tokenizer_note,
    usable_device,
)
from ..modeling_eagle3 import Eagle3DraftModel
from ..target.fingerprint import fingerprint
from .kinds import KINDS
from .options.benchmark import RANDOM
from .tables import show_markdown, show_table


# Rounding cannot explain a different text in these.
EXACT_DTYPES = (torch.float32, torch.float64)


def run(arguments: argparse.Namespace) -> int:
    complete(arguments)
    tasks = load_tasks(arguments)
    target = load_target(arguments.target, dtype=arguments.dtype, device=arguments.device)
    draft = random_draft(target) if arguments.draft == RANDOM else load_draft(arguments.draft, target)
    tokenizer = load_tokenizer(arguments.target)
    if arguments.draft != RANDOM and (note := tokenizer_note(arguments.draft, tokenizer)) is not None:
        print(f"hf-eagle3 benchmark: {note}", file=sys.stderr)
    assistant = load_assistant(arguments, target, tokenizer)
    chosen = methods.parse(
        arguments.methods,
        draft,
        assistant,
        lambda source: load_small(source, target),
        lambda kind, source: load_kind(kind, source, target),
    )
    settings = BenchmarkSettings(
        temperatures=distinct(arguments.temperatures),
        batch_sizes=distinct(arguments.batch_sizes),
        seeds=distinct(arguments.seeds),
        repetitions=arguments.repetitions,
        warm_up=arguments.warm_up,
        max_new_tokens=arguments.max_new_tokens,
        ignore_eos=arguments.ignore_eos,
        raw=arguments.raw,
        chat_template_kwargs=arguments.chat_template_kwargs or {},
    )
    workload = Workload(target, tokenizer, settings)
    tasks = [workload.fitting(task) for task in tasks]
    runner = Runner(target, workload, chosen)
    plan = runner.plan(tasks)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)

    ceilings = probe(runner, plan)
    if not arguments.json:
        show_ceilings(ceilings)
    interrupted = False
    total = sum(batch.num_turns for _, group in plan for batch in group)
    try:
        with tqdm(total=total, unit="call", disable=None) as progress:
            runner.on_call = lambda work: progress.update()
            runner.run(plan)
    except KeyboardInterrupt:
        interrupted = True
    document = describe(arguments, target, tasks, runner, ceilings, interrupted)
    write(document, arguments)
    refused = [row for row in document["rows"] if row["speedup"] is None]
    for row in refused:
        print(
            f"hf-eagle3 benchmark: {row['method']} on {row['task']} at temperature {row['temperature']:g} differs "
            f"from plain generate for {row['num_differing']} of {row['num_prompts']} prompts in {target.dtype}: no "
            "speedup is reported.",
            file=sys.stderr,
        )
    return 130 if interrupted else int(bool(refused))


def complete(arguments: argparse.Namespace) -> None:
    """Resolve defaults that depend on other options and check dependencies before anything is loaded."""
    arguments.named_target, shipped = arguments.target, None
    if arguments.target in pairs.NAMES:
        shipped = pairs.shipped_pair(arguments.target)
        if shipped.note:
            raise ValueError(f"`--target` {arguments.target}: {shipped.note}")
        arguments.target, arguments.draft = str(shipped.target), arguments.draft or shipped.name
    arguments.named_draft = arguments.draft
    arguments.draft = str(pairs.DRAFTS.get(arguments.draft, arguments.draft))
    arguments.dtype = dtype_for(arguments.target, arguments.dtype, usable_device(arguments.device))
    arguments.methods = arguments.methods or methods.default_names(arguments.assistant is not None)
    arguments.tasks = arguments.tasks or ([shipped.name] if shipped else list(prompts.HUB_SETS))
    if set(arguments.tasks) & set(prompts.HUB_SETS):
        needs_extra("bench", ("datasets",))
    if not arguments.no_plots:
        needs_extra("bench", ("matplotlib",))


def distinct(values: list) -> tuple:
    return tuple(dict.fromkeys(values))


def load_tasks(arguments: argparse.Namespace) -> list[prompts.Task]:
    """The prompt sets of `--tasks`; those that ship with a pair are split into a task per domain."""
    tasks = []
    for source in dict.fromkeys(arguments.tasks):
        if source not in pairs.PROMPTS:
            with explained(f"`--tasks` {source} cannot be read", "Use a UTF-8 .jsonl file or a known name."):
                tasks.append(prompts.load_task(source, arguments.limit))
            continue
        rows_of = pairs.PROMPTS[source]
        for domain in dict.fromkeys(row["domain"] for row in rows_of()):
            lines = [json.dumps(row) for row in rows_of(domain)[: arguments.limit]]
            tasks.append(prompts.Task(domain, tuple(prompts.read_lines(lines, []))))
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ValueError(
            f"`--tasks` {' '.join(arguments.tasks)!r} contains a task twice ({', '.join(names)}); rename a file."
        )
    return tasks


def load_assistant(arguments: argparse.Namespace, target: PreTrainedModel, tokenizer) -> methods.Assistant | None:
    """The assistant model, with both tokenizers if the vocabularies differ."""
    if arguments.assistant is None:
        return None
    model = load_small(arguments.assistant, target, "--assistant")
    sizes = [m.config.get_text_config(decoder=True).vocab_size for m in (target, model)]
    if sizes[0] == sizes[1]:
        return methods.Assistant(model, {})
    own = load_tokenizer(arguments.assistant, "--assistant")
    return methods.Assistant(model, {"tokenizer": tokenizer, "assistant_tokenizer": own})


def load_small(source: str, target: PreTrainedModel, flag: str = "--methods small:") -> PreTrainedModel:
    """A small causal LM, in the dtype and on the device of `target`."""
    return load_causal_lm(flag, source, dtype=target.dtype).to(target.device).eval()


def load_kind(kind: str, source: str, target: PreTrainedModel) -> DraftModel:
    """A draft of a kind that `train` knows, in the dtype and on the device of `target`."""
    return read_draft(source, KINDS[kind].model, dtype=target.dtype).to(target.device).eval()


def random_draft(target: PreTrainedModel) -> Eagle3DraftModel:
    """An untrained draft for the target: shows the cost of speculation without acceptance."""
    torch.manual_seed(0)
    return Eagle3DraftModel(Eagle3Config.from_target(target)).to(target.device, target.dtype).eval()


def show_ceilings(ceilings: list[Ceiling]) -> None:
    """Print the upper bound of the speedup with these two models before the benchmark starts."""
    show_table(
        ("method", "T", "batch", "tau", "verification", "drafting", "ceiling"),
        [
            (
                c.method,
                f"{c.temperature:g}",
                str(c.batch_size),
                f"{c.acceptance_length:.2f}",
                f"{c.verification:.2f}",
                f"{c.drafting:.2f}",
                f"{c.ceiling:.2f}x",
            )
            for c in ceilings
        ],
        "Ceiling: tau / (verification + drafting), both in steps of plain generate (probe)",
    )
    sys.stdout.flush()


def describe(
    arguments: argparse.Namespace,
    target: PreTrainedModel,
    tasks: list[prompts.Task],
    runner: Runner,
    ceilings: list[Ceiling],
    interrupted: bool,
) -> dict:
    """The JSON document."""
    settings = runner.settings
    return {
        "versions": environment.versions(),
        "hardware": environment.hardware(target.device),
        "settings": {
            "target": arguments.named_target,
            "draft": arguments.named_draft,
            "target_fingerprint": fingerprint(target),
            # Of the file, whose dtype may differ from that of the run.
            "draft_fingerprint": None if arguments.draft == RANDOM else fingerprint(load_any_draft(arguments.draft)),
            "assistant": arguments.assistant,
            "dtype": str(target.dtype).removeprefix("torch."),
            "attention": attention_name(target.config),
            "tasks": arguments.tasks,
            "limit": arguments.limit,
            "methods": [method.name for method in runner.methods],
            "skipped": runner.skipped,
            **vars(settings),
            "unreadable": Counter({task.name: task.num_unreadable for task in tasks if task.num_unreadable})
            + Counter(task for task, _, _ in runner.workload.refused),
            "left_out": Counter(task for task, _, _ in sorted(runner.workload.left_out)),
            "interrupted": interrupted,
            "command": command(arguments),
        },
        "ceiling": {"new_tokens": probe_tokens(settings), "methods": [ceiling.to_dict() for ceiling in ceilings]},
        "rows": rows(runner.records, runner.tallies, runner.methods, is_exact=target.dtype in EXACT_DTYPES),
        "records": runner.records,
    }


def command(arguments: argparse.Namespace) -> str:
    """The command that repeats the measurement, with all defaults written out."""
    options = {
        "--target": [arguments.named_target],
        "--draft": [arguments.named_draft],
        "--assistant": [arguments.assistant] if arguments.assistant else [],
        "--dtype": [arguments.dtype],
        "--device": [arguments.device] if arguments.device else [],
        "--methods": arguments.methods,
        "--tasks": arguments.tasks,
        "--limit": [arguments.limit],
        "--temperatures": [f"{value:g}" for value in arguments.temperatures],
        "--batch-sizes": arguments.batch_sizes,
        "--seeds": arguments.seeds,
        "--repetitions": [arguments.repetitions],
        "--warm-up": [arguments.warm_up],
        "--max-new-tokens": [arguments.max_new_tokens],
        "--chat-template-kwargs": [json.dumps(given)] if (given := arguments.chat_template_kwargs) else [],
    }
    words = [word for name, values in options.items() if values for word in (name, *map(str, values))]
    words += ["--ignore-eos"] * arguments.ignore_eos + ["--raw"] * arguments.raw
    return shlex.join(["hf-eagle3", "benchmark", *words])


def write(document: dict, arguments: argparse.Namespace) -> None:
    """Write files to `--output-dir`, and to standard output the report, or with `--json` one line without records."""
    folder = arguments.output_dir
    (folder / "benchmark.json").write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    text = report.markdown(document)
    (folder / "benchmark.md").write_text(text, encoding="utf-8")
    if not arguments.no_plots:
        from ..benchmarks.plots import draw

        draw(document, folder)
    if arguments.json:
        print(json.dumps({name: value for name, value in document.items() if name != "records"}, allow_nan=False))
        return
    print()
    show_markdown(text)
    print(f"All figures, also as JSON: {folder}")
