"""The measurements: methods on tasks by the benchmark's own runner, kept as JSON under the name of the piece."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..benchmarks import methods
from ..benchmarks.methods import Assistant, Method
from ..benchmarks.prompts import Task
from ..benchmarks.runner import Runner
from ..benchmarks.statistics import rows
from ..benchmarks.work import BenchmarkSettings, Workload, batches
from .drafts import TOP, Plan
from .quality import permutation_test, texts


CHAIN = 6  # levels of the chains of figure 7
SHORT_CHAIN = 2  # of table 3
# Kind of draft, its name in the tables, its method in the benchmark.
TRAINED = (("medusa", "Medusa"), ("hydra", "Hydra"), ("eagle", "EAGLE"), ("eagle2", "EAGLE-2"), ("hass", "HASS"))
TITLES = {"assisted": "SpS", "lookup:10": "PLD", "lookahead": "Lookahead", "tree:59,8,10": "EAGLE-3"}
TITLES |= {"auto": "EAGLE-3, auto", TOP: "+ remove fea con"}


@dataclass
class Bench:
    """
    What is measured with.

    Attributes:
        plan: Where the drafts are.
        target, tokenizer, tasks: The target and the prompts.
        settings: Temperatures and repetitions.
        assistant: A small model, for standard speculative sampling.
    """

    plan: Plan
    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tasks: list[Task]
    settings: BenchmarkSettings
    assistant: Assistant | None = None

    def draft(self, name: str) -> Any:
        """The trained draft of that name, in the target's dtype and on its device."""
        from ..cli.kinds import KINDS

        kind = "eagle3" if name.partition("@")[0] == TOP else name.partition("@")[0]
        model = KINDS[kind].model.from_pretrained(self.plan.folder(name), dtype=self.target.dtype)
        return model.to(self.target.device).eval()

    def run(self, piece: str, chosen: list[Method], settings: BenchmarkSettings | None = None) -> dict:
        """Rows of `chosen` on all tasks; those of an earlier run of the same piece with the same settings, if any."""
        settings = settings or self.settings
        wanted = {"methods": [method.name for method in chosen], **vars(settings)}
        wanted |= {"tasks": {task.name: len(task.prompts) for task in self.tasks}, "steps": self.plan.steps}
        wanted = json.loads(json.dumps(wanted))
        path = self.plan.output / f"{piece}.json"
        if (known := _known(path, wanted)) is not None:
            return known
        workload = Workload(self.target, self.tokenizer, settings)
        runner = Runner(self.target, workload, chosen)
        runner.run(runner.plan([workload.fitting(task) for task in self.tasks]))
        found = rows(runner.records, runner.tallies, chosen, self.target.dtype in (torch.float32, torch.float64))
        return _written(path, {"settings": wanted, "rows": found, "skipped": runner.skipped})


def _known(path: Path, settings: dict) -> dict | None:
    if not path.is_file():
        return None
    document = json.loads(path.read_text(encoding="utf-8"))
    return document if document["settings"] == settings else None


def _written(path: Path, document: dict) -> dict:
    path.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    return document


def table_1_methods(bench: Bench, drafts: Sequence[str]) -> list[Method]:
    """The methods of tables 1 and 2 that the trained `drafts` allow."""
    names = ["assisted"] * (bench.assistant is not None) + ["lookup:10", "lookahead"]
    names += [f"{kind}:{kind}" for kind, _ in TRAINED if methods.TREES[kind][0] in drafts] + ["tree:59,8,10", "auto"]
    chosen = methods.parse(
        names, bench.draft("eagle3"), bench.assistant, load_kind=lambda kind, source: bench.draft(kind)
    )
    return chosen + (trees(bench, [TOP]) if TOP in drafts else [])


def chains(bench: Bench, names: Sequence[str], depth: int) -> list[Method]:
    """Drafts as chains, by their names."""
    return [
        Method(name, {"assistant_model": bench.draft(name).with_tree("chain", tree_depth=depth)}, is_ours=True)
        for name in names
    ]


def trees(bench: Bench, names: Sequence[str]) -> list[Method]:
    """Drafts with EAGLE-2's tree, by their names."""
    return [Method(name, {"assistant_model": bench.draft(name).with_tree("static")}, is_ours=True) for name in names]


def quality(bench: Bench, count: int, length: int) -> dict:
    """Per task, the p-value that `count` texts of `length` tokens with and without a draft have one distribution."""
    settings = {"texts": count, "tokens": length, "steps": bench.plan.steps}
    path = bench.plan.output / "quality.json"
    if (known := _known(path, settings)) is not None:
        return known
    sizes = {"num_draft_tokens": 12, "tree_depth": 3, "tree_top_k": 4}  # many sequences side by side
    draft, found = bench.draft("eagle3").with_tree("static", **sizes), {}
    workload = Workload(bench.target, bench.tokenizer, bench.settings)
    for task in bench.tasks:
        work = next(workload.works(batches(workload.fitting(task), 1.0, 0, 1)[0]))
        plain = texts(bench.target, work.inputs, count, length, seed=1)
        ours = texts(bench.target, work.inputs, count, length, seed=2, assistant_model=draft)
        found[task.name] = permutation_test(plain, ours)
    return _written(path, {"settings": settings, "p_values": found})


def title(method: str) -> str:
    """A method's name in the tables."""
    kind = method.partition(":")[0]
    return TITLES.get(method) or dict(TRAINED).get(kind) or {"eagle3": "EAGLE-3"}.get(kind, method)
