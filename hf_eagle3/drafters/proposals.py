"""Trees of proposals made on the CPU: continuations seen in texts, by counts, and what a policy keeps of them.

    after "the cat" stood   sat on .        proposed   sat 0.6  on 0.6
                            sat on a                             |- a 0.5, . 0.5 (of what "on" is)
                            ran             and        ran 0.3

Lists of numbers, since trees have some dozen nodes and pure Python is faster there than tensors. Does not know
models, or where the continuations come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import log

import torch

from ..generation.tree.draft_tree import DraftTree, ancestor_mask, chain, root_only
from ..generation.tree.policy import TreePolicy


# Chance given to a node that fills a smaller tree up to the size of its batch.
LOG_FILLER = log(1e-4)
SEPARATOR = -1  # ends a text: no continuation goes beyond it
# A place that agrees with m tokens weighs m ** POWER: 90 answers of two small targets are likeliest with 1 to 1.5, and
# an escape of 2 to 4 in greedy text, 8 to 16 in text at T=1.
POWER = 1.5
UNLEARNT = float("inf")  # a node's `log_probs` where its chance is no estimate of the draft's to learn from


@dataclass
class Proposals:
    """
    Candidate nodes of one sequence, parents before children, siblings with different tokens.

    Attributes:
        tokens: Of each node.
        parents: Index of its parent; -1 is the root.
        depths: 1 for the root's children.
        log_probs: Estimated log-probability of each node given its parent.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, token: int, parent: int, log_prob: float) -> int:
        """One node more; returns its index."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1 if parent >= 0 else 1)
        self.log_probs.append(log_prob)
        return len(self.tokens) - 1

    def children(self) -> dict[tuple[int, int], int]:
        """Index of each node by (parent, token)."""
        return {key: node for node, key in enumerate(zip(self.parents, self.tokens, strict=True))}

    def join(self, edges: list[float], other: "Proposals", others: list[float]) -> None:
        """
        Put the nodes of `other` beside these. `edges` and `others` are log-chances of the nodes given their parents: a
        node of both has the better one, new ones teach nothing about the draft.
        """
        known, places = self.children(), []
        for token, parent, edge in zip(other.tokens, other.parents, others, strict=True):
            key = (places[parent] if parent >= 0 else -1, token)
            if key in known:
                edges[known[key]] = max(edges[known[key]], edge)
            else:
                known[key] = self.add(token, key[0], UNLEARNT)
                edges.append(edge)
            places.append(known[key])

    def fill(self, other: "Proposals", count: int) -> None:
        """Take nodes of `other` that are missing here, with a small chance, until there are `count`."""
        known, places = self.children(), []
        for token, parent in zip(other.tokens, other.parents, strict=True):
            key = (places[parent] if parent >= 0 else -1, token)
            if key not in known:
                if len(self) == count:
                    break
                known[key] = self.add(token, key[0], LOG_FILLER)
            places.append(known[key])


@dataclass(frozen=True)
class Continuation:
    """
    A place in a text behind which a context like the present one stood.

    Attributes:
        text: Token ids, and `SEPARATOR` between texts.
        place: Of the token that followed.
        length: Tokens on which both contexts agree.
    """

    text: Sequence[int]
    place: int
    length: int


def expand(continuations: list[Continuation], depth: int, num_nodes: int, top_k: int, escape: float) -> Proposals:
    """
    The likeliest nodes first: a token's probability is its continuations' share of the weight of all that still agree.

    Args:
        depth: Levels at most.
        num_nodes: Nodes at most.
        top_k: Children per node at most.
        escape: Weight of what was never seen.
    """
    out, order, made = Proposals(), [], 0

    def push_children(parent: int, score: float, here: list[Continuation], level: int) -> None:
        nonlocal made
        by_token: dict[int, list] = {}
        total = escape
        for one in here:
            place = one.place + level
            if place < len(one.text) and (token := one.text[place]) != SEPARATOR:
                weight = (one.length + level) ** POWER
                total += weight
                found = by_token.setdefault(token, [0.0, []])
                found[0] += weight
                found[1].append(one)
        best = sorted(by_token.items(), key=lambda item: -item[1][0])[:top_k]
        for token, (weight, same) in best:
            made += 1  # a tie goes to the node made first
            edge = log(weight / total)
            heappush(order, (-score - edge, made, token, parent, edge, same, level + 1))

    push_children(-1, 0.0, continuations, 0)
    while order and len(out) < num_nodes:
        cost, _, token, parent, edge, same, level = heappop(order)
        node = out.add(token, parent, edge)
        if level < depth:
            push_children(node, -cost, same, level)
    return out


def cumulative(proposals: Proposals, edges: list[float]) -> list[float]:
    """Log-chance that each node is reached, from the log-chances of its edges."""
    scores: list[float] = []
    for parent, edge in zip(proposals.parents, edges, strict=True):
        scores.append(edge + scores[parent] if parent >= 0 else edge)
    return scores


def tree_of(
    each: list[Proposals], roots: torch.Tensor, policy: TreePolicy, scores: list[list[float]] | None = None
) -> DraftTree:
    """
    One tree per sequence, as many nodes as the policy wants, on the device of the `roots` (A,).

    Args:
        each: The candidates of every sequence; filled up here to the size of the largest.
        scores: Log-chances that nodes are reached, where the policy does not calibrate them; else from `log_probs`.
    """
    largest = max(each, key=len)
    count = len(largest)
    if count == 0:
        return root_only(roots)
    for one in each:
        one.fill(largest, count)
    if scores is None:
        edges = torch.tensor([one.log_probs for one in each])
        edges = policy.chances(edges.to(roots.device)).tolist() if policy.is_adaptive else edges.tolist()
        scores = [cumulative(one, own) for one, own in zip(each, edges, strict=True)]
    else:
        scores = [own + cumulative_tail(one, own) for one, own in zip(each, scores, strict=True)]
    orders = [sorted(range(count), key=lambda node, own=own: -own[node]) for own in scores]
    ranked = torch.tensor([[own[node] for node in order] for order, own in zip(orders, scores, strict=True)])
    levels = max(max(one.depths) for one in each)
    num_nodes = policy.num_nodes(ranked.to(roots.device), levels)
    if num_nodes == 0:
        return root_only(roots)
    return _kept(each, scores, [sorted(order[:num_nodes]) for order in orders], roots, policy.is_adaptive)


def cumulative_tail(proposals: Proposals, scores: list[float]) -> list[float]:
    """Scores of the nodes behind those that `scores` holds: of fillers."""
    all_scores = list(scores)
    for node in range(len(scores), len(proposals)):
        parent = proposals.parents[node]
        all_scores.append(proposals.log_probs[node] + (all_scores[parent] if parent >= 0 else 0.0))
    return all_scores[len(scores) :]


def _kept(
    each: list[Proposals], scores: list[list[float]], kept: list[list[int]], roots: torch.Tensor, keeps_edges: bool
) -> DraftTree:
    """The trees of the nodes `kept`, ascending; with every node its parent."""
    whole, floats = [], []
    for one, own, nodes in zip(each, scores, kept, strict=True):
        place_of = {node: place for place, node in enumerate(nodes, start=1)} | {-1: 0}
        whole.append(
            (
                [0] + [one.tokens[node] for node in nodes],
                [-1] + [place_of[one.parents[node]] for node in nodes],
                [0] + [one.depths[node] for node in nodes],
            )
        )
        floats.append(([0.0] + [own[node] for node in nodes], [0.0] + [one.log_probs[node] for node in nodes]))
    tokens, parents, depths = torch.tensor(whole, device=roots.device).unbind(1)
    values, edges = torch.tensor(floats, device=roots.device).unbind(1)
    tokens[:, 0] = roots
    depths_reached = [max(one[2]) for one in whole]
    levels = max(depths_reached)
    if min(depths_reached) == tokens.shape[1] - 1:  # every tree is a chain
        return chain(roots, tokens[:, 1:], values[:, 1:], edges[:, 1:] if keeps_edges else None)
    ancestors = ancestor_mask(parents, levels)
    return DraftTree(tokens, parents, depths, ancestors, values, levels, edges if keeps_edges else None)
