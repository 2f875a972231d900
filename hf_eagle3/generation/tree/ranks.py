"""Trees of the same shape in every cycle: which child of which node, by rank, whatever its probability.

    eagle   root: 4 children    of the best child 3, of the second 2, of the third 2, of the last 1    ...

Before EAGLE-2, trees were fixed so: EAGLE's by hand (arXiv 2401.15077, section 4.1), Medusa's greedily from the
accuracy of every head's first ten tokens (arXiv 2401.10774, section 2.3.3).

Shape letters: A sequences, k children of a node.
"""

import torch

from ...tree_config import SPARSE_TREES, TreeConfig
from .policy import Outlook, TreePolicy


OUTSIDE = -1e6  # score of a node that the tree does not have
LEVEL = 1e4  # a deeper node scores below all nodes of the levels above it


class RankPolicy(TreePolicy):
    """
    The tree `sizes.sparse_tree`, down to its `tree_depth`; its first `num_draft_tokens` nodes, level by level.

    Scores are places in that order, not chances: nodes with children come first in a level, so that the frontier's
    order is known beforehand.
    """

    def __init__(self, sizes: TreeConfig):
        super().__init__(sizes.tree_top_k)
        self.nodes, self.level = sizes.num_draft_tokens, 0
        self.sizes: list[int] = []  # nodes of each level
        self.edges: list[torch.Tensor] = []  # what a child's score is below its parent's, (expanded, k)
        parents, order = [0.0], [0]
        levels = SPARSE_TREES[sizes.sparse_tree][: sizes.tree_depth]
        for depth, counts in enumerate(levels, start=1):
            below = levels[depth] if depth < len(levels) else ()
            # (place of the parent among the expanded, rank) of every node, parents in the order of `SPARSE_TREES`
            of = {number: place for place, number in enumerate(order)}
            nodes = [(of[number], rank) for number, count in enumerate(counts) for rank in range(count)]
            order = sorted(
                range(len(nodes)), key=lambda number, below=below: number >= len(below) or not below[number]
            )
            edges = torch.full((len(parents), self.top_k), OUTSIDE)
            for place, number in enumerate(order):
                parent, rank = nodes[number]
                edges[parent, rank] = -LEVEL * depth - place - parents[parent]
            expanded = sum(count > 0 for count in below)
            parents = [-LEVEL * depth - place for place in range(expanded)]
            order = order[:expanded]
            self.edges.append(edges)
            self.sizes.append(len(nodes))

    def begin(self, outlook: Outlook) -> int:
        """All levels that can be accepted."""
        self.level = 0
        return outlook.depth

    def chances(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Ranks instead of probabilities: the children of a level's expanded nodes, (A, expanded, k)."""
        edges = self.edges[self.level]
        self.level += 1
        return edges.to(log_probs.device).expand(log_probs.shape)

    def width(self, level: int, scores: torch.Tensor) -> int:
        """The nodes that have children in the tree."""
        return len(self.edges[level]) if level < len(self.edges) else 0

    def num_nodes(self, scores: torch.Tensor, levels: int) -> int:
        """Those of the levels that were drafted."""
        return min(self.nodes, sum(self.sizes[:levels]))
