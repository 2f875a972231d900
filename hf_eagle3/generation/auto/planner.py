"""How much to draft, cycle by cycle: the tree mode "auto".

A node's chance of being reached is what it adds to the tokens of a cycle; verifying one node more and drafting one
level more cost time. Depth, width and number of nodes are those that are worth their time at the rate of tokens per
second reached so far, down to none at all: then plain steps run for a while, and drafting is tried again. Nothing
chosen here can change the text.

Shape letters: A active rows, k nodes of a level, M nodes seen while drafting, N drafted nodes.
"""

import math
from dataclasses import dataclass

import torch

from ...tree_config import TreeConfig
from ..ops.transfer import on_device
from ..tree.draft_tree import DraftTree
from .calibration import Calibration
from .costs import CostTable, Stopwatch


# Passes of so many tokens per row, the root included, and levels of so many nodes are considered: few sizes, so that
# each gets measured.
PASS_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
FEW_SIZES = (1, 8, 24)  # and the largest, where each size is compiled
FIRST_SIZE = 8  # measured first, and then the plain step
FIRST_WIDTHS = (4, 1)  # of levels 1, 2, 1, 2, ... meanwhile
FIRST_LEVELS = 4  # no more of them than give that size
GOES_ON = 0.8  # chance that a path goes on past a level, assumed at first
SMOOTHING = 0.8
FIRST_PAUSE, LONGEST_PAUSE = 8, 256  # plain steps between tries
HOPE, LESS_HOPE = 1.2, 1.02  # gain taken for granted at first, and at further tries
MARGIN = 0.05  # that a batch must gain per doubling of its rows: which of them will be slow shows too late
STRAGGLERS = 4  # rows count by so high a power of the cycles they will still take: a batch waits for its slowest


def few_sizes(largest: int) -> tuple[int, ...]:
    """Sizes of a pass for trees of up to `largest` nodes, the root included, where each size costs a compilation."""
    return (*(size for size in FEW_SIZES if size < largest), largest)


@dataclass(frozen=True)
class Choice:
    """
    One cycle.

    Attributes:
        levels, nodes: Drafted and verified; none in a plain step.
        expected_tokens: Per row.
        verification, drafting: What that costs in steps of plain decoding; `None` while it is being measured.
    """

    levels: int
    nodes: int
    expected_tokens: float
    verification: float | None = None
    drafting: float | None = None


PLAIN_STEP = Choice(0, 0, 1.0, 1.0, 0.0)


class AutoPlanner:
    """
    Chooses for one call of `generate`.

    Args:
        sizes: The largest tree allowed.
        device: The draft's. On a CPU scores are read as they come; elsewhere, where reading stalls the device, the
            choices follow from the cycles before.
        assumed: What a [`Calibration`] begins with.
        pass_sizes: Passes of so many tokens are considered.
        is_static: Whether a level is expanded whole or not at all, since its width cannot change.
    """

    def __init__(
        self,
        sizes: TreeConfig,
        device: torch.device,
        assumed: tuple[float, float],
        pass_sizes: tuple[int, ...] = PASS_SIZES,
        is_static: bool = False,
    ):
        self.sizes, self.pass_sizes, self.is_static = sizes, pass_sizes, is_static
        self.reads_scores = device.type == "cpu"
        most = sizes.tree_top_k
        self.level_sizes = (most,) if is_static else (*(size for size in pass_sizes if size < most), most)
        self.calibration = Calibration(device, assumed)
        self.first_size = max(size for size in pass_sizes if size <= min(FIRST_SIZE, sizes.num_draft_tokens + 1))
        self.costs, self.num_rows = CostTable(), 1
        self.is_exploring = True
        self.choices: list[Choice] = []
        self._curve: torch.Tensor | None = None  # expected accepted tokens by nodes, of the latest draft, (N,)
        self._past_curve: list[float] = []  # the same on the host; where scores are not read, smoothed over cycles
        self._levels_chances: list[list[float]] = []  # of past frontiers, smoothed, where scores are not read
        self._frontiers: list[torch.Tensor] = []  # mean chances of this draft's, (k,)
        self._went_on = self._could_go_on = 0.0  # how often a path went on past a level, fading
        self._usual_nodes = self.first_size - 1
        self._gain = HOPE  # smoothed rate of drafting over the rate of plain steps
        self._rate = 0.0  # smoothed expected tokens per second
        self._pause, self._plain_left = FIRST_PAUSE, 0
        self._levels, self._nodes, self._seen = 0, 0, 0
        self._weights: list[float] | None = None  # of the active rows
        self._widths: list[int] = []  # of this cycle's levels
        self._watch = Stopwatch()

    @property
    def is_measuring(self) -> bool:
        """Whether the coming cycle's time is wanted: on an accelerator that takes waiting for it."""
        return self.is_exploring or self._watch.is_new

    @property
    def is_underway(self) -> bool:
        """Whether a cycle has begun that did not end yet."""
        return self._watch.is_running

    def abandon(self) -> None:
        """The cycle that has begun is not to count."""
        self._watch.is_running = False

    # -- one cycle ----------------------------------------------------------------------------------------------------

    def begin(
        self,
        costs: CostTable,
        num_rows: int,
        depth: int,
        phase_seconds: dict[str, float],
        cycles_left: list[float] | None = None,
    ) -> int:
        """
        Levels that may be drafted in this cycle, at most `depth`; 0 makes it a plain step.

        Args:
            costs: For this number of rows and length of context.
            num_rows: Rows that a pass has.
            phase_seconds: Seconds per phase, counted on while the cycle runs.
            cycles_left: How many more each active row will take, by the pace it had so far, 0 where it has ended and
                is padded; `None`: all alike.
        """
        self._weights = None
        longest = max(cycles_left or [0.0])
        if longest:
            weights = [(left / longest) ** STRAGGLERS for left in cycles_left]
            self._weights = [weight / sum(weights) for weight in weights]
            self._weights_there = on_device(self._weights, self.calibration.edges.device)
        self._watch.start(phase_seconds)
        self._levels = self._nodes = self._seen = 0
        self._curve = None
        self._widths, self._frontiers = [], []
        if costs is not self.costs:  # another number of rows or length of context
            self.costs, self._rate, self._gain, self._plain_left = costs, 0.0, HOPE, 0
        self.num_rows = num_rows
        has_drafted = costs.first.points and (costs.level.points or self.sizes.tree_depth == 1)
        knows_drafting = has_drafted and costs.verify.covers(self.first_size * num_rows)
        self.is_exploring = not (knows_drafting and costs.verify.covers(num_rows))
        if self.is_exploring:
            return 0 if knows_drafting else depth
        if self._plain_left:
            self._plain_left -= 1
            return 0
        return depth

    def width(self, level: int, scores: torch.Tensor) -> int:
        """
        How many nodes of level `level`, `scores` (A, k) best first, to expand into the next; 0 ends the draft. A node
        that does not pay for its own verification has no child that does.
        """
        self._time_level()
        most = scores.shape[1]
        self._seen += most if level == 1 else most * self._widths[-1]
        if self.is_exploring:
            enough = level >= FIRST_LEVELS and self._seen >= self.first_size - 1
            width = 0 if enough else most if self.is_static else min(most, FIRST_WIDTHS[(level - 1) % 2])
        else:
            width = self._paying_width(level, scores)
        if width:
            self._widths.append(width)
        return width

    def _paying_width(self, level: int, scores: torch.Tensor) -> int:
        chances = self._frontier_chances(level, scores)
        rate = self._own_rate()
        goes_on = (self._went_on + GOES_ON) / (self._could_go_on + 1)
        least = rate * self.num_rows * self.costs.verify.slope(self.num_rows * (self._usual_nodes + 1))
        gains, total = [0.0], 0.0
        for chance in chances:
            total += max(0.0, chance * goes_on - least)
            gains.append(total)

        def worth(width: int) -> float:
            return gains[width] - rate * self.costs.level(self.num_rows * width)

        best = max(self.level_sizes, key=worth)
        return best if worth(best) > 0 else 0

    def _frontier_chances(self, level: int, scores: torch.Tensor) -> list[float]:
        chances = self._over_rows(scores.exp())
        if self.reads_scores:
            return chances.tolist()
        self._frontiers.append(chances)
        if level <= len(self._levels_chances):
            return self._levels_chances[level - 1]
        return [1.0] * scores.shape[1]

    def num_nodes(self, scores: torch.Tensor, levels: int) -> int:
        """How many of all nodes seen, `scores` (A, M) best first, to verify."""
        self._time_level()
        most = min(scores.shape[1], self.sizes.num_draft_tokens)
        self._levels = levels
        self._curve = self._over_rows(scores[:, :most].exp().cumsum(1).clamp(max=levels))
        if self.is_exploring:
            self._nodes = min(self.first_size - 1, most)
            return self._nodes
        curve = self._curve.tolist() if self.reads_scores or not self._past_curve else self._past_curve
        rate, rows = self._own_rate(), self.num_rows

        def worth(nodes: int) -> float:
            return (curve[nodes - 1] if nodes else 0.0) - rate * self.costs.verify(rows * (nodes + 1))

        self._nodes = max((size - 1 for size in self.pass_sizes if size - 1 <= min(most, len(curve))), key=worth)
        return self._nodes

    def end(self, tree: DraftTree, accepted: torch.Tensor | None, counts: list[int], is_timed: bool) -> None:
        """
        What came of it.

        Args:
            tree: The verified one.
            accepted: Which of its nodes were, the root not, (A, N + 1); not read where it has but the root. Rows that
                are padded may be left out of both.
            counts: Accepted draft tokens per active row; those of padded rows weigh nothing.
            is_timed: Whether the seconds per phase show what this cycle cost.
        """
        size = self.num_rows * (self._nodes + 1)
        if self._levels:
            self._learn(tree, accepted, counts)
        self._watch.stop(self.costs.verify, size, is_timed)
        self.choices.append(self._judged(counts) if self._levels else PLAIN_STEP)

    def _judged(self, counts: list[int]) -> Choice:
        """A drafted cycle, with its price where that is known; then also whether drafting pays."""
        expected = 1 + (self._past_curve[self._nodes - 1] if self._nodes else 0.0)
        if self.is_exploring:
            return Choice(self._levels, self._nodes, expected)
        plain, rows = self.costs.verify(self.num_rows), self.num_rows
        drafting = self.costs.first(rows) + sum(self.costs.level(rows * width) for width in self._widths)
        verification = self.costs.verify(rows * (self._nodes + 1))
        # Halfway between what was expected and what came: robust against an overconfident draft, and against luck.
        came = 1 + self._mean(counts)
        self._weigh((expected + came) / 2 / (verification + drafting))
        return Choice(self._levels, self._nodes, expected, verification / plain, drafting / plain)

    def _learn(self, tree: DraftTree, accepted: torch.Tensor | None, counts: list[int]) -> None:
        if self._nodes:
            self._usual_nodes = self._nodes
            device, parents = self.calibration.edges.device, tree.parents[:, 1:]
            is_asked = accepted.gather(1, parents) | (parents == 0)
            self.calibration.observe(tree.log_probs[:, 1:].to(device), is_asked.to(device), accepted[:, 1:].to(device))
        curve = self._curve.tolist()
        if len(self._past_curve) == len(curve) and not self.reads_scores:
            curve = _smoothed(self._past_curve, curve)
        self._past_curve = curve
        if self._frontiers:
            chances = torch.stack(self._frontiers).tolist()
            known = self._levels_chances[: len(chances)]
            seen = [_smoothed(old, new) for old, new in zip(known, chances, strict=False)] + chances[len(known) :]
            # Levels not drafted this time fare as their elders do.
            change = sum(seen[-1]) / sum(known[-1]) if len(known) == len(chances) and sum(known[-1]) else 1.0
            unseen = [[min(1.0, chance * change) for chance in old] for old in self._levels_chances[len(chances) :]]
            self._levels_chances = seen + unseen
        went_on = self._mean([max(0, count - 1) for count in counts])
        could_go_on = self._mean([min(count, self._levels - 1) for count in counts])
        self._went_on = SMOOTHING * self._went_on + went_on
        self._could_go_on = SMOOTHING * self._could_go_on + could_go_on

    def _weigh(self, rate: float) -> None:
        """Whether drafting pays; where it does not, plain steps follow, more of them each time."""
        gain = rate * self.costs.verify(self.num_rows) / (1 + MARGIN * math.log2(self.num_rows))
        self._rate = rate if self._rate == 0 else SMOOTHING * self._rate + (1 - SMOOTHING) * rate
        self._gain = SMOOTHING * self._gain + (1 - SMOOTHING) * gain
        if gain >= 1:
            self._pause = FIRST_PAUSE
        if self._gain >= 1:
            return
        self._plain_left, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        self._gain = LESS_HOPE
        # Perhaps one side was timed in a slow moment: the plain steps to come and the next tries show it.
        self.costs.verify.doubt(self.num_rows)
        self._watch.doubt()

    def _own_rate(self) -> float:
        """Tokens per second and row, never below that of plain steps."""
        return max(self._rate, 1 / self.costs.verify(self.num_rows))

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _over_rows(self, values: torch.Tensor) -> torch.Tensor:
        """(n,) of values (A, n), rows weighed."""
        if values.shape[0] == 1:
            return values[0]
        if self._weights is None:
            return values.mean(dim=0)
        return self._weights_there @ values

    def _mean(self, values: list[float]) -> float:
        weights = self._weights or [1 / len(values)] * len(values)
        return sum(weight * value for weight, value in zip(weights, values, strict=True))

    def _time_level(self) -> None:
        if self._widths:
            self._watch.lap(self.costs.level, self.num_rows * self._widths[-1])
        else:
            self._watch.lap(self.costs.first, self.num_rows)


def _smoothed(old: list[float], new: list[float]) -> list[float]:
    return [SMOOTHING * a + (1 - SMOOTHING) * b for a, b in zip(old, new, strict=True)]
