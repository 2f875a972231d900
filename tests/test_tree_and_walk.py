"""Trees, masks and walks by hand.

root 5          node     0  1  2  3  4  5
 |- 7           token    5  7  8  9  7  9
 |   |- 9       parents -1  0  0  1  1  3
 |   |   `- 9   depths   0  1  1  2  2  3
 |   `- 7
 `- 8
"""

import torch
from transformers import LogitsProcessorList

from hf_eagle3.generation.batch import Batch
from hf_eagle3.generation.sampling.chooser import TokenChooser
from hf_eagle3.generation.tree.draft_tree import (
    DraftTree,
    ancestor_mask,
    best_first,
    chain,
    kept_nodes,
    root_only,
)
from hf_eagle3.generation.walk import greedy_walk, stepwise_walk


PARENTS = torch.tensor([[-1, 0, 0, 1, 1, 3]])
ANCESTORS = [
    [1, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [1, 0, 1, 0, 0, 0],
    [1, 1, 0, 1, 0, 0],
    [1, 1, 0, 0, 1, 0],
    [1, 1, 0, 1, 0, 1],
]


def drawn_tree() -> DraftTree:
    return DraftTree(
        tokens=torch.tensor([[5, 7, 8, 9, 7, 9]]),
        parents=PARENTS,
        depths=torch.tensor([[0, 1, 1, 2, 2, 3]]),
        ancestors=ancestor_mask(PARENTS, 3),
        scores=torch.zeros(1, 6),
        max_depth=3,
    )


def logits_choosing(*tokens: int) -> torch.Tensor:
    """(1, nodes, 12) logits whose argmax at node i is `tokens[i]`."""
    return torch.nn.functional.one_hot(torch.tensor([tokens]), 12).float()


def walks(tree: DraftTree, logits: torch.Tensor):
    """Both walks; they must agree wherever the first says a token is committed."""
    fast = greedy_walk(tree, logits)
    batch = Batch(torch.zeros(len(logits), 1, dtype=torch.long), 20, 0, 1, None)
    slow = stepwise_walk(tree, logits, TokenChooser(LogitsProcessorList(), None, batch), batch)
    assert fast.counts.tolist() == slow.counts.tolist()
    for a, count in enumerate(fast.counts.tolist()):
        assert fast.nodes[a, :count].tolist() == slow.nodes[a, :count].tolist()
        assert fast.tokens[a, :count].tolist() == slow.tokens[a, :count].tolist()
    return fast


def test_ancestor_mask_is_the_drawn_one():
    assert ancestor_mask(PARENTS, 3).int().tolist() == [ANCESTORS]
    assert drawn_tree().ancestors.int().tolist() == [ANCESTORS]


def test_a_walk_steps_into_matching_children():
    walk = walks(drawn_tree(), logits_choosing(7, 9, 0, 9, 0, 4))
    assert walk.counts.tolist() == [4]
    assert walk.nodes.tolist() == [[0, 1, 3, 5]]
    assert walk.tokens.tolist() == [[7, 9, 9, 4]]


def test_a_walk_stops_where_no_child_matches():
    walk = walks(drawn_tree(), logits_choosing(7, 3, 0, 9, 7, 9))
    assert walk.counts.tolist() == [2]
    assert walk.nodes[0, :2].tolist() == [0, 1]
    assert walk.tokens[0, :2].tolist() == [7, 3]


def test_a_match_below_a_mismatch_does_not_count():
    walk = walks(drawn_tree(), logits_choosing(6, 9, 0, 9, 7, 9))
    assert walk.counts.tolist() == [1]
    assert walk.tokens[0, 0] == 6


def test_rows_walk_alone():
    tree = drawn_tree()
    two = DraftTree(
        *(torch.cat((t, t)) for t in (tree.tokens, tree.parents, tree.depths, tree.ancestors, tree.scores)), 3
    )
    walk = walks(two, torch.cat((logits_choosing(7, 9, 0, 9, 0, 4), logits_choosing(8, 9, 2, 9, 0, 4))))
    assert walk.counts.tolist() == [4, 2]
    assert walk.tokens[1, :2].tolist() == [8, 2]


def test_ties_take_the_first_token_as_argmax_does():
    logits = torch.zeros(1, 1, 12)
    logits[0, 0, [4, 8]] = 1.0
    assert walks(root_only(torch.tensor([5])), logits).tokens.tolist() == [[4]]


def test_nan_is_seen_on_the_path_only():
    logits = logits_choosing(7, 3, 0, 9, 7, 9)
    logits[0, 5] = torch.nan
    assert not walks(drawn_tree(), logits).is_nan.any()
    logits[0, 1] = torch.nan
    assert greedy_walk(drawn_tree(), logits).is_nan.all()


def test_chain_and_root_only():
    tree = chain(torch.tensor([5]), torch.tensor([[7, 9]]), torch.tensor([[-1.0, -2.0]]))
    assert tree.parents.tolist() == [[-1, 0, 1]]
    assert tree.ancestors.int().tolist() == [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]
    assert root_only(torch.tensor([5])).num_draft_tokens == 0


def test_best_nodes_keep_parents_of_what_they_keep_even_in_ties():
    """Pool: 7 (-1), 8 (-2); below 7: 9 (-1, a log-probability of exactly 0), 7 (-3); below 8: 1 (-2), 2 (-9)."""
    scores = torch.tensor([[-1.0, -2.0, -1.0, -3.0, -2.0, -9.0]])
    tree = kept_nodes(
        torch.tensor([5]),
        pool_tokens=torch.tensor([[7, 8, 9, 7, 1, 2]]),
        pool_parents=torch.tensor([[-1, -1, 0, 0, 1, 1]]),
        pool_depths=torch.tensor([1, 1, 2, 2, 2, 2]),
        pool_scores=scores,
        kept=best_first(scores).indices[:, :3],
        max_depth=2,
    )
    assert tree.tokens.tolist() == [[5, 7, 8, 9]]
    assert tree.parents.tolist() == [[-1, 0, 0, 1]]
    assert tree.depths.tolist() == [[0, 1, 1, 2]]
    assert tree.ancestors.int().tolist() == [[[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]]
