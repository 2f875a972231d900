"""The differential fuzz test from the command line, and one case examined: is a call with a draft plain `generate`'s?

`python tests/fuzz.py 7` runs the case of seed 7, `7 --shrink` looks for the simplest case that fails like it,
`7 tree=auto rows=3` runs the default case with these fields (weights, prompts and noise of seed 7), and
`0 --count 2000` prints one JSON line per case that did not come out the same, and a summary.
"""

import argparse
import inspect
import json
import time
from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from architectures import architecture_names
from fuzz_cases import Case, parsed, shrunk
from fuzz_compare import compared, one_line
from fuzz_run import OUTPUTS, built, played
from transformers import PreTrainedModel


def state_of(model: PreTrainedModel) -> dict:
    """What a call must leave as it was, by name."""
    state = {
        "config": model.config.to_dict(),
        "generation config": model.generation_config.to_dict() if model.generation_config else None,
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "generate": [member for _, member in inspect.getmembers(type(model), inspect.isfunction)],
    }
    for name, module in model.named_modules():
        if "rotary" in name:  # transformers' own notes about the longest sequence seen
            continue
        hooks = [hook for key, value in vars(module).items() if "hooks" in key and value for hook in _hooks(value)]
        # transformers installs hooks of its own the first time that hidden states are asked for.
        own = [hook.__module__ for hook in hooks if not hook.__module__.startswith("transformers.")]
        attributes = [key for key in sorted(vars(module)) if "output_capturing" not in key]
        state[f"module {name}"] = (module.training, own, attributes)
    for name, parameter in model.named_parameters():
        checksum = repr(float(parameter.detach().double().sum()))
        state[f"parameter {name}"] = (parameter.data_ptr(), checksum, parameter.requires_grad)
    return state


def _hooks(registered) -> list:
    return [hook for hook in registered.values() if callable(hook)] if isinstance(registered, dict) else []


# Problems that a float32 tie of two tokens, or of two numbers, may be behind.
ROUNDED = {"tokens", "streamer", "user's function", "generator", "cache"} | {*OUTPUTS}


# What a comparison may end in: "same"; "refused": by a ValueError that is known; "both raise"; "not built": the
# architecture cannot be made tiny or plain generate does not run it at all; "rounding": equal in float64, so that two
# tokens were all but equally likely; "unsteady": plain generate does not repeat itself; "failed".
@dataclass
class Verdict:
    case: Case
    status: str
    problems: list[str] = field(default_factory=list)
    note: str = ""
    num_accepted: int = 0  # draft tokens, without which a case shows little

    @property
    def kinds(self) -> set[str]:
        """Problems without their numbers."""
        return {problem.split(":")[0] for problem in self.problems}


def examined(case: Case) -> Verdict:
    """A case compared; what differs is tried again in float64, and against plain generate's own repetition."""
    try:
        scene = built(case)
    except Exception as error:
        return Verdict(case, "not built", note=one_line(error))
    plain = played(scene, "p" * len(case.turns))
    before = [state_of(scene.target), state_of(scene.draft)]
    ours = played(scene, case.turns)
    after = [state_of(scene.target), state_of(scene.draft)]
    status, problems = compared(case, plain, ours)
    for old, new in zip(before, after, strict=True):
        problems += [f"left behind: {name}" for name in sorted(old | new) if old.get(name) != new.get(name)]
    accepted = sum(n for turn in ours for row in turn.stats.accepted_tokens for n in row)
    if not problems:
        last = ours[-1].error or plain[-1].error
        return Verdict(case, status, note="" if last is None else one_line(last), num_accepted=accepted)
    verdict = Verdict(case, "failed", problems, num_accepted=accepted)
    if _is_unsteady(case):
        verdict.status = "unsteady"
    elif verdict.kinds <= ROUNDED and case.dtype == "float32":
        verdict.status = "rounding" if examined(replace(case, dtype="float64")).status == "same" else "failed"
    return verdict


def _is_unsteady(case: Case) -> bool:
    """Whether two plain calls in a row give two texts; on models that no draft has seen."""
    scene, pattern = built(case), "p" * len(case.turns)
    once, twice = (
        [turn.sequences.tolist() for turn in played(scene, pattern) if turn.error is None] for _ in range(2)
    )
    return once != twice


def fails_like(verdict: Verdict):
    """A function that says whether a case fails in one of the ways of `verdict`."""

    def fails(case: Case) -> bool:
        found = examined(case)
        return found.status == verdict.status and bool(found.kinds & verdict.kinds)

    return fails


def main(arguments: argparse.Namespace) -> None:
    names = tuple(architecture_names())
    if arguments.count == 1:
        verdict = examined(parsed(arguments.seed, arguments.changes, names))
        print(f"case: {verdict.case}\n{verdict.status} {verdict.note}", *verdict.problems, sep="\n")
        if arguments.shrink and verdict.problems:
            smaller = shrunk(verdict.case, fails_like(verdict))
            print(f"shrunk: {smaller}", *examined(smaller).problems, sep="\n")
        return
    counts, started = Counter(), time.process_time()
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        verdict = examined(parsed(seed, [], names))
        counts[verdict.status] += 1
        if verdict.status != "same":
            line = {"seed": seed, "status": verdict.status, "case": str(verdict.case), "problems": verdict.problems}
            line |= {"note": verdict.note} if verdict.note else {}
            print(json.dumps(line), flush=True)
    print(json.dumps({"seconds": round(time.process_time() - started), **counts}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int)
    parser.add_argument("changes", nargs="*", metavar="field=value", help="fields of a default case")
    parser.add_argument("--shrink", action="store_true", help="look for the simplest case that fails like this one")
    parser.add_argument("--count", type=int, default=1, help="so many seeds from this one on")
    main(parser.parse_args())
