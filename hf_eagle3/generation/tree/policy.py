"""How much of a tree to draft: what a growing tree asks, and the answer that never changes.

A policy says how likely nodes are to be reached, how many of a level to expand, and how many of all nodes to verify.
Nothing that it answers can change the text. Does not know models.

Shape letters: A sequences, k nodes of a level, M nodes seen while drafting.
"""

from dataclasses import dataclass

import torch

from ...tree_config import TreeConfig
from .draft_tree import DraftTree


@dataclass(frozen=True)
class Choice:
    """
    One cycle of the tree mode "auto".

    Attributes:
        levels, nodes: Drafted and verified; 0 in a plain step.
        expected_tokens: Per sequence.
        verification, drafting: What that costs in steps of plain decoding; `None` while it is being measured.
    """

    levels: int
    nodes: int
    expected_tokens: float
    verification: float | None = None
    drafting: float | None = None


@dataclass(frozen=True)
class Outlook:
    """
    What is known before a cycle.

    Attributes:
        num_sequences: Sequences that every pass runs, padding included.
        context: Tokens cached of the longest sequence.
        depth: Levels that can be accepted at most.
        is_live: Per sequence of the tree, False where it has ended and is kept as padding.
    """

    num_sequences: int
    context: int
    depth: int
    is_live: tuple[bool, ...]


class TreePolicy:
    """
    Asked by every cycle in this order: `begin`, `chances` and `width` level by level, `num_nodes`, `end`.

    Args:
        top_k: Children drawn per node, and nodes expanded per level at most.

    Attributes:
        is_adaptive: Whether it looks at scores, learns from what came, and makes `chances` of the draft's
            log-probabilities, which the tree then keeps beside them.
        choices: What was chosen in each cycle, for the statistics; empty where nothing is chosen.
    """

    is_adaptive = False

    def __init__(self, top_k: int):
        self.top_k = top_k
        self.choices: list[Choice] = []

    def begin(self, outlook: Outlook) -> int:
        """Levels that may be drafted in this cycle; 0 makes it a plain step."""
        raise NotImplementedError

    def chances(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Log-chances that nodes are accepted if their parents are, from the draft's `log_probs`, any shape."""
        return log_probs

    def width(self, level: int, scores: torch.Tensor) -> int:
        """How many nodes of level `level`, `scores` (A, k) best first, to expand into the next; 0 ends the tree."""
        raise NotImplementedError

    def num_nodes(self, scores: torch.Tensor, levels: int) -> int:
        """How many of all nodes seen, `scores` (A, M) best first, to verify."""
        raise NotImplementedError

    def end(self, tree: DraftTree, accepted: torch.Tensor | None, counts: list[int]) -> None:
        """
        What came of the cycle; of sequences that are padding nothing is given.

        Args:
            tree: The verified one.
            accepted: Which of its nodes were, the root not, (A, N + 1); `None` where it has but the root.
            counts: Accepted draft tokens per sequence.
        """

    def abandon(self) -> None:
        """The cycle that has begun ends without `end`."""


class FixedPolicy(TreePolicy):
    """The same tree in every cycle."""

    def __init__(self, sizes: TreeConfig):
        super().__init__(sizes.tree_top_k)
        self.nodes = sizes.num_draft_tokens

    def begin(self, outlook: Outlook) -> int:
        """All levels that can be accepted."""
        return outlook.depth

    def width(self, level: int, scores: torch.Tensor) -> int:
        """Every node of the frontier."""
        return self.top_k

    def num_nodes(self, scores: torch.Tensor, levels: int) -> int:
        """As many as were asked for, or as there are."""
        return min(self.nodes, scores.shape[1])
