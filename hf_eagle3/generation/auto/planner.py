"""The tree mode "auto": as many levels and nodes in each cycle as pay on this machine, none where none do.

A node's chance of being accepted is what it adds to the tokens of a cycle; verifying one node more and drafting one
level more cost time. Depth, width and number of nodes are those worth their time at the rate of tokens per second
reached so far. Where drafting does not pay, plain steps follow for a while, and then it is tried again.

Shape letters: A sequences, k nodes of a level, M nodes seen while drafting, N drafted nodes.
"""

import math
from collections.abc import Callable

import torch

from ...tree_config import TreeConfig
from ..ops.transfer import on_device
from ..tree.draft_tree import DraftTree
from ..tree.policy import Choice, Outlook, TreePolicy
from .calibration import Calibration
from .costs import CostCurve, CostTable, Stopwatch
from .traits import MEASURED, DraftingTraits


# Passes of so many tokens per sequence, the root included, and levels of so many nodes are considered: few sizes, so
# that each gets measured. Steps of a third: a finer choice gains less than the noise of the timings.
PASS_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
FIRST_SIZE = 8  # measured first, beside the plain step: what most CPUs end up with
FEW_SIZES = (1, FIRST_SIZE, 3 * FIRST_SIZE)  # and the largest, where each size costs a compilation
CONTINUES = 0.8  # chance that a path goes past a level, until some have: an acceptance rate of a decent draft
SMOOTHING = 0.8  # of running means: a memory of about five cycles
FIRST_PAUSE = 8  # plain steps after drafting did not pay: one try in nine steps
LONGEST_PAUSE = 32 * FIRST_PAUSE  # tries then cost less than 1 %
INITIAL_GAIN = 1 / SMOOTHING  # of drafting over plain steps, assumed at first: a single useless cycle ends nothing
RETRY_GAIN = 1.02  # and at a retry: a single bad cycle ends it
# A batch must gain more per doubling of its sequences, since it ends with the slowest: without this margin, batches of
# 16 of the stories pair took 1.17 times the time at T=0 and 1.11 times at T=1 (docs/performance.md).
BATCH_MARGIN = 0.05


def few_sizes(largest: int) -> tuple[int, ...]:
    """Sizes of a pass for trees of up to `largest` nodes, the root included, where each size costs a compilation."""
    return (*(size for size in FEW_SIZES if size < largest), largest)


class Gain:
    """
    Whether drafting pays, and for how long plain steps follow where it does not.

    Attributes:
        rate: Smoothed tokens per second and sequence of drafted cycles; 0 until one is known.
        value: Smoothed rate of drafting over the rate of plain steps.
    """

    def __init__(self):
        self.restart()
        self._pause = FIRST_PAUSE

    def restart(self) -> None:
        """Other costs: what was learnt does not hold any more."""
        self.rate, self.value, self._plain_left = 0.0, INITIAL_GAIN, 0

    def pauses(self) -> bool:
        """Whether this cycle is one of the plain steps."""
        self._plain_left -= 1
        return self._plain_left >= 0

    def see(self, rate: float) -> None:
        """A cycle came to `rate` tokens per second."""
        self.rate = rate if self.rate == 0 else SMOOTHING * self.rate + (1 - SMOOTHING) * rate

    def pays(self, rate: float, plain_seconds: float, num_sequences: int) -> bool:
        """A cycle came to `rate` tokens per second, where a plain step takes `plain_seconds`; `False`: pause."""
        gain = rate * plain_seconds / (1 + BATCH_MARGIN * math.log2(num_sequences))
        self.see(rate)
        self.value = SMOOTHING * self.value + (1 - SMOOTHING) * gain
        if gain >= 1:
            self._pause = FIRST_PAUSE
        if self.value >= 1:
            return True
        self._plain_left, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        self.value = RETRY_GAIN
        return False


class AutoPlanner(TreePolicy):
    """
    The policy of one call of `generate`.

    Args:
        sizes: The largest tree allowed.
        device: The draft's. On a CPU scores are read as they come; elsewhere, where reading stalls the device, the
            choices follow from the cycles before.
        assumed: What a [`Calibration`] begins with.
        costs: The table for so many sequences per pass and so many tokens of context.
        pass_sizes: Passes of so many tokens are considered.
        is_static, traits: Whether a level's width cannot change; what is known of the kind of draft.
    """

    is_adaptive = True

    def __init__(
        self,
        sizes: TreeConfig,
        device: torch.device,
        assumed: tuple[float, float],
        costs: Callable[[int, int], CostTable],
        pass_sizes: tuple[int, ...] = PASS_SIZES,
        is_static: bool = False,
        traits: DraftingTraits = MEASURED,
    ):
        super().__init__(sizes.tree_top_k)
        self.sizes, self.pass_sizes, self.costs_at = sizes, pass_sizes, costs
        self.is_static, self.traits, self.reads_scores = is_static, traits, device.type == "cpu"
        most = sizes.tree_top_k
        self.level_sizes = (most,) if is_static else (*(size for size in pass_sizes if size < most), most)
        self.calibration, self._watch = Calibration(device, assumed), Stopwatch(device)
        self.first_size = max(size for size in pass_sizes if size <= min(FIRST_SIZE, sizes.num_draft_tokens + 1))
        self.costs, self.num_sequences, self.is_exploring = CostTable(), 1, True
        self._curve: torch.Tensor | None = None  # expected accepted tokens by nodes, of the latest draft, (N,)
        self._past_curve: list[float] = []  # the same on the CPU; smoothed over cycles where scores are not read
        self._levels_chances: list[list[float]] = []  # of past frontiers, smoothed, where scores are not read
        self._frontiers: list[torch.Tensor] = []  # mean chances of this draft's, (k,)
        self._continued = self._could_continue = 0.0  # how often a path went past a level, fading
        self._usual_nodes, self._gain = self.first_size - 1, Gain()
        self._levels, self._nodes, self._seen = 0, 0, 0
        self._live: torch.Tensor | None = None  # places of the sequences that count, where not all do
        self._widths: list[int] = []  # of this cycle's levels
        self._untimed: tuple[CostCurve, int] | None = None  # the draft's pass that runs, and its size

    # -- one cycle ----------------------------------------------------------------------------------------------------

    def begin(self, outlook: Outlook) -> int:
        """As in [`TreePolicy`]."""
        self.num_sequences = num = outlook.num_sequences
        costs = self.costs_at(num, outlook.context)
        if costs is not self.costs:  # another number of sequences or length of context
            self.costs = costs
            self._gain.restart()
        live = [place for place, is_live in enumerate(outlook.is_live) if is_live]
        self._live = None if all(outlook.is_live) else on_device(live, self.calibration.edges.device)
        self._levels = self._nodes = self._seen = 0
        self._curve, self._widths, self._frontiers = None, [], []
        has_levels = costs.level.points or self.traits.in_one_pass or self.sizes.tree_depth == 1
        has_drafted = self.traits.is_free or (costs.first.points and has_levels)
        knows_drafting = has_drafted and costs.verify.covers(self.first_size * num)
        self.is_exploring = not (knows_drafting and costs.verify.covers(num))
        self._watch.start(self.is_exploring)
        self._untimed = costs.first, num
        is_plain = knows_drafting if self.is_exploring else not self.traits.is_free and self._gain.pauses()
        return 0 if is_plain else outlook.depth

    def chances(self, log_probs: torch.Tensor) -> torch.Tensor:
        """As in [`TreePolicy`]."""
        return self.calibration(log_probs)

    def width(self, level: int, scores: torch.Tensor) -> int:
        """As in [`TreePolicy`]. A node that does not pay for its own verification has no child that does."""
        self._time_level()
        most = scores.shape[1]
        self._seen += most if level == 1 else most * self._widths[-1]
        width = self._first_width(level, most) if self.is_exploring else self._paying_width(level, scores)
        if width:
            self._widths.append(width)
            self._untimed = self.costs.level, self.num_sequences * width
        return width

    def _first_width(self, level: int, most: int) -> int:
        """Levels of two widths in turns, so that levels and nodes both get a cost, until the first size is there."""
        wide = self.first_size // 2
        if level >= max(1, wide) and self._seen >= self.first_size - 1:
            return 0
        return most if self.is_static else min(most, max(1, wide) if level % 2 else 1)

    def _paying_width(self, level: int, scores: torch.Tensor) -> int:
        chances = self._frontier_chances(level, scores)
        rate, num = self._own_rate(), self.num_sequences
        continues = (self._continued + CONTINUES) / (self._could_continue + 1)
        least = rate * num * self.costs.verify.slope(num * (self._usual_nodes + 1))
        gains, total = [0.0], 0.0
        for chance in chances:
            total += max(0.0, chance * continues - least)
            gains.append(total)

        def worth(width: int) -> float:
            return gains[width] - rate * self.costs.level(num * width)

        best = max(self.level_sizes, key=worth)
        return best if worth(best) > 0 else 0

    def _frontier_chances(self, level: int, scores: torch.Tensor) -> list[float]:
        chances = self._mean_of(scores.exp())
        if self.reads_scores:
            return chances.tolist()
        self._frontiers.append(chances)
        known = self._levels_chances[level - 1 : level]
        return known[0] if known else [1.0] * scores.shape[1]

    def num_nodes(self, scores: torch.Tensor, levels: int) -> int:
        """As in [`TreePolicy`]."""
        self._time_level()
        most = min(scores.shape[1], self.sizes.num_draft_tokens)
        self._levels = levels
        self._curve = self._mean_of(scores[:, :most].exp().cumsum(1).clamp(max=levels))
        if self.is_exploring:
            self._nodes = min(self.first_size - 1, most)
            return self._nodes
        curve = self._past_curve if self._past_curve and not self.reads_scores else self._curve.tolist()
        rate, num = self._own_rate(), self.num_sequences

        def worth(nodes: int) -> float:
            return (curve[nodes - 1] if nodes else 0.0) - rate * self.costs.verify(num * (nodes + 1))

        self._nodes = max((size - 1 for size in self.pass_sizes if size - 1 <= min(most, len(curve))), key=worth)
        return self._nodes

    def end(self, tree: DraftTree, accepted: torch.Tensor | None, counts: list[int]) -> None:
        """As in [`TreePolicy`]."""
        if not self._watch.is_running:
            return
        if self._levels:
            self._learn(tree, accepted, counts)
        elif self.traits.is_free and not self.is_exploring:  # nothing to propose: the usual rate falls
            self._gain.see(1 / self.costs.verify(self.num_sequences))
        self._watch.stop(self.costs.verify, self.num_sequences * (self._nodes + 1))
        self.choices.append(self._weighed(counts) if self._levels else Choice(0, 0, 1.0, 1.0, 0.0))

    def abandon(self) -> None:
        """As in [`TreePolicy`]."""
        self._watch.is_running = False

    # -- what a cycle teaches -----------------------------------------------------------------------------------------

    def _weighed(self, counts: list[int]) -> Choice:
        """A drafted cycle, with its price where that is known; then also whether drafting pays."""
        expected = 1 + (self._past_curve[self._nodes - 1] if self._nodes else 0.0)
        if self.is_exploring:
            return Choice(self._levels, self._nodes, expected)
        num, plain = self.num_sequences, self.costs.verify(self.num_sequences)
        drafting = self.costs.first(num) + sum(self.costs.level(num * width) for width in self._widths)
        verification = self.costs.verify(num * (self._nodes + 1))
        # Halfway between what was expected and what came: robust against an overconfident draft, and against luck.
        tokens = (expected + 1 + sum(counts) / len(counts)) / 2
        if not self._gain.pays(tokens / (verification + drafting), plain, num):
            # Perhaps one side was timed in a slow moment: the plain steps to come and the next try measure both again.
            self.costs.verify.invalidate(num)
            self._watch.invalidate()
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
            # Levels not drafted this time are scaled like the deepest one that was.
            change = sum(seen[-1]) / sum(known[-1]) if len(known) == len(chances) and sum(known[-1]) else 1.0
            unseen = [[min(1.0, chance * change) for chance in old] for old in self._levels_chances[len(chances) :]]
            self._levels_chances = seen + unseen
        continued = sum(max(0, count - 1) for count in counts) / len(counts)
        could_continue = sum(min(count, self._levels - 1) for count in counts) / len(counts)
        self._continued = SMOOTHING * self._continued + continued
        self._could_continue = SMOOTHING * self._could_continue + could_continue

    def _own_rate(self) -> float:
        """Tokens per second and sequence, never below that of plain steps."""
        return max(self._gain.rate, 1 / self.costs.verify(self.num_sequences))

    def _mean_of(self, values: torch.Tensor) -> torch.Tensor:
        """(n,) of values (A, n), over the sequences that count."""
        if self._live is not None:
            values = values[self._live]
        return values[0] if values.shape[0] == 1 else values.mean(dim=0)

    def _time_level(self) -> None:
        if self._untimed is not None:
            self._watch.lap(*self._untimed)
            self._untimed = None


def _smoothed(old: list[float], new: list[float]) -> list[float]:
    return [SMOOTHING * a + (1 - SMOOTHING) * b for a, b in zip(old, new, strict=True)]
