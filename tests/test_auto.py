"""The tree mode "auto": what it measures, what it chooses, and that its choices never change the text."""

from itertools import pairwise

import pytest
import torch
from models import TREE_TARGETS, left_padded, tiny_draft, tiny_target
from test_generate import SAMPLING, assert_same

import hf_eagle3
from hf_eagle3.embedded import load_pair, prompts
from hf_eagle3.generation import settings as settling
from hf_eagle3.generation.auto import costs
from hf_eagle3.generation.auto.calibration import GREEDY, OWN_NOISE, PRIOR_WEIGHT, SHARED_NOISE, Calibration
from hf_eagle3.generation.auto.costs import MOST_SAMPLES, SAMPLES, WARM_UPS, CostCurve, CostTable, bucket, cost_table
from hf_eagle3.generation.auto.planner import FIRST_PAUSE, AutoPlanner
from hf_eagle3.generation.tree.draft_tree import DraftTree, chain, kept_nodes, root_only
from hf_eagle3.generation.tree.policy import Outlook
from hf_eagle3.tree_config import TreeConfig


CPU = torch.device("cpu")


class Fixed(CostCurve):
    """A curve that stays as it is."""

    def add(self, size: int, seconds: float) -> None:
        pass

    def invalidate(self, size: int) -> None:
        pass


def table(plain: float, per_node: float, per_level: float, per_width: float = 0.0) -> CostTable:
    """Linear costs, all measured."""
    verify = {size: plain + per_node * (size - 1) for size in range(1, 130)}
    level = {width: per_level + per_width * width for width in range(1, 65)}
    return CostTable(Fixed(verify), Fixed(dict.fromkeys(range(1, 17), per_level)), Fixed(level))


FREE_NODES, DEAR_NODES, DEAR_LEVELS = table(1, 0, 0.01), table(1, 1.0, 0.01), table(1, 0.01, 2.0)


# -- costs -----------------------------------------------------------------------------------------------------------


def test_a_size_is_measured_after_its_warm_up_and_frozen_in_the_end():
    curve = CostCurve()
    for seconds in (9.0, 3.0, 2.0, 4.0):
        assert 8 not in curve.points
        curve.add(8, seconds)
    assert curve.points == {8: 2.0}, "the least of three after the warm-up"
    assert WARM_UPS + SAMPLES == 4
    for _ in range(MOST_SAMPLES - SAMPLES):
        assert not curve.is_frozen(8)
        curve.add(8, 3.0)
    assert curve.points == {8: 3.0}, "the lower quartile of nine"
    assert curve(8) == 3.0
    assert curve.is_frozen(8)
    for _ in range(20):
        curve.add(8, 0.1)
    assert curve.points == {8: 3.0}, "frozen: choices made from it are reproducible"


def test_what_is_doubted_is_measured_anew():
    curve = CostCurve()
    for seconds in [3.0] * (WARM_UPS + MOST_SAMPLES):
        curve.add(8, seconds)
    curve.invalidate(9)
    curve.invalidate(8)
    for seconds in [1.0] * (WARM_UPS + SAMPLES - 1):
        curve.add(8, seconds)
        assert curve(8) == 3.0, "until then the old one holds"
    curve.add(8, 1.0)
    assert curve(8) == 1.0


def test_between_sizes_costs_are_linear_and_beyond_them_hopeful():
    curve = CostCurve({1: 1.0, 8: 2.0, 16: 6.0})
    assert curve(1) == 1.0
    assert curve(12) == pytest.approx(4.0)
    assert curve(24) == pytest.approx(6.0 + 8 * 0.5 * 5 / 15), "half the slope from 1 to 16"
    assert CostCurve({1: 2.0, 8: 1.0}).slope(4) == 0.0
    assert CostCurve()(5) == float("inf")


def test_a_slope_does_not_hang_on_one_timing():
    """Else the sizes between a slow moment and a fast one look free, and drafts go too deep."""
    line = {size: 1.0 + 0.1 * size for size in (8, 16, 32, 48, 64, 128)}
    assert [CostCurve(line).slope(size) for size in (4, 8, 40, 128, 500)] == pytest.approx([0.1] * 5)
    uneven = CostCurve(line | {32: line[48]})
    assert uneven(40) == uneven(48)
    assert uneven.slope(40) == pytest.approx(0.1, rel=0.2)


def test_below_the_sizes_measured_costs_fall_with_them():
    """A batch whose rows have ended: its plain step is smaller than any that was measured."""
    curve = CostCurve({16: 2.0, 32: 2.8})
    assert curve(8) == pytest.approx(1.6)
    assert CostCurve({16: 2.0, 32: 6.0})(8) == pytest.approx(1.0), "never less than in proportion"
    assert CostCurve({16: 2.0})(8) == 2.0


def test_a_size_is_known_by_those_around_it():
    curve = CostCurve({16: 1.0, 100: 2.0})
    assert [size for size in (4, 8, 32, 33, 49, 50, 200, 201) if curve.covers(size)] == [8, 32, 50, 200]


def test_a_size_timed_in_a_slow_moment_costs_no_more_than_a_larger_one():
    curve = CostCurve({1: 1.0, 8: 9.0, 16: 3.0})
    assert curve(8) == 3.0
    assert curve(1) == 1.0
    assert 1.0 < curve(4) < 3.0
    for _ in range(WARM_UPS + SAMPLES):
        curve.add(24, 2.0)  # measured later
    assert curve(8) == curve(16) == 2.0


def test_one_table_per_pair_rows_and_context():
    target, draft = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    here = cost_table(target, draft, 2, 100)
    assert cost_table(target, draft, 4, 512) is here
    others = [(target, draft, 5, 100), (target, draft, 1, 100), (target, draft, 3, 513)]
    others.append((target, torch.nn.Linear(2, 2), 3, 100))
    assert all(cost_table(*other) is not here for other in others)
    assert [bucket(n, 512, 4) for n in (1, 512, 513, 9000)] == [512, 512, 2048, 32768]
    costs.forget_costs()
    assert cost_table(target, draft, 3, 100) is not here


def test_costs_are_told_in_plain_steps():
    target, draft = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert costs.relative_costs(target, draft) == []
    cost_table(target, draft, 1, 100).verify.points.update({1: 0.5, 8: 1.0})
    cost_table(target, draft, 1, 100).level.points.update({4: 0.1})
    (entry,) = costs.relative_costs(target, draft)
    assert entry["verify"] == {1: 1.0, 8: 2.0}
    assert entry["level"] == {4: 0.2}
    assert entry["first"] == {}
    assert (entry["rows"], entry["context"], entry["static"]) == (1, 512, False)


# -- chances ---------------------------------------------------------------------------------------------------------


def asked(log_prob: float, count: int, taken: int) -> tuple[torch.Tensor, ...]:
    """`count` nodes of a log-probability, `taken` of them taken, all below taken parents."""
    nodes = torch.arange(count)[None]
    return torch.full((1, count), log_prob), torch.ones_like(nodes, dtype=torch.bool), nodes < taken


def test_chances_follow_what_was_taken():
    calibration = Calibration(CPU, OWN_NOISE)
    here = torch.tensor([[-0.7, -4.0]])
    assert calibration(here).exp().tolist()[0] == pytest.approx([0.5, 0.018], rel=0.1), "what the draft says at first"
    calibration.observe(*asked(-0.7, 1000, 900))
    assert float(calibration(here[0, 0]).exp()) == pytest.approx(0.9, rel=0.02)
    assert float(calibration(here[0, 1]).exp()) == pytest.approx(0.018, rel=0.1), "other probabilities are not touched"


def test_what_is_assumed_weighs_as_much_as_it_should():
    calibration = Calibration(CPU, OWN_NOISE)
    calibration.observe(*asked(-0.7, 8, 8))
    assumed = 0.5
    expected = assumed * (PRIOR_WEIGHT + 8) / (PRIOR_WEIGHT + 8 * assumed)
    assert float(calibration(torch.tensor(-0.7)).exp()) == pytest.approx(expected, rel=0.04)


def test_children_of_rejected_nodes_say_nothing():
    calibration = Calibration(CPU, OWN_NOISE)
    log_probs, is_asked, is_taken = asked(-0.7, 1000, 0)
    calibration.observe(log_probs, ~is_asked, is_taken)
    assert float(calibration(torch.tensor(-0.7)).exp()) == pytest.approx(0.5, rel=0.04)


@pytest.mark.parametrize("assumed", [GREEDY, SHARED_NOISE, OWN_NOISE], ids=str)
def test_chances_rise_with_probabilities_and_are_never_certain(assumed):
    calibration = Calibration(CPU, assumed)
    log_probs = torch.tensor([-torch.inf, -40.0, -9.0, -5.0, -2.0, -0.9, -0.4, -0.1, -0.02, 0.0])
    chances = calibration(log_probs)
    assert (chances.diff() >= 0).all()
    assert (chances < 0).all(), "a child scores below its parent"
    for log_prob in (-0.3, -0.1, -0.05):
        calibration.observe(*asked(log_prob, 500, 500))
    assert (calibration(torch.linspace(-1, 0, 500)) < 0).all(), "not even where all were taken"


def test_greedy_decoding_takes_likely_tokens_more_often_and_unlikely_ones_less():
    sampled, greedy = Calibration(CPU, OWN_NOISE), Calibration(CPU, GREEDY)
    half, little = torch.tensor(-0.7), torch.tensor(-6.0)
    assert greedy(half) > sampled(half) + 0.3
    assert greedy(little) < sampled(little) - 0.3


# -- choices ---------------------------------------------------------------------------------------------------------


def outlook(num_sequences: int, depth: int = 5) -> Outlook:
    return Outlook(num_sequences, 100, depth, (True,) * num_sequences)


def grown(planner: AutoPlanner, depth: int, score: float, num_rows: int) -> DraftTree:
    """What a drafter does with a planner, two children per node: one of log-probability `score`, one of -3."""
    each = torch.tensor([score, -3.0]).expand(num_rows, 1, 2)
    scores = planner.calibration(each)[:, 0]
    pool, edges, parents, depths, last = [scores], [each[:, 0]], [[-1, -1]], [1, 1], 0
    levels = 1
    while levels < depth and (width := planner.width(levels, scores)):
        below = (scores[:, :width, None] + planner.calibration(each.expand(-1, width, -1))).flatten(1)
        offset = sum(part.shape[1] for part in pool)
        frontier = [0, 1] if levels == 1 else last
        parents.append([frontier[i] for i in range(width) for _ in range(2)])
        pool.append(below)
        edges.append(each.expand(-1, width, -1).flatten(1))
        levels += 1
        depths += [levels] * below.shape[1]
        scores, best = below.topk(2, dim=1)
        last = (offset + best[0]).tolist()
    everything = torch.cat(pool, dim=1)
    order = everything.sort(dim=1, descending=True, stable=True)
    nodes = planner.num_nodes(order.values, levels)
    return kept_nodes(
        torch.zeros(num_rows, dtype=torch.long),
        torch.ones_like(everything, dtype=torch.long),
        torch.tensor([parent for level in parents for parent in level]).expand(num_rows, -1),
        torch.tensor(depths),
        everything,
        order.indices[:, :nodes],
        levels,
        torch.cat(edges, dim=1),
    )


def planner_after(
    cycles: int, costs: CostTable, accepted: bool, score: float = -0.3, num_rows: int = 1, reads_scores: bool = True
) -> AutoPlanner:
    """A planner whose drafts were accepted along the likelier child down to the last level, or not at all."""
    planner = AutoPlanner(TreeConfig("auto", 31, 5, 2), CPU, OWN_NOISE, lambda *_: costs)
    planner.reads_scores = reads_scores
    for _ in range(cycles):
        depth = planner.begin(outlook(num_rows))
        if depth:
            tree = grown(planner, depth, score, num_rows)
        else:
            tree = root_only(torch.zeros(num_rows, dtype=torch.long))
        taken = torch.zeros_like(tree.parents, dtype=torch.bool)
        count = 0
        while accepted:
            node = 0 if count == 0 else int(taken[0].nonzero()[-1])
            children = (tree.parents[0] == node).nonzero().flatten()
            if not len(children):
                break
            taken[:, children[0]] = True
            count += 1
        planner.end(tree, taken, [count] * num_rows)
    return planner


def test_free_nodes_are_all_taken_and_dear_ones_are_not():
    assert planner_after(30, FREE_NODES, accepted=True).choices[-1].nodes >= 7
    assert planner_after(30, DEAR_NODES, accepted=True).choices[-1].nodes == 0


def test_dear_levels_are_not_drafted():
    assert planner_after(30, FREE_NODES, accepted=True).choices[-1].levels == 5
    assert planner_after(30, DEAR_LEVELS, accepted=True).choices[-1].levels <= 1


CHANCES = torch.tensor([[0.6, 0.4, 0.2, 0.1, 0.05, 0.02, 0.01, 0.01]]).log()


def begun(costs: CostTable, num_rows: int = 1) -> AutoPlanner:
    planner = AutoPlanner(TreeConfig("auto", 31, 5, 8), CPU, OWN_NOISE, lambda *_: costs)
    assert planner.begin(outlook(num_rows)) == 5
    return planner


def test_levels_are_as_wide_as_pays():
    """A node goes on with a chance of 0.8, and a plain step's time buys one token: 0.8 * 0.1 > 0.06 > 0.8 * 0.05."""
    widths = [begun(table(1, 0.0, 0.01, per_width)).width(1, CHANCES) for per_width in (0.0, 0.03, 0.06, 0.2, 0.6)]
    assert widths == [8, 4, 4, 2, 0]
    assert begun(table(1, 0.05, 0.01)).width(1, CHANCES) == 4, "nor more than pay for their own verification"
    costs = table(1, 0.0, 0.01, 0.03)
    assert begun(costs, 4).width(1, CHANCES.expand(4, -1)) == 3, "of all rows: four times as dear"


def test_more_rows_make_nodes_dearer():
    """Sizes are tokens of all rows: 4 rows of 8 nodes cost what one row of 32 does."""
    costs = table(1, 0.02, 0.01)
    nodes = [begun(costs, rows).num_nodes(CHANCES.expand(rows, -1), 2) for rows in (1, 4, 16)]
    assert nodes == [5, 3, 2]


def test_a_wrong_draft_is_left_alone_for_longer_and_longer():
    choices = planner_after(300, table(1, 0.05, 0.1), accepted=False).choices
    tries = [i for i, choice in enumerate(choices) if choice.levels]
    gaps = [b - a - 1 for a, b in pairwise(tries) if b > a + 1]
    assert len(tries) < 25
    assert gaps == sorted(gaps)
    assert gaps[0] == FIRST_PAUSE
    assert gaps[-1] >= 8 * FIRST_PAUSE


def test_sequences_kept_as_padding_do_not_count():
    scores = torch.tensor([[0.6, 0.5, 0.4, 0.3], [0.1, 0.01, 0.01, 0.01]]).log()
    chosen = []
    for is_live in ((True, False), (False, True)):
        planner = AutoPlanner(TreeConfig("auto", 31, 5, 4), CPU, OWN_NOISE, lambda *_: table(1, 0.1, 0.01))
        planner.begin(Outlook(2, 100, 5, is_live))
        chosen.append((planner.width(1, scores), planner.num_nodes(scores, 2)))
    assert chosen == [(4, 3), (0, 0)]


def test_a_batch_must_gain_more():
    """Which of its sequences will be slow shows too late."""
    gain = [planner_after(60, table(1, 0.0, 0.14), accepted=True, num_rows=rows)._gain.value for rows in (1, 4)]
    assert gain[1] == pytest.approx(gain[0] / 1.1, rel=0.01)


def test_no_more_is_expected_than_levels_and_one():
    planner = AutoPlanner(TreeConfig("auto", 31, 5, 2), CPU, GREEDY, lambda *_: table(1, 0.0, 0.0))
    planner.begin(outlook(1))
    planner.num_nodes(torch.full((1, 20), -0.1), 3)  # siblings that cannot all be right
    assert max(planner._curve.tolist()) <= 3.0


def test_a_good_draft_is_never_left_alone():
    assert all(choice.levels for choice in planner_after(100, table(1, 0.02, 0.05), accepted=True).choices)


def test_what_is_expected_comes_true():
    """A draft whose chain is accepted always: after some cycles its chances say so, whatever its scores."""
    choice = planner_after(100, FREE_NODES, accepted=True).choices[-1]
    assert choice.expected_tokens == pytest.approx(6, abs=1)


@pytest.mark.parametrize(
    "here", [FREE_NODES, DEAR_LEVELS, table(1, 0.01, 0.01, 0.1)], ids=["free", "levels", "widths"]
)
def test_where_scores_are_not_read_choices_follow_from_the_cycles_before(here):
    """As on an accelerator: the same depths and widths in the end, with no look at the scores of the moment."""
    reading = planner_after(40, here, accepted=True)
    blind = planner_after(40, here, accepted=True, reads_scores=False)
    assert blind._widths == reading._widths
    assert blind.choices[-1].nodes == reading.choices[-1].nodes


# -- measuring -------------------------------------------------------------------------------------------------------


class Clock:
    """Stands in for the machine: passes that take what they are said to."""

    def __init__(self):
        self.now = 0.0

    def spend(self, phase: str, seconds: float) -> None:
        self.now += seconds


def chained(roots: DraftTree, nodes: int) -> DraftTree:
    """Chains below the roots."""
    values = torch.full((roots.tokens.shape[0], nodes), -0.1)
    return chain(roots.tokens[:, 0], values.long(), values.cumsum(1), values)


@pytest.mark.parametrize("num_rows", [1, 3])
def test_passes_are_timed_by_the_tokens_they_run(num_rows, monkeypatch):
    clock, costs = Clock(), CostTable()
    monkeypatch.setattr("hf_eagle3.generation.auto.costs.time.perf_counter", lambda: clock.now)
    planner = AutoPlanner(TreeConfig("auto", 31, 5, 4), CPU, OWN_NOISE, lambda *_: costs)
    log_probs = torch.tensor([[-0.1, -0.5, -1.0, -3.0]]).expand(num_rows, -1)
    for _ in range(60):
        scores = planner.calibration(log_probs)
        levels = depth = planner.begin(outlook(num_rows))
        tree = root_only(torch.zeros(num_rows, dtype=torch.long))
        if depth:
            clock.spend("draft_forward", 0.5 + 0.01 * num_rows)
            levels = 1
            while levels < depth and (width := planner.width(levels, scores)):
                clock.spend("draft_forward", 0.2 + 0.01 * width * num_rows)
                clock.spend("tree", 0.1)
                levels += 1
            nodes = planner.num_nodes(scores.repeat(1, 8).sort(descending=True).values, levels)
            clock.spend("tree", 0.05)
            tree = chained(tree, nodes)
        clock.spend("verify_forward", 1 + 0.1 * tree.tokens.numel())
        clock.now += 0.03  # what no phase shows
        planner.end(tree, tree.depths < 0, [0] * num_rows)
    assert costs.first.points == pytest.approx({num_rows: 0.5 + 0.01 * num_rows})
    assert len(costs.level.points) >= 2
    for size, seconds in costs.level.points.items():
        assert seconds == pytest.approx(0.3 + 0.01 * size)
    assert {num_rows, 8 * num_rows} <= costs.verify.points.keys()
    for size, seconds in costs.verify.points.items():
        assert seconds == pytest.approx(1.03 + 0.1 * size + 0.05 * (size > num_rows))
    assert planner.choices[-1].levels == 0, "nothing was accepted"
    assert not planner.is_exploring


def test_a_plain_step_timed_in_a_fast_moment_does_not_end_drafting(monkeypatch):
    """The machine is half as fast from the ninth cycle on, which only the plain step's frozen cost does not know."""
    clock, costs = Clock(), CostTable()
    monkeypatch.setattr("hf_eagle3.generation.auto.costs.time.perf_counter", lambda: clock.now)
    for size in (1, 8, 16):
        costs.verify.points[size] = 0.5 if size == 1 else 1.6
    costs.first.points[1], costs.level.points[1], costs.level.points[4] = 0.2, 0.1, 0.1
    choices = planner_exploring(clock, num_rows=1, costs=costs, cycles=60, per_token=0.04, best=-2.0)
    assert any(choice.levels for choice in choices[:5])
    assert not choices[8].levels
    assert all(choice.levels for choice in choices[40:])


def test_measuring_is_over_soon_and_cheap(monkeypatch):
    """With nothing known: a few drafts, none wider than four nodes, and a few plain steps."""
    clock = Clock()
    monkeypatch.setattr("hf_eagle3.generation.auto.costs.time.perf_counter", lambda: clock.now)
    choices = planner_exploring(clock, num_rows=2)
    assert [bool(choice.levels) for choice in choices] == [True] * 4 + [False] * 4 + [True] * (len(choices) - 8)
    assert all(choice.verification is None for choice in choices[:4])
    assert all(choice.verification is not None for choice in choices[4:])


def planner_exploring(
    clock: Clock,
    num_rows: int,
    costs: CostTable | None = None,
    cycles: int = 12,
    per_token: float = 0.01,
    best: float = -0.1,
) -> list:
    """The choices of the first cycles, with one draft token accepted in each; at first nothing is measured."""
    costs = costs or CostTable()
    planner = AutoPlanner(TreeConfig("auto", 59, 8, 10), CPU, OWN_NOISE, lambda *_: costs)
    scores = torch.linspace(best, best - 4, 10).expand(num_rows, -1)
    for _ in range(cycles):
        depth, levels = planner.begin(outlook(num_rows, 8)), 1
        tree = root_only(torch.zeros(num_rows, dtype=torch.long))
        if depth:
            clock.spend("draft_forward", 0.02)
            while levels < depth and (width := planner.width(levels, scores)):
                assert not planner.is_exploring or width <= 4
                clock.spend("draft_forward", 0.01)
                levels += 1
            nodes = planner.num_nodes(scores.repeat(1, 8).sort(descending=True).values, levels)
            tree = chained(tree, nodes)
        clock.spend("verify_forward", 1 + per_token * tree.tokens.numel())
        planner.end(tree, tree.depths == 1, [min(1, tree.num_draft_tokens)] * num_rows)
    return planner.choices


@pytest.mark.parametrize("sizes", [(59, 8, 10), (5, 5, 1), (1, 1, 1), (10, 1, 10), (12, 2, 3), (14, 3, 2)], ids=str)
def test_every_tree_gets_measured(sizes):
    """However small the largest tree allowed."""
    target = tiny_target()
    nodes, depth, top_k = sizes
    draft = tiny_draft(target).with_tree("auto", num_draft_tokens=nodes, tree_depth=depth, tree_top_k=top_k)
    costs.forget_costs()
    stats = assert_same(target, draft, left_padded([12]), max_new_tokens=60, do_sample=False)
    assert any(choice.verification is not None and choice.levels for choice in stats.choices)


# -- in generate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_next"])
@pytest.mark.parametrize("lengths", [[12], [13, 4, 9]], ids=str)
@pytest.mark.parametrize("options", [{"do_sample": False}, SAMPLING], ids=["greedy", "sampled"])
def test_text_is_identical_while_measuring_and_after(name, lengths, options):
    target = tiny_target(name)
    draft = tiny_draft(target).with_tree("auto", num_draft_tokens=20, tree_depth=4, tree_top_k=4)
    costs.forget_costs()
    for _ in range(2):
        stats = assert_same(target, draft, left_padded(lengths), max_new_tokens=40, **options)
        assert len(stats.choices) >= stats.num_iterations - 1, "all but a last step that has nothing to gain"
    assert any(choice.levels for choice in stats.choices)


@pytest.mark.parametrize("name", TREE_TARGETS)
@pytest.mark.parametrize("lengths", [[12], [9, 9], [13, 4, 9]], ids=str)
@pytest.mark.parametrize("drafted", [0, 3])
def test_plain_steps_see_what_plain_generate_sees(name, lengths, drafted, monkeypatch):
    """Past the windows' ends, and between rows that drafts left at different lengths."""
    begin, cycles = AutoPlanner.begin, iter(range(100))
    monkeypatch.setattr(
        AutoPlanner, "begin", lambda self, *given: begin(self, *given) if next(cycles) < drafted else 0
    )
    target = tiny_target(name)
    draft = tiny_draft(target).with_tree("auto")
    inputs, options = left_padded(lengths), {"max_new_tokens": 40, "do_sample": False}
    stats = assert_same(target, draft, inputs, **options)
    assert stats.num_iterations > 10
    kept = {"return_dict_in_generate": True, "output_logits": True}
    plain = target.generate(**inputs, **options, **kept).logits
    cycles = iter(range(100))
    ours = target.generate(**inputs, **options, **kept, assistant_model=draft).logits
    torch.testing.assert_close(torch.stack(ours), torch.stack(plain), rtol=1e-4, atol=1e-4)


def test_when_rows_have_ended_the_costs_of_fewer_rows_count(monkeypatch):
    asked = []

    def costs_here(target, layer, num_rows, *others):
        asked.append(num_rows)
        return FREE_NODES

    monkeypatch.setattr(settling, "cost_table", costs_here)
    target = tiny_target()
    draft = tiny_draft(target).with_tree("auto")
    options = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": [5, 6, 7]}
    stats = assert_same(target, draft, left_padded([13, 4, 9, 7, 11, 3]), **options)
    assert len(set(stats.generated_lengths)) > 1, "all rows ended together: the test shows nothing"
    assert len(asked) > 1
    assert all(a > b for a, b in pairwise(asked)), "one look per number of rows, the context being of one size"


@pytest.mark.parametrize("costs_here", [FREE_NODES, DEAR_NODES, DEAR_LEVELS], ids=["free", "nodes", "levels"])
def test_the_same_costs_give_the_same_choices(costs_here, monkeypatch):
    monkeypatch.setattr(settling, "cost_table", lambda *_: costs_here)
    target = tiny_target()
    draft = tiny_draft(target).with_tree("auto")
    seen = []
    for _ in range(2):
        stats = assert_same(target, draft, left_padded([11, 5]), max_new_tokens=60, seed=3, **SAMPLING)
        seen.append(stats.choices)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("top_k", [1, 4])
def test_scores_are_products_of_corrected_chances(top_k, monkeypatch):
    """Of a calibration that something was learnt from; and what the draft itself said is kept beside them."""
    monkeypatch.setattr(settling, "cost_table", lambda *_: FREE_NODES)
    monkeypatch.setattr(Calibration, "observe", lambda *_: None)
    seen, plain_end = [], AutoPlanner.end

    def end(planner, tree, *args):
        seen.append((tree, planner.calibration(tree.log_probs) if tree.num_draft_tokens else None))
        plain_end(planner, tree, *args)

    monkeypatch.setattr(AutoPlanner, "end", end)
    target = tiny_target()
    draft = tiny_draft(target).with_tree("auto", num_draft_tokens=12, tree_depth=4, tree_top_k=top_k)
    assert_same(target, draft, left_padded([12, 7]), max_new_tokens=30, do_sample=False)
    trees = [(tree, chances) for tree, chances in seen if chances is not None]
    assert len(trees) > 5
    for tree, chances in trees:
        above = tree.scores.gather(1, tree.parents.clamp(min=0))
        torch.testing.assert_close(tree.scores[:, 1:], (above + chances)[:, 1:])
        assert (tree.log_probs[:, 1:] <= 0).all()


def test_only_children_of_taken_nodes_teach_something(monkeypatch):
    monkeypatch.setattr(settling, "cost_table", lambda *_: FREE_NODES)
    seen, plain_end = [], AutoPlanner.end

    def observe(calibration, log_probs, is_asked, is_taken):
        seen[-1] += (log_probs, is_asked, is_taken)

    def end(planner, tree, accepted, *args):
        seen.append([tree, accepted])
        plain_end(planner, tree, accepted, *args)

    monkeypatch.setattr(Calibration, "observe", observe)
    monkeypatch.setattr(AutoPlanner, "end", end)
    target = tiny_target()
    draft = tiny_draft(target).with_tree("auto", num_draft_tokens=30, tree_depth=4, tree_top_k=8)
    assert_same(target, draft, left_padded([12, 7]), max_new_tokens=40, do_sample=False)
    taken = 0
    for tree, accepted, *learnt in seen:
        if not learnt:
            assert tree.num_draft_tokens == 0
            continue
        for a in range(tree.tokens.shape[0]):
            path = {0} | set(accepted[a].nonzero().flatten().tolist())
            taken += len(path) - 1
            for node in range(1, tree.tokens.shape[1]):
                said = [values[a, node - 1].item() for values in learnt]
                assert said == [tree.log_probs[a, node].item(), tree.parents[a, node].item() in path, node in path]
    assert taken > 5


def test_the_same_nodes_accept_more_when_chances_are_corrected(monkeypatch):
    """The embedded pair at T=0, whole trees of one size."""
    target, draft, tokenizer = load_pair()
    draft = draft.with_tree("auto", num_draft_tokens=16, tree_depth=6, tree_top_k=4)
    monkeypatch.setattr(settling, "cost_table", lambda *_: FREE_NODES)
    monkeypatch.setattr(AutoPlanner, "num_nodes", fixed_nodes)
    monkeypatch.setattr(AutoPlanner, "width", lambda self, level, scores: 4)
    lengths = []
    for corrects in (False, True):
        if not corrects:
            monkeypatch.setattr(Calibration, "__call__", lambda self, log_probs: log_probs)
        with hf_eagle3.record() as stats:
            for row in prompts()[::4]:
                inputs = tokenizer.apply_chat_template(
                    [{"role": "user", "content": row["prompt"]}],
                    add_generation_prompt=True, return_dict=True, return_tensors="pt",
                )  # fmt: skip
                target.generate(**inputs, max_new_tokens=64, do_sample=False, assistant_model=draft)
        lengths.append(stats.acceptance_length)
        monkeypatch.setattr(Calibration, "__call__", CORRECTED)
    assert lengths[1] > 1.03 * lengths[0]


CORRECTED = Calibration.__call__


def fixed_nodes(planner: AutoPlanner, scores: torch.Tensor, levels: int, _plain=AutoPlanner.num_nodes) -> int:
    _plain(planner, scores, levels)
    planner._nodes = min(16, scores.shape[1])
    return planner._nodes


def test_plain_steps_and_drafting_take_turns(monkeypatch):
    """Steps without a draft leave features behind that the next try must feed first, chat turns included."""
    monkeypatch.setattr(settling, "cost_table", lambda *_: DEAR_NODES)
    target = tiny_target()
    draft = tiny_draft(target).with_tree("auto")
    stats = assert_same(target, draft, left_padded([12]), max_new_tokens=120, do_sample=False)
    kinds = [bool(choice.levels) for choice in stats.choices]
    assert sum(a != b for a, b in pairwise(kinds)) >= 3


def test_auto_is_the_default_and_its_sizes_are_limits(monkeypatch):
    monkeypatch.setattr(settling, "cost_table", lambda *_: FREE_NODES)
    target = tiny_target()
    draft = tiny_draft(target).with_tree("auto", num_draft_tokens=9, tree_depth=3, tree_top_k=3)
    assert hf_eagle3.Eagle3DraftModel(draft.config).tree_config.tree_mode == "auto"
    stats = assert_same(target, draft, left_padded([12]), max_new_tokens=60, do_sample=False)
    assert max(choice.nodes for choice in stats.choices) <= 9
    assert max(choice.levels for choice in stats.choices) <= 3


def test_sequences_that_have_ended_and_run_on_teach_nothing():
    """Their padding is no measure of the draft: here a stop string has ended one, and the others go on."""
    target = tiny_target()
    draft = tiny_draft(target).with_tree("auto", num_draft_tokens=12, tree_depth=4, tree_top_k=4)

    def looks_at_rows(input_ids, scores, **kwargs):
        return (input_ids[:, -1] % 5 == 3).expand(len(input_ids))

    options = {"stopping_criteria": [looks_at_rows], "eos_token_id": [5, 6, 9], "max_new_tokens": 40}
    stats = assert_same(target, draft, left_padded([13, 4, 9, 7]), **options, **SAMPLING)
    assert len(set(stats.generated_lengths)) > 1
    assert stats.choices
