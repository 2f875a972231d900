"""`DraftTree`: tokens, parents, depths and the ancestor relation. Pure tensors, no model.

    root  "the"                  node      0 1 2 3 4
     |- "cat"                    parents  -1 0 0 1 1
     |   |- "sat"                depths    0 1 1 2 2
     |   `- "ran"                ancestors of 4 ("ran"): 0, 1, 4
     `- "dog"

Node 0 is the root: the last committed token, not a proposal. Parents stand before their children.
Shape letters: A sequences, N drafted nodes (the root not counted), T levels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class DraftTree:
    """
    One tree per sequence, all with the same number of nodes.

    Args:
        tokens (`torch.LongTensor` of shape `(A, N + 1)`): Target token ids; column 0 the root.
        parents (`torch.LongTensor` of shape `(A, N + 1)`): Node index of each node's parent, -1 for the root.
        depths (`torch.LongTensor` of shape `(A, N + 1)`): 0 for the root.
        ancestors (`torch.BoolTensor` of shape `(A, N + 1, N + 1)`): [a, i, j]: j is i itself or above it.
        scores (`torch.FloatTensor` of shape `(A, N + 1)`): Estimated log-probability that a node is reached; 0 for the
            root.
        max_depth (`int`): Levels below the root.
        log_probs (`torch.FloatTensor` of shape `(A, N + 1)`, *optional*): The draft's own log-probability of each node
            given its parent, where the mode "auto" made other scores of them.
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    depths: torch.Tensor
    ancestors: torch.Tensor
    scores: torch.Tensor
    max_depth: int
    log_probs: torch.Tensor | None = None

    @property
    def num_draft_tokens(self) -> int:
        """Nodes without the root (N)."""
        return self.tokens.shape[1] - 1

    def to(self, device: torch.device) -> "DraftTree":
        """The tree on `device`; itself where it is there already."""
        return self if self.tokens.device == device else self._each(lambda tensor: tensor.to(device))

    def select(self, index: torch.Tensor) -> "DraftTree":
        """The trees of the sequences at the places `index`."""
        return self._each(lambda tensor: tensor[index])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "DraftTree":
        parts = (self.tokens, self.parents, self.depths, self.ancestors, self.scores)
        log_probs = None if self.log_probs is None else change(self.log_probs)
        return DraftTree(*map(change, parts), self.max_depth, log_probs)


def root_only(root_tokens: torch.Tensor) -> DraftTree:
    """Trees without proposals: verifying one is a plain decoding step. `root_tokens` (A,)."""
    tokens = root_tokens[:, None]
    return DraftTree(
        tokens=tokens,
        parents=torch.full_like(tokens, -1),
        depths=torch.zeros_like(tokens),
        ancestors=torch.ones_like(tokens[:, :, None], dtype=torch.bool),
        scores=torch.zeros_like(tokens, dtype=torch.float32),
        max_depth=0,
    )


def chain(
    root_tokens: torch.Tensor, tokens: torch.Tensor, scores: torch.Tensor, log_probs: torch.Tensor | None = None
) -> DraftTree:
    """Unbranched trees: `tokens`, cumulative `scores` and `log_probs` (A, T) below `root_tokens` (A,)."""
    count, levels = tokens.shape
    depths = torch.arange(levels + 1, device=tokens.device).expand(count, -1)
    return DraftTree(
        torch.cat((root_tokens[:, None], tokens), dim=1),
        depths - 1,
        depths,
        torch.ones(levels + 1, levels + 1, dtype=torch.bool, device=tokens.device).tril().expand(count, -1, -1),
        _behind_root(scores),
        levels,
        None if log_probs is None else _behind_root(log_probs),
    )


def _behind_root(values: torch.Tensor) -> torch.Tensor:
    """(A, N + 1) from values of nodes (A, N); the root's is 0."""
    return torch.nn.functional.pad(values, (1, 0))


def with_padding(tree: DraftTree, places: list[int], pad_token_id: int) -> DraftTree:
    """
    `tree` with other trees for the sequences at `places`, which have ended: a chain of padding tokens, as deep as the
    tree or its nodes allow. So their caches hold what plain `generate` feeds them.
    """
    if not places or tree.num_draft_tokens == 0:
        return tree
    out = tree._each(torch.clone)
    length = min(tree.max_depth, tree.num_draft_tokens)
    node = torch.arange(tree.tokens.shape[1], device=tree.tokens.device)
    is_in_chain = node <= length  # the rest hangs below the root, its outputs discarded
    parents = torch.where(is_in_chain, node - 1, 0)
    out.tokens[places, 1:] = pad_token_id
    out.parents[places] = parents
    out.depths[places] = torch.where(is_in_chain, node, 1)
    out.ancestors[places] = ancestor_mask(parents[None], length)[0]
    out.scores[places] = 0.0
    return out


def padded(tree: DraftTree, num_nodes: int) -> DraftTree:
    """`tree` padded to `num_nodes` nodes, the root included: dummy children of the root, outputs discarded."""
    missing = num_nodes - tree.tokens.shape[1]
    if missing == 0:
        return tree
    pad, own = torch.nn.functional.pad, torch.eye(num_nodes, dtype=torch.bool, device=tree.tokens.device)
    ancestors = pad(tree.ancestors, (0, missing, 0, missing)) | own
    ancestors[:, :, 0] = True
    return DraftTree(
        torch.cat((tree.tokens, tree.tokens[:, :1].expand(-1, missing)), dim=1),
        pad(tree.parents, (0, missing)),
        pad(tree.depths, (0, missing), value=1),
        ancestors,
        pad(tree.scores, (0, missing)),
        max(tree.max_depth, 1),
    )


def best_first(pool_scores: torch.Tensor) -> torch.return_types.sort:
    """
    Scores (A, M) in falling order, equal ones in the order they were made in, with their pool indices.

    A child never scores above its parent and comes later, so any prefix of this order holds the parents of all it
    holds, ties included (in bf16 log-probabilities of exactly 0.0 occur).

    Source: EAGLE-2 (arXiv 2406.16858), section 4.2.
    """
    return pool_scores.sort(dim=1, descending=True, stable=True)


def kept_nodes(
    root_tokens: torch.Tensor,
    pool_tokens: torch.Tensor,
    pool_parents: torch.Tensor,
    pool_depths: torch.Tensor,
    pool_scores: torch.Tensor,
    kept: torch.Tensor,
    max_depth: int,
    pool_log_probs: torch.Tensor | None = None,
) -> DraftTree:
    """
    The tree of some of the nodes seen while drafting.

    Args:
        root_tokens: The last committed tokens, (A,).
        pool_tokens, pool_scores: All nodes (A, M), level by level, in the order they were made in.
        pool_parents: Pool index of each node's parent, -1 below the root, (A, M).
        pool_depths: 1 for the root's children, (M,).
        kept: Pool indices of the nodes to keep, (A, N); with every node its parent.
        max_depth: Levels drafted.
        pool_log_probs: As `log_probs` of a tree, (A, M).
    """
    count, num_draft_tokens = kept.shape
    kept = kept.sort(dim=1).values  # pool order: parents before children
    # Pool index -> node index, with the root's -1 in the last place.
    node_of = kept.new_zeros(count, pool_tokens.shape[1] + 1)
    node_of.scatter_(1, kept, torch.arange(1, num_draft_tokens + 1, device=kept.device).expand(count, -1))
    parents = node_of.gather(1, pool_parents.gather(1, kept) % node_of.shape[1])
    pad = torch.zeros_like(root_tokens)[:, None]
    parents = torch.cat((pad - 1, parents), dim=1)
    depths = torch.cat((pad, pool_depths[kept]), dim=1)
    return DraftTree(
        torch.cat((root_tokens[:, None], pool_tokens.gather(1, kept)), dim=1),
        parents,
        depths,
        ancestor_mask(parents, max_depth),
        _behind_root(pool_scores.gather(1, kept)),
        max_depth,
        None if pool_log_probs is None else _behind_root(pool_log_probs.gather(1, kept)),
    )


def ancestor_mask(parents: torch.Tensor, max_depth: int) -> torch.Tensor:
    """[a, i, j]: j is i itself or above it, (A, N + 1, N + 1) bool, from `parents` (A, N + 1)."""
    count, nodes = parents.shape
    mask = torch.eye(nodes, dtype=torch.bool, device=parents.device).repeat(count, 1, 1)
    up = parents.clamp(min=0)
    above = up
    for _ in range(max_depth):
        mask.scatter_(2, above[:, :, None], True)
        above = up.gather(1, above)
    return mask
