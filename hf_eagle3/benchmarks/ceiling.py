"""The ceiling: the speedup that a draft would reach if only the two models' forward passes took time.

    ceiling = tau / (1 + relative cost of verification and drafting)

The relative cost is that of a cycle's forward passes, in steps of plain generate, minus the one step that plain
generate needs itself. A short probe before the benchmark measures it; prefill, tree, walk and commit are excluded.
"""

from dataclasses import asdict, dataclass
from statistics import median

from transformers import PreTrainedModel

from ..generation.stats import SpeculationStats
from .calls import run_call
from .methods import Method
from .runner import PLAIN_METHOD, Runner
from .work import Batch, BenchmarkSettings, Workload


PROBE_TOKENS = 33  # an upper limit: `--max-new-tokens` is what fits the context
PROBE_BATCHES = 3
PROBE_REPETITIONS = 3  # the first is a warm-up


@dataclass(frozen=True)
class Ceiling:
    """
    Attributes:
        verification, drafting: Time of a cycle's target and draft passes, in steps of plain generate.
        acceptance_length: tau in the probe.
    """

    method: str
    temperature: float
    batch_size: int
    acceptance_length: float
    verification: float
    drafting: float

    @property
    def relative_cost(self) -> float:
        """Cost of a cycle beyond the one step of plain generate, in such steps."""
        return self.verification - 1 + self.drafting

    @property
    def ceiling(self) -> float:
        """Upper bound of the speedup with these passes."""
        return self.acceptance_length / (1 + self.relative_cost)

    def to_dict(self) -> dict:
        """Fields and both ratios, for the JSON document."""
        return asdict(self) | {"relative_cost": self.relative_cost, "ceiling": self.ceiling}


def probe_tokens(settings: BenchmarkSettings) -> int:
    """New tokens of a probing call, from 2 to `PROBE_TOKENS`."""
    return min(PROBE_TOKENS, max(2, settings.max_new_tokens))


def probe(runner: Runner, groups: list[tuple[int, list[Batch]]]) -> list[Ceiling]:
    """Ceilings of all EAGLE-3 methods per temperature and batch size, on the first prompts of the first task."""
    first: dict[tuple[float, int], list[Batch]] = {}
    for size, group in groups:
        first.setdefault((group[0].temperature, size), group[:PROBE_BATCHES])
    return [
        ceiling
        for (temperature, size), found in first.items()
        for ceiling in _probe(runner.target, runner.workload, runner.methods, found, temperature, size)
    ]


def _probe(
    target: PreTrainedModel,
    workload: Workload,
    methods: list[Method],
    found: list[Batch],
    temperature: float,
    batch_size: int,
) -> list[Ceiling]:
    new_tokens = probe_tokens(workload.settings)
    ours = [method for method in methods if method.is_ours]
    if not ours:
        return []
    steps: list[float] = []
    passes: dict[str, list[tuple[float, float]]] = {method.name: [] for method in ours}
    totals = {method.name: SpeculationStats() for method in ours}
    for batch in found:
        one, many = (workload.first_turn(batch, n) for n in (1, new_tokens))
        for repetition in range(PROBE_REPETITIONS):
            prompt, whole = (run_call(target, PLAIN_METHOD, w, workload.options(w)) for w in (one, many))
            calls = {m.name: run_call(target, m, many, workload.options(many), synchronize=True) for m in ours}
            if repetition == 0:
                continue
            steps.append((whole.seconds - prompt.seconds) / (new_tokens - 1))
            for name, call in calls.items():
                cycles, phases = max(call.stats.num_iterations, 1), call.stats.phase_seconds
                passes[name].append((phases["verify_forward"] / cycles, phases["draft_forward"] / cycles))
                totals[name].add(call.stats)
    step = median(steps)
    return [
        Ceiling(
            name,
            temperature,
            batch_size,
            acceptance_length=totals[name].acceptance_length,
            verification=median(verify for verify, _ in seconds) / step,
            drafting=median(draft for _, draft in seconds) / step,
        )
        for name, seconds in passes.items()
    ]
