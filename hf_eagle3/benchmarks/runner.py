"""The measurement loop: rounds of plain generate and every method on the same prompts.

Each round runs plain generate and every method once on the same input, so that a slow moment of the machine affects
all of them; the starting method rotates from round to round. Only complete rounds are recorded. Does not know
statistics or reports.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel

from ..generation.stats import SpeculationStats
from .calls import Call, run_call
from .methods import PLAIN, Method
from .prompts import Task
from .work import Batch, Work, Workload, batches


Key = tuple[str, str, float, int]  # task, method, temperature, batch size
PLAIN_METHOD = Method(PLAIN)


@dataclass
class Tally:
    """
    Totals of a method over all calls of a key.

    Attributes:
        stats: Of the timed calls.
        phases: Seconds per phase, the rest of the call as "other"; on an accelerator from synchronised calls.
        plain_decode_seconds: Of plain generate on the same inputs, without prefill.
    """

    stats: SpeculationStats = field(default_factory=SpeculationStats)
    phases: Counter = field(default_factory=Counter)
    plain_decode_seconds: float = 0.0


class Runner:
    """
    Measures methods on tasks.

    Args:
        target: The target.
        workload: Prompts as calls, and the settings.
        methods: The methods to compare with plain generate.
        on_call: Called with each finished `Work`.

    Attributes:
        records: One per call, method and repetition; see [`Runner.measure`].
        tallies: Acceptance and phase times per key.
        skipped: Methods that were not measured, with the reason.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        workload: Workload,
        methods: list[Method],
        on_call: Callable[[Work], None] = lambda work: None,
    ):
        self.target, self.workload, self.methods, self.on_call = target, workload, methods, on_call
        self.settings = workload.settings
        self.records: list[dict] = []
        self.tallies: dict[Key, Tally] = {}
        self.skipped: list[str] = []
        self._rounds = 0

    def plan(self, tasks: list[Task]) -> list[tuple[int, list[Batch]]]:
        """(batch size, batches) per temperature, batch size and task, in order of measurement."""
        return [
            (size, [batch for seed in self.settings.seeds for batch in batches(task, temperature, seed, size)])
            for temperature in self.settings.temperatures
            for size in self.settings.batch_sizes
            for task in tasks
        ]

    def run(self, plan: list[tuple[int, list[Batch]]]) -> None:
        """Measure all of `plan`; if interrupted, `records` keeps the finished part."""
        for size, group in plan:
            methods = self._supported(size, group[0].temperature)
            if not methods:
                continue
            warm_up = self.settings.warm_up
            for batch in group:
                for work in self.workload.works(batch):
                    for _ in range(warm_up):
                        for method in (PLAIN_METHOD, *methods):
                            self._call(method, work)
                    warm_up = 0
                    self.measure(work, methods)
                    self.on_call(work)

    def _supported(self, batch_size: int, temperature: float) -> list[Method]:
        supported = []
        for method in self.methods:
            if reason := method.skip_reason(batch_size, temperature):
                line = f"{method.name} at temperature {temperature:g}, batch size {batch_size}: {reason}"
                self.skipped += [line] if line not in self.skipped else []
            else:
                supported.append(method)
        return supported

    def measure(self, work: Work, methods: list[Method]) -> None:
        """All rounds of one call; appends a record per method and round."""
        for repetition in range(self.settings.repetitions):
            calls = self._round(work, methods)
            for method in methods:
                self._record(work, method, repetition, calls)
        if self.target.device.type != "cpu":
            for method in methods:
                if method.is_ours:
                    self._add_phases(work, method, calls | {method.name: self._call(method, work, synchronize=True)})

    def _round(self, work: Work, methods: list[Method]) -> dict[str, Call]:
        """One call per method, the first one rotating. "" is plain generate of one token: the cost of prefill."""
        entries = [("", PLAIN_METHOD, replace(work, new_tokens=1))]
        entries += [(method.name, method, work) for method in (PLAIN_METHOD, *methods)]
        first = self._rounds % len(entries)
        self._rounds += 1
        return {name: self._call(method, call) for name, method, call in entries[first:] + entries[:first]}

    def _call(self, method: Method, work: Work, synchronize: bool = False) -> Call:
        return run_call(self.target, method, work, self.workload.options(work), synchronize)

    def _record(self, work: Work, method: Method, repetition: int, calls: dict[str, Call]) -> None:
        call, plain = calls[method.name], calls[PLAIN]
        question_ids = [prompt.question_id for prompt in work.batch.prompts]
        is_same = (call.tokens == plain.tokens).all(dim=1).tolist()
        self.records.append(
            {
                "task": work.batch.task,
                "method": method.name,
                "temperature": work.batch.temperature,
                "batch_size": len(question_ids),
                "seed": work.seed,
                "question_ids": question_ids,
                "turn": work.turn,
                "repetition": repetition,
                "prompt_tokens": work.inputs["input_ids"].shape[1],
                "new_tokens": work.new_tokens,
                "first_token_seconds": calls[""].seconds,
                "plain_seconds": plain.seconds,
                "seconds": call.seconds,
                "committed_tokens": call.stats.num_committed_tokens,
                "num_cycles": call.stats.num_cycles,
                "differing": [name for name, same in zip(question_ids, is_same, strict=True) if not same],
            }
        )
        self._tally(work, method).stats.add(call.stats)
        if method.is_ours and self.target.device.type == "cpu":
            self._add_phases(work, method, calls)

    def _add_phases(self, work: Work, method: Method, calls: dict[str, Call]) -> None:
        call, tally = calls[method.name], self._tally(work, method)
        tally.phases.update(call.stats.phase_seconds)
        tally.phases["other"] += call.seconds - sum(call.stats.phase_seconds.values())
        tally.plain_decode_seconds += calls[PLAIN].seconds - calls[""].seconds

    def _tally(self, work: Work, method: Method) -> Tally:
        batch = work.batch
        return self.tallies.setdefault((batch.task, method.name, batch.temperature, len(batch.prompts)), Tally())
