"""Random cases of `generate` with a draft against plain `generate`: everything that comes back is compared.

    python tests/fuzz.py 186             the case of a seed        ... --shrink   its simplest form
    python tests/fuzz.py 0 --count 500   many, one line for each that did not come out the same

The ordinary run has the seeds below, which together reach every value of every option; the nightly one 2,000 more.
"""

import copy
import shlex
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from architectures import architecture_names
from fuzz import examined, state_of
from fuzz_cases import CORE, DEFAULT, FAMILIES, PROCESSORS, VALUES, Case, compatible, drawn, parsed, shrunk
from fuzz_compare import compared
from fuzz_run import built, played


NAMES = tuple(architecture_names())
SEEDS = (
    19, 31, 51, 73, 101, 103, 107, 113, 127, 137, 147, 149, 165, 173,
    213, 237, 265, 309, 339, 371, 373, 461, 537, 583, 595, 685, 745, 769,
    803, 837, 853, 857, 867, 901, 911, 917, 963, 1005, 1081, 1121, 1141, 1197,
)  # fmt: skip
ONLY_NIGHTLY = {"checkpointing", "deepseek_v4"}  # refused: a state without a cache; before transformers 5.17
NIGHTLY, BLOCK = 2000, 50
PASSES = ("same", "both raise", "not built", "rounding")  # "not built" in versions without an architecture


def assert_passes(seed: int) -> None:
    verdict = examined(drawn(seed, NAMES))
    lines = "\n".join(verdict.problems)
    assert verdict.status in PASSES, f"python tests/fuzz.py {seed} --shrink\n{verdict.case}\n{lines}"


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds(seed):
    assert_passes(seed)


@pytest.mark.nightly
@pytest.mark.parametrize("start", range(0, NIGHTLY, BLOCK))
def test_random_cases(start):
    """Blocks, so that a failure hides few others; each names its seeds."""
    verdicts = [examined(drawn(seed, NAMES)) for seed in range(start, start + BLOCK)]
    failed = [f"{v.case}\n  " + "\n  ".join(v.problems) for v in verdicts if v.status == "failed"]
    assert not failed, "\n".join(failed)
    counts = Counter(verdict.status for verdict in verdicts)
    assert counts["rounding"] + counts["unsteady"] <= BLOCK // 10, counts
    assert counts["same"] >= BLOCK // 2, f"most cases compare nothing: {counts}"
    assert sum(verdict.num_accepted > 0 for verdict in verdicts) > BLOCK // 6, "most cases accept no draft token"


# -- what the cases reach ---------------------------------------------------------------------------------------------


def group(name: str, value) -> str:
    """Values that behave alike, where there are too many for every pair to occur."""
    if name == "arch":
        return next((family for family, names in FAMILIES.items() if value in names), "other")
    if name in ("processor", "processor_2"):
        return "none" if value == "none" else "some"
    if name == "sampling":
        return "greedy" if value == "greedy" else "sampling"
    if name in ("custom_processor", "custom_criterion") and value != "none":
        return "declared" if value in ("row_wise", "in_place_row_wise", "max_time") else "undeclared"
    return str(value)


def values_of(name: str) -> list:
    """One value of each group."""
    found = {group(name, value): value for value in reversed(VALUES[name])}
    return list(found.values())


def reachable_pairs() -> set[tuple[str, str, str, str]]:
    """All pairs of values that a case can have: some third option may be needed for it."""
    found = set()
    helpers = [{}, {"sampling": "top_p"}, {"turns": "dd"}, {"processor": PROCESSORS[0]}, {"arch": "mistral"}]
    helpers += [first | second for first, second in combinations(helpers[1:], 2)]
    for one, other in combinations(VALUES, 2):
        for a in values_of(one):
            for b in values_of(other):
                cases = (replace(DEFAULT, **helper | {one: a, other: b}) for helper in helpers)
                if any((getattr(case := compatible(c), one), getattr(case, other)) == (a, b) for c in cases):
                    found.add((one, group(one, a), other, group(other, b)))
    return found


def pairs_in(cases: list[Case]) -> set[tuple[str, str, str, str]]:
    """Pairs of grouped values that occur."""
    return {
        (one, group(one, getattr(case, one)), other, group(other, getattr(case, other)))
        for case in cases
        for one, other in combinations(VALUES, 2)
    }


def test_the_nightly_cases_reach_every_value_and_every_pair():
    cases = [drawn(seed, NAMES) for seed in range(NIGHTLY)]
    for name, values in VALUES.items():
        missing = set(values) - {getattr(case, name) for case in cases}
        assert not missing, f"no case has {name} = {missing}"
    assert {case.arch for case in cases} == {*NAMES, *CORE}
    missing = reachable_pairs() - pairs_in(cases)
    assert not missing, sorted(missing)


def test_the_ordinary_seeds_reach_every_value():
    cases = [drawn(seed) for seed in SEEDS]
    assert all(seed % 2 for seed in SEEDS), "even seeds have another architecture in every version of transformers"
    for name, values in VALUES.items():
        if name == "processor_2":  # they are those of `processor`
            continue
        missing = set(values) - {getattr(case, name) for case in cases} - ONLY_NIGHTLY
        missing -= {case.processor_2 for case in cases if name == "processor"}
        assert not missing, f"no seed has {name} = {missing}"


@pytest.mark.parametrize("seed", range(0, 40, 3))
def test_a_case_is_a_function_of_its_seed_and_can_be_written_down(seed):
    case = drawn(seed, NAMES)
    assert case == drawn(seed, NAMES) == compatible(case)
    number, *words = shlex.split(str(case))
    assert parsed(int(number), words, NAMES) == case


def test_unknown_fields_and_values_are_refused():
    with pytest.raises(ValueError, match="`rows=9`: give one of 1, 2, 3, 4, 5"):
        parsed(0, ["rows=9"])
    with pytest.raises(ValueError, match="`row=2`: give one of arch, "):
        parsed(0, ["row=2"])


def test_shrinking_keeps_what_the_failure_needs():
    case = Case(7, arch="jamba", rows=5, eos="list", outputs="all", tokens=24, tree="auto", copies=2)
    smaller = shrunk(case, lambda case: case.rows >= 2 and case.outputs in ("scores", "all"))
    assert smaller == Case(7, rows=2, outputs="scores", tokens=1)


# -- what the comparison sees -----------------------------------------------------------------------------------------

EVERYTHING = Case(
    5, attention="eager", rows=3, custom_processor="row_wise", eos="list", streamer="cycles", outputs="all",
    cache="user", sampling="top_p",
)  # fmt: skip


@pytest.fixture(scope="module")
def scene_and_turns():
    scene = built(EVERYTHING)
    (plain,), (ours,) = played(scene, "p"), played(scene, "d")
    return scene, plain, ours


def change(path: str, value=None):
    """A mistake: what stands at `path` of a `Turn` replaced by `value`, a function of what was there."""
    *way, last = [int(part) if part.lstrip("-").isdigit() else part for part in path.split(".")]

    def apply(turn):
        holder = turn
        for part in way:
            is_item = isinstance(part, int) or isinstance(holder, dict)
            holder = holder[part] if is_item else getattr(holder, part)
        if isinstance(last, int) or isinstance(holder, dict):
            holder[last] = value(holder[last])
        else:
            object.__setattr__(holder, last, value(getattr(holder, last)))

    return apply


def off(tensor: torch.Tensor) -> torch.Tensor:
    tensor[0].flatten()[-1] += 0.1  # a view: row 0 has not ended in step 0
    return tensor


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor[0].flatten()[0] = torch.nan
    return tensor


def plus_one(number):
    return number + 1


def steps(change_step, step: int = 0):
    """A tuple of steps with one changed."""
    return lambda given: tuple(change_step(value) if index == step else value for index, value in enumerate(given))


MISTAKES = {
    "tokens": change("sequences", lambda ids: ids.roll(1, dims=0)),
    "type": change("out", lambda out: out.sequences),
    "warning": change("warned", lambda texts: texts | {"UserWarning: new"}),
    "changed argument": change("changed", lambda names: ["input_ids"]),
    "generator": change("random_state", lambda state: state.roll(1)),
    "streamer: [-1]": change("streamer.events", lambda events: events[:-1]),
    "streamer: order": change("streamer.events", lambda events: [events[0], events[2], events[1], *events[3:]]),
    "user's function": change("calls.0", lambda calls: [*calls, "one more"]),
    "scores: value": change("out.scores", steps(off)),
    "scores: NaN": change("out.scores", steps(with_nan)),
    "logits: one step less": change("out.logits", lambda given: given[:-1]),
    "logits: dtype": change("out.logits", steps(torch.Tensor.double)),
    "hidden_states": change("out.hidden_states", steps(steps(off, 2))),
    "hidden_states: shape": change("out.hidden_states", steps(steps(lambda layer: layer[:, -1:]))),
    "attentions": change("out.attentions", steps(steps(off))),
    "attentions: none": change("out.attentions", steps(lambda layers: None)),
    "cache: value": change("cache.1.1.keys", lambda keys: keys + 0.1),
    "cache: width": change("cache.2.1.values", lambda values: values[:, :, :-1]),
    "cache: type": change("cache.3", lambda layer: ("SlotLayer", layer[1])),
    "cache: another object": change("is_users_cache", lambda is_users: False),
    "statistics: committed": change("stats.num_committed_tokens", plus_one),
    "statistics: iterations": change("stats.num_iterations", lambda number: 0),
    "statistics: lengths": change("stats.generated_lengths.0", plus_one),
    "statistics: accepted": change("stats.accepted_tokens.0", lambda row: [number + 1 for number in row]),
    "cycle records: number": change("streamer.records", lambda records: records[:-1]),
    "cycle records: twice": change("streamer.records", lambda records: [*records, records[-1]]),
    "cycle records: tokens": change("streamer.records.0.tokens", lambda tokens: [*tokens, 3]),
    "error": change("error", lambda error: ValueError("`eos_token_id` is refused today")),
}


def test_both_runs_of_the_case_with_everything_are_the_same(scene_and_turns):
    _, plain, ours = scene_and_turns
    assert compared(EVERYTHING, [plain], [ours]) == ("same", [])
    assert min(plain.ends) < max(plain.ends), "no row ends early: the tests below show less"
    assert sum(map(sum, ours.stats.accepted_tokens)) > 0


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_sees(mistake, scene_and_turns):
    _, plain, ours = scene_and_turns
    ours = copy.deepcopy(ours)
    MISTAKES[mistake](ours)
    _, problems = compared(EVERYTHING, [plain], [ours])
    assert any(problem.startswith(mistake.split(":")[0]) for problem in problems), problems


def test_a_call_that_does_not_raise_where_plain_generate_does_is_seen(scene_and_turns):
    _, plain, ours = scene_and_turns
    failed = replace(plain, error=TypeError("no"))
    assert compared(EVERYTHING, [failed], [ours]) == ("failed", ["no error: plain generate raises TypeError: no"])
    other = replace(ours, error=IndexError("list index out of range"))
    assert compared(EVERYTHING, [failed], [other])[1] == [
        "other error: IndexError: list index out of range for TypeError: no"
    ]
    known = replace(ours, error=ValueError("`assistant_model` cannot speed up X: no cache."))
    assert compared(EVERYTHING, [plain], [known]) == ("refused", [])


def test_what_ended_rows_hold_is_not_compared(scene_and_turns):
    """Behind a row's end scores, states and cached columns may be anything."""
    _, plain, ours = scene_and_turns
    ours = copy.deepcopy(ours)
    row, width = plain.ends.index(min(plain.ends)), plain.mask.shape[1]
    ours.out.scores[-1][row] = 7.0
    ours.cache[1][1]["keys"][row, :, width + plain.ends[row] :] = 7.0
    assert compared(EVERYTHING, [plain], [ours]) == ("same", [])


LEFTOVERS = {
    "hook": lambda model: model.get_decoder().layers[0].register_forward_hook(lambda *args: None),
    "mode": lambda model: model.get_decoder().layers[1].train(),
    "attribute": lambda model: setattr(model.get_decoder(), "left", 1),
    "forward": lambda model: setattr(model.get_decoder(), "forward", model.get_decoder().forward),
    "configuration": lambda model: setattr(model.config, "eos_token_id", 9),
    "weight": lambda model: model.lm_head.weight.data.mul_(2.0),
    "generation configuration": lambda model: setattr(model.generation_config, "top_k", 9),
}


@pytest.mark.parametrize("leftover", LEFTOVERS)
def test_what_is_left_behind_is_seen(leftover):
    scene = built(DEFAULT)
    played(scene, "p")
    before = state_of(scene.target)
    played(scene, "d")
    assert state_of(scene.target) == before
    LEFTOVERS[leftover](scene.target)
    assert state_of(scene.target) != before
