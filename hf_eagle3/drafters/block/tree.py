"""The tree of a block drafter: levels do not depend on the path, so that a path's chance is a product.

    level 1: sat .6, ran .3     level 2: on .5, down .2     best first: sat .6, ran .3, sat-on .3, ran-on .15, ...

Pure tensors. Shape letters: A sequences, T levels, k tokens of a level, N drafted nodes.

Source: DDTree (arXiv 2604.12989) and JetSpec (arXiv 2606.18394), where a heap in Python adds a node at a time.
"""

import torch

from ...generation.tree import draft_tree as trees
from ...generation.tree.policy import TreePolicy


def product_tree(
    roots: torch.Tensor, log_probs: torch.Tensor, tokens: torch.Tensor, most_nodes: int, policy: TreePolicy
) -> trees.DraftTree:
    """
    The likeliest nodes below `roots` (A,), as many as the policy wants.

    Args:
        log_probs, tokens: The k best of every level, best first, (A, T, k).
        most_nodes: The policy wants no more.
    """
    levels, chances = log_probs.shape[1], policy.chances(log_probs)
    kept = log_probs if policy.is_adaptive else None
    if log_probs.shape[2] == 1:
        scores = chances[:, :, 0].cumsum(dim=1)
        nodes = policy.num_nodes(scores, levels)
        return trees.chain(
            roots, tokens[:, :nodes, 0], scores[:, :nodes], None if kept is None else kept[:, :nodes, 0]
        )
    pool = _pool(chances, tokens, most_nodes, kept)
    best = trees.best_first(pool["scores"])
    return trees.kept_nodes(
        roots,
        pool["tokens"],
        pool["parents"],
        pool["depths"][0],
        pool["scores"],
        best.indices[:, : policy.num_nodes(best.values, levels)],
        levels,
        pool.get("log_probs"),
    )


def _pool(
    chances: torch.Tensor, tokens: torch.Tensor, most_nodes: int, log_probs: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """
    The `most_nodes` likeliest nodes of every level, (A, M) each: a child is never likelier than its parent, so that
    the likeliest of all levels are among them, and parents of all.
    """
    count, levels, width = chances.shape
    scores = chances.new_zeros(count, 1)
    numbers = tokens.new_full((count, 1), -1)  # pool index of each node of the level before; the root has none
    parts, size = [], 0
    for level in range(levels):
        all_scores = (scores[:, :, None] + chances[:, level, None]).flatten(1)
        scores, best = all_scores.topk(min(most_nodes, all_scores.shape[1]), dim=1)
        rank = best % width
        part = {
            "scores": scores,
            "tokens": tokens[:, level].gather(1, rank),
            "parents": numbers.gather(1, best // width),
            "depths": torch.full_like(best, level + 1),
        }
        if log_probs is not None:
            part["log_probs"] = log_probs[:, level].gather(1, rank)
        parts.append(part)
        numbers = torch.arange(size, size + best.shape[1], device=best.device).expand(count, -1)
        size += best.shape[1]
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
