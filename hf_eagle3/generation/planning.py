"""How much to draft, cycle by cycle: the tree mode "auto".

A node's chance of being reached is what it adds to the tokens of a cycle; verifying one node more and drafting one
level more cost time. Depth, width and number of nodes are those of the most expected tokens per second, down to none
at all: then plain steps run for a while, and drafting is tried again. Nothing chosen here can change the text.

Chances are the draft's own cumulative scores, corrected by how often nodes of such a score were accepted in this call.

Shape letters: A active rows, k nodes of a level, M nodes seen while drafting, N drafted nodes.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch

from ..tree_config import TreeConfig
from .costs import CostTable


# Passes of so many tokens, the root included, are considered: few sizes, so that each gets measured.
PASS_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
FEW_SIZES = (1, 8, 24)  # and the largest, where each size is compiled
FIRST_SIZE = 8  # measured first, and then the plain step
EDGES = [0.02 * 1.35**i for i in range(22)]  # between the buckets of -log-scores: chances of 0.98 down to 2e-5
PRIOR_WEIGHT = 4.0  # observations that the draft's own estimate counts for
# Greedy decoding takes a likely token more often than its probability says. Measured on two pairs: at T=0 nodes of
# 0.17, 0.33 and 0.5 were accepted 0.35 to 0.42, 0.67 to 0.82 and 0.84 to 0.97 times; when sampling as often as told.
GREEDY_EXPONENT = 0.6
SMOOTHING = 0.8
FIRST_PAUSE, LONGEST_PAUSE = 8, 256  # plain steps between tries
HOPE, LESS_HOPE = 1.5, 1.05  # gain taken for granted at first, and at further tries


def few_sizes(largest: int) -> tuple[int, ...]:
    """Sizes of a pass for trees of up to `largest` nodes, the root included, where each size costs a compilation."""
    return (*(size for size in FEW_SIZES if size < largest), largest)


class Reliability:
    """Chance that a node of a given cumulative log-score is accepted, learnt from the nodes verified so far."""

    def __init__(self, device: torch.device, is_greedy: bool):
        self.edges = torch.tensor(EDGES, device=device)
        centers = torch.tensor([EDGES[0] / 2, *((a + b) / 2 for a, b in pairwise(EDGES)), 20.0])
        self.seen = torch.full_like(centers, PRIOR_WEIGHT, device=device)
        self.accepted = (-centers * (GREEDY_EXPONENT if is_greedy else 1.0)).exp().to(device) * self.seen

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Chances for log-scores of any shape."""
        return (self.accepted / self.seen)[torch.bucketize(-scores.float(), self.edges)]

    def observe(self, scores: torch.Tensor, accepted: torch.Tensor) -> None:
        """Scores of verified nodes and which of them were accepted, equal shapes."""
        places = torch.bucketize(-scores.float().flatten(), self.edges)
        self.seen.index_add_(0, places, torch.ones_like(places, dtype=self.seen.dtype))
        self.accepted.index_add_(0, places, accepted.flatten().to(self.accepted.dtype))


@dataclass(frozen=True)
class Choice:
    """One cycle: levels drafted, nodes verified, and the tokens per row that were expected of it."""

    levels: int
    nodes: int
    expected_tokens: float


class AutoPlanner:
    """
    Chooses for one call of `generate`.

    Args:
        sizes: The largest tree allowed.
        device: The draft's. On a CPU scores are read as they come; elsewhere, where reading stalls the device, depth
            and nodes follow from the cycles before.
        is_greedy: Whether the call takes the most likely tokens.
        pass_sizes: Passes of so many tokens are considered.
        is_static: Whether a level is expanded whole or not at all, since its width cannot change.
    """

    def __init__(
        self,
        sizes: TreeConfig,
        device: torch.device,
        is_greedy: bool,
        pass_sizes: tuple[int, ...] = PASS_SIZES,
        is_static: bool = False,
    ):
        self.sizes, self.pass_sizes, self.is_static = sizes, pass_sizes, is_static
        self.reads_scores = device.type == "cpu"
        self.reliability = Reliability(device, is_greedy)
        self.first_size = max(size for size in pass_sizes if size <= min(FIRST_SIZE, sizes.num_draft_tokens + 1))
        self.costs = CostTable()
        self.choices: list[Choice] = []
        self._curve: torch.Tensor | None = None  # expected accepted tokens by nodes, of the latest draft, (N,)
        self._past_curve: list[float] = []  # the same, smoothed over cycles and on the host
        self._reached = [1.0] * sizes.tree_depth  # smoothed share of cycles that accept more than l tokens
        self._persistence = 1.0  # smoothed chance of a level over the chance of the level before
        self._gain = HOPE  # smoothed rate of drafting over the rate of plain steps
        self._rate = 0.0  # smoothed expected tokens per second
        self._pause, self._plain_left = FIRST_PAUSE, 0
        self._levels, self._nodes = 0, 0
        self._began: dict[str, float] | None = None  # seconds per phase when the cycle began

    @property
    def is_exploring(self) -> bool:
        """Whether the sizes that everything is compared with are still being measured."""
        return not {1, self.first_size} <= self.costs.verify.points.keys()

    @property
    def is_measuring(self) -> bool:
        """Whether the coming cycle's time is wanted: on an accelerator that takes waiting for it."""
        return self.is_exploring or self._nodes + 1 not in self.costs.verify.points

    # -- one cycle ----------------------------------------------------------------------------------------------------

    @property
    def is_underway(self) -> bool:
        """Whether a cycle has begun that did not end yet."""
        return self._began is not None

    def begin(self, costs: CostTable, depth: int, phase_seconds: dict[str, float]) -> int:
        """Levels that may be drafted in this cycle, at most `depth`; 0 makes it a plain step."""
        self._began = dict(phase_seconds)
        if costs is not self.costs:  # another number of rows or length of context
            self.costs, self._rate, self._gain, self._plain_left = costs, 0.0, HOPE, 0
        self._levels = 0
        self._curve = None
        if self.is_exploring:
            return depth if self.first_size not in costs.verify.points else 0
        if self._plain_left:
            self._plain_left -= 1
            return 0
        return depth if self.reads_scores else self._usual_depth(depth)

    def _usual_depth(self, depth: int) -> int:
        nodes = self.choices[-1].nodes if self.choices else self.first_size - 1

        def rate(levels: int) -> float:
            seconds = self.costs.verify(nodes + 1) + self.costs.draft(levels)
            return (1 + sum(self._reached[:levels])) / seconds

        return max(range(1, depth + 1), key=rate)

    def width(self, level: int, scores: torch.Tensor) -> int:
        """
        How many nodes of level `level`, `scores` (A, k) best first, to expand into the next; 0 ends the draft. A node
        that does not pay for its own verification has no child that does.
        """
        if not self.reads_scores or self.is_exploring or self._rate == 0:
            return scores.shape[1]
        chances = self.reliability(scores).mean(dim=0).tolist()
        least = self._rate * self.costs.verify.slope(self.choices[-1].nodes + 1)
        paying = [chance for chance in chances if chance * self._persistence > least]
        gained = sum(paying) * self._persistence - least * len(paying)
        seconds = self.costs.draft(level + 1) - self.costs.draft(level)
        wanted = scores.shape[1] if self.is_static else len(paying)
        return wanted if gained > self._rate * seconds else 0

    def num_nodes(self, scores: torch.Tensor, levels: int) -> int:
        """How many of all nodes seen, `scores` (A, M) best first, to verify."""
        most = min(scores.shape[1], self.sizes.num_draft_tokens)
        self._levels = levels
        self._curve = self.reliability(scores[:, :most]).cumsum(1).mean(0).clamp(max=levels)
        if self.is_exploring:
            self._nodes = min(self.first_size - 1, most)
            return self._nodes
        curve = self._curve.tolist() if self.reads_scores or not self._past_curve else self._past_curve
        nodes = [size - 1 for size in self.pass_sizes if size - 1 <= min(most, len(curve))]
        self._nodes = max(nodes, key=lambda n: self._expected_rate(curve, n, levels))
        return self._nodes

    def _expected_rate(self, curve: list[float], nodes: int, levels: int) -> float:
        tokens = 1 + (curve[nodes - 1] if nodes else 0.0)
        return tokens / (self.costs.verify(nodes + 1) + self.costs.draft(levels))

    def end(
        self, scores: torch.Tensor, accepted: torch.Tensor, counts: list[int], phase_seconds: dict[str, float] | None
    ) -> None:
        """
        What came of it.

        Args:
            scores: Of the verified nodes and the root, (A, N + 1).
            accepted: Which of them were, (A, N + 1).
            counts: Accepted draft tokens per row.
            phase_seconds: As in `begin`; `None` where they do not show what this cycle cost.
        """
        if phase_seconds is not None:
            spent = {name: seconds - self._began[name] for name, seconds in phase_seconds.items()}
            self.costs.verify.add(scores.shape[1], spent["verify_forward"] + spent["walk"] + spent["commit"])
            if self._levels:
                self.costs.draft.add(self._levels, spent["draft_forward"] + spent["tree"])
        self._began = None
        if not self._levels:
            self.choices.append(Choice(0, 0, 1.0))
            return
        device = self.reliability.edges.device
        self.reliability.observe(scores[:, 1:].to(device), accepted[:, 1:].to(device))
        curve = self._curve.tolist()
        if len(self._past_curve) == len(curve):
            curve = [_smoothed(old, new) for old, new in zip(self._past_curve, curve, strict=True)]
        self._past_curve = curve
        for level in range(self._levels):
            share = sum(count > level for count in counts) / len(counts)
            self._reached[level] = _smoothed(self._reached[level], share)
        for level in range(self._levels, len(self._reached)):  # unseen: as from level to level before
            self._reached[level] = min(1.0, self._reached[level - 1] * self._persistence)
        self._persistence = _smoothed(self._persistence, self._ratio())
        expected = 1 + (curve[self._nodes - 1] if self._nodes else 0.0)
        self.choices.append(Choice(self._levels, self._nodes, expected))
        if not self.is_exploring:
            # Halfway between what was expected and what came: robust against an overconfident draft, and against luck.
            self._weigh((expected + 1 + sum(counts) / len(counts)) / 2)

    def _ratio(self) -> float:
        """How much of a level's chance of being reached is left at the next, over the levels drafted."""
        first, last = self._reached[0], self._reached[self._levels - 1]
        return (last / first) ** (1 / (self._levels - 1)) if self._levels > 1 and first > 0 else self._persistence

    def _weigh(self, tokens: float) -> None:
        """Whether drafting pays; where it does not, plain steps follow, more of them each time."""
        rate = tokens / (self.costs.verify(self._nodes + 1) + self.costs.draft(self._levels))
        gain = rate * self.costs.verify(1)
        self._rate = rate if self._rate == 0 else _smoothed(self._rate, rate)
        self._gain = _smoothed(self._gain, gain)
        if gain >= 1:
            self._pause = FIRST_PAUSE
        if self._gain >= 1:
            return
        self._plain_left, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        self._gain = LESS_HOPE


def _smoothed(old: float, new: float) -> float:
    return SMOOTHING * old + (1 - SMOOTHING) * new
