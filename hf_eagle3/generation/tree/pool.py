"""`Pool`: all nodes seen while drafting, and the frontier: the best k of a level, some of which are expanded next.

Pure tensors, no model. Shape letters: A sequences, k nodes of a level.
"""

import torch

from . import draft_tree as trees
from .policy import TreePolicy


class Pool:
    """
    Args:
        num_sequences, top_k: A and k.
        dtype: Of the masks.
        device: The draft's.
        policy: How likely nodes are and how many of them to keep.
    """

    def __init__(self, num_sequences: int, top_k: int, dtype: torch.dtype, device: torch.device, policy: TreePolicy):
        self.num_sequences, self.top_k, self.policy = num_sequences, top_k, policy
        # Nodes of one level see themselves and what is above them, never each other.
        self.own = torch.full((top_k, top_k), torch.finfo(dtype).min, dtype=dtype, device=device).fill_diagonal_(0)
        self.columns = 0  # of the draft's cache: nodes expanded so far
        self.size = self.levels = 0  # nodes seen, levels
        self.tokens, self.scores, self.parents, self.depths, self.log_probs = [], [], [], [], []

    def start(self, log_probs: torch.Tensor, tokens: torch.Tensor) -> None:
        """Level 1: the root's children, log-probabilities and tokens (A, 1, k)."""
        self.frontier_scores, self.frontier_tokens = self._chances(log_probs)[:, 0], tokens[:, 0]
        self.frontier_pool = torch.arange(self.top_k, device=tokens.device).expand(self.num_sequences, -1)
        # (A, 1, k, columns): which expanded nodes are above each of the frontier; none yet
        self.seen = self.own.new_zeros(self.num_sequences, 1, self.top_k, 0)
        self._add(self.frontier_tokens, self.frontier_scores, torch.full_like(self.frontier_tokens, -1))

    def _chances(self, log_probs: torch.Tensor) -> torch.Tensor:
        if self.policy.is_adaptive:
            self.log_probs.append(log_probs.flatten(1))
        return self.policy.chances(log_probs)

    def _add(self, tokens: torch.Tensor, scores: torch.Tensor, parents: torch.Tensor) -> None:
        self.levels += 1
        self.tokens.append(tokens)
        self.scores.append(scores)
        self.parents.append(parents)
        self.depths.append(torch.full_like(tokens[0], self.levels))
        self.size += tokens.shape[1]

    def expand(self, width: int) -> torch.Tensor:
        """Take the frontier's best `width` nodes; returns which nodes each of them sees, (A, 1, width, columns)."""
        self.frontier_scores, self.frontier_tokens, self.frontier_pool = (
            x[:, :width] for x in (self.frontier_scores, self.frontier_tokens, self.frontier_pool)
        )
        own = self.own[:width, :width].expand(self.num_sequences, 1, -1, -1)
        self.mask = torch.cat((self.seen[:, :, :width], own), dim=3)
        self.columns += width
        return self.mask

    def extend(self, log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """
        Children (A, width, k) of what was expanded; the best k are the next frontier. Returns their parents' places
        (A, k).
        """
        top_k = log_probs.shape[2]
        scores = (self.frontier_scores[:, :, None] + self._chances(log_probs)).flatten(1)
        tokens, offset = tokens.flatten(1), self.size
        self._add(tokens, scores, self.frontier_pool.repeat_interleave(top_k, dim=1))
        if top_k == 1:
            best = parents = torch.zeros_like(tokens)
            self.frontier_scores, self.frontier_tokens, self.seen = scores, tokens, self.mask
        else:
            self.frontier_scores, best = scores.topk(top_k, dim=1)
            self.frontier_tokens, parents = tokens.gather(1, best), best // top_k
            self.seen = self.mask.gather(2, parents[:, None, :, None].expand(-1, -1, -1, self.columns))
        self.frontier_pool = offset + best
        return parents

    def finish(self, root_tokens: torch.Tensor) -> trees.DraftTree:
        """The best of all nodes seen, as many as the policy wants."""
        tokens, scores = torch.cat(self.tokens, dim=1), torch.cat(self.scores, dim=1)
        log_probs = torch.cat(self.log_probs, dim=1) if self.log_probs else None
        if self.top_k == 1:  # a chain: its levels are in order already
            length = self.policy.num_nodes(scores, self.levels)
            log_probs = None if log_probs is None else log_probs[:, :length]
            return trees.chain(root_tokens, tokens[:, :length], scores[:, :length], log_probs)
        best = trees.best_first(scores)
        return trees.kept_nodes(
            root_tokens,
            tokens,
            torch.cat(self.parents, dim=1),
            torch.cat(self.depths),
            scores,
            best.indices[:, : self.policy.num_nodes(best.values, self.levels)],
            self.levels,
            log_probs,
        )
