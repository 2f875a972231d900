"""The tree mode "auto": what it measures, what it chooses, and that its choices never change the text."""

from itertools import pairwise

import pytest
import torch
from models import left_padded, tiny_draft, tiny_target
from test_generate import SAMPLING, assert_same

import hf_eagle3
from hf_eagle3.generation import costs, decoding
from hf_eagle3.generation.costs import SAMPLES, WARM_UPS, CostCurve, CostTable, bucket, cost_table
from hf_eagle3.generation.planning import FIRST_PAUSE, AutoPlanner, Reliability
from hf_eagle3.tree_config import TreeConfig


CPU = torch.device("cpu")
PHASES = dict.fromkeys(("draft_forward", "tree", "verify_forward", "walk", "commit"), 0.0)


def table(plain: float, per_node: float, per_level: float) -> CostTable:
    """Linear costs, all measured."""
    verify = {size: plain + per_node * (size - 1) for size in range(1, 130)}
    return CostTable(CostCurve(verify), CostCurve({level: per_level * level for level in range(20)}))


FREE_NODES, DEAR_NODES, DEAR_LEVELS = table(1, 0, 0.01), table(1, 1.0, 0.01), table(1, 0.01, 2.0)


# -- costs -----------------------------------------------------------------------------------------------------------


def test_a_size_is_measured_after_its_warm_up_and_then_frozen():
    curve = CostCurve()
    for seconds in (9.0, 3.0, 2.0, 4.0):
        assert 8 not in curve.points
        curve.add(8, seconds)
    assert curve.points == {8: 2.0}, "the least after the warm-up"
    for _ in range(WARM_UPS + SAMPLES):
        curve.add(8, 0.1)
    assert curve.points == {8: 2.0}, "frozen: choices made from it are reproducible"


def test_between_sizes_costs_are_linear_and_beyond_them_hopeful():
    curve = CostCurve({1: 1.0, 8: 2.0, 16: 6.0})
    assert curve(1) == 1.0
    assert curve(12) == pytest.approx(4.0)
    assert curve(24) == pytest.approx(6.0 + 8 * 0.5 * 0.5), "half the last slope"
    assert curve.slope(12) == pytest.approx(0.5)
    assert CostCurve({1: 2.0, 8: 1.0}).slope(4) == 0.0
    assert CostCurve()(5) == float("inf")


def test_a_size_timed_in_a_slow_moment_costs_no_more_than_a_larger_one():
    curve = CostCurve({1: 1.0, 8: 9.0, 16: 3.0})
    assert curve(8) == 3.0
    assert curve(1) == 1.0
    assert 1.0 < curve(4) < 3.0
    assert curve.slope(12) == 0.0
    curve.points[24] = 2.0  # measured later
    assert curve(8) == curve(16) == 2.0


def test_one_table_per_pair_rows_and_context():
    target, draft = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    here = cost_table(target, draft, 3, 100)
    assert cost_table(target, draft, 4, 512) is here
    others = [(target, draft, 5, 100), (target, draft, 3, 513), (target, torch.nn.Linear(2, 2), 3, 100)]
    assert all(cost_table(*other) is not here for other in others)
    assert [bucket(n, 512, 4) for n in (1, 512, 513, 9000)] == [512, 512, 2048, 32768]
    costs.forget_costs()
    assert cost_table(target, draft, 3, 100) is not here


# -- chances ---------------------------------------------------------------------------------------------------------


def test_chances_follow_what_was_accepted():
    reliability = Reliability(CPU, is_greedy=False)
    score = torch.tensor([[-0.7]])
    assert float(reliability(score)) == pytest.approx(0.5, abs=0.06), "the draft's own estimate at first"
    for _ in range(100):
        reliability.observe(torch.full((1, 10), -0.7), torch.arange(10)[None] < 9)
    assert float(reliability(score)) == pytest.approx(0.9, abs=0.01)
    assert float(reliability(torch.tensor(-4.0))) < 0.05, "other scores are not touched"


def test_greedy_decoding_takes_likely_tokens_more_often():
    half = torch.tensor(-0.7)
    assert Reliability(CPU, is_greedy=True)(half) > 0.1 + Reliability(CPU, is_greedy=False)(half)


# -- choices ---------------------------------------------------------------------------------------------------------


def planner_after(cycles: int, costs: CostTable, accepted: bool, score: float = -0.3) -> AutoPlanner:
    """A planner that saw full binary levels of `score` each, all of a chain accepted, or nothing."""
    planner = AutoPlanner(TreeConfig("auto", 31, 5, 2), CPU, is_greedy=False)
    for _ in range(cycles):
        depth = planner.begin(costs, 5, PHASES)
        levels = 0
        scores = torch.zeros(1, 1)
        if depth:
            level_scores = [torch.tensor([[score, -3.0]])]
            levels = 1
            while levels < depth and planner.width(levels, level_scores[-1]):
                level_scores.append(level_scores[-1] + score)
                levels += 1
            pool = torch.cat(level_scores, dim=1).sort(descending=True).values
            nodes = planner.num_nodes(pool, levels)
            scores = torch.cat((torch.zeros(1, 1), pool[:, :nodes]), dim=1)
        taken = torch.zeros_like(scores, dtype=torch.bool)
        count = min(levels, scores.shape[1] - 1) if accepted else 0
        taken[:, 1 : 1 + count] = True
        planner.end(scores, taken, [count], None)
    return planner


def test_free_nodes_are_all_taken_and_dear_ones_are_not():
    assert planner_after(30, FREE_NODES, accepted=True).choices[-1].nodes >= 7
    assert planner_after(30, DEAR_NODES, accepted=True).choices[-1].nodes == 0


def test_dear_levels_are_not_drafted():
    assert planner_after(30, FREE_NODES, accepted=True).choices[-1].levels == 5
    assert planner_after(30, DEAR_LEVELS, accepted=True).choices[-1].levels <= 1


def test_a_wrong_draft_is_left_alone_for_longer_and_longer():
    choices = planner_after(200, table(1, 0.05, 0.1), accepted=False).choices
    tries = [i for i, choice in enumerate(choices) if choice.levels]
    gaps = [b - a - 1 for a, b in pairwise(tries) if b > a + 1]
    assert len(tries) < 40
    assert gaps == sorted(gaps)
    assert gaps[0] == FIRST_PAUSE
    assert gaps[-1] >= 4 * FIRST_PAUSE


def test_no_more_is_expected_than_levels_and_one():
    planner = AutoPlanner(TreeConfig("auto", 31, 5, 2), CPU, is_greedy=True)
    costs = table(1, 0.0, 0.0)
    planner.begin(costs, 5, PHASES)
    planner.num_nodes(torch.full((1, 20), -0.1), 3)  # siblings that cannot all be right
    assert max(planner._curve.tolist()) <= 3.0


def test_a_good_draft_is_never_left_alone():
    assert all(choice.levels for choice in planner_after(100, table(1, 0.02, 0.05), accepted=True).choices)


def test_what_is_expected_comes_true():
    """A draft whose chain is accepted always: after some cycles its chances say so, whatever its scores."""
    choice = planner_after(100, FREE_NODES, accepted=True).choices[-1]
    assert choice.expected_tokens == pytest.approx(6, abs=1)


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


@pytest.mark.parametrize("costs_here", [FREE_NODES, DEAR_NODES, DEAR_LEVELS], ids=["free", "nodes", "levels"])
def test_the_same_costs_give_the_same_choices(costs_here, monkeypatch):
    monkeypatch.setattr(decoding, "cost_table", lambda *_: costs_here)
    target = tiny_target()
    draft = tiny_draft(target).with_tree("auto")
    seen = []
    for _ in range(2):
        stats = assert_same(target, draft, left_padded([11, 5]), max_new_tokens=60, seed=3, **SAMPLING)
        seen.append(stats.choices)
    assert seen[0] == seen[1]


def test_plain_steps_and_drafting_take_turns(monkeypatch):
    """Steps without a draft leave features behind that the next try must feed first, chat turns included."""
    monkeypatch.setattr(decoding, "cost_table", lambda *_: DEAR_NODES)
    target = tiny_target()
    draft = tiny_draft(target).with_tree("auto")
    stats = assert_same(target, draft, left_padded([12]), max_new_tokens=120, do_sample=False)
    kinds = [bool(choice.levels) for choice in stats.choices]
    assert sum(a != b for a, b in pairwise(kinds)) >= 3


def test_auto_is_the_default_and_its_sizes_are_limits(monkeypatch):
    monkeypatch.setattr(decoding, "cost_table", lambda *_: FREE_NODES)
    target = tiny_target()
    draft = tiny_draft(target).with_tree("auto", num_draft_tokens=9, tree_depth=3, tree_top_k=3)
    assert hf_eagle3.Eagle3DraftModel(draft.config).tree_config.tree_mode == "auto"
    stats = assert_same(target, draft, left_padded([12]), max_new_tokens=60, do_sample=False)
    assert max(choice.nodes for choice in stats.choices) <= 9
    assert max(choice.levels for choice in stats.choices) <= 3
