"""The walk: at each node take the token plain generate would take there, and step into the child that carries it.

No acceptance ratios and no residuals: the committed token is a function of the target's scores and the step's noise
alone, so no tree can bias it. Does not know caches or models.

    chosen at root: "cat"   child "cat" exists  -> step      nodes   0  1  3
    chosen at cat:  "sat"   child "sat" exists  -> step      tokens  cat  sat  on
    chosen at sat:  "on"    no child            -> stop      counts  3 (two accepted draft tokens and the target's own)

Shape letters: A rows, N drafted nodes, T tree levels, V vocabulary.
"""

from dataclasses import dataclass, field

import torch

from .ops.transfer import on_device
from .sampling.chooser import Kind, TokenChooser
from .tree.draft_tree import DraftTree


@dataclass
class Walk:
    """
    Args:
        nodes (`torch.LongTensor` of shape `(A, T + 1)`): Node at which each token was chosen; 0 past the end.
        tokens (`torch.LongTensor` of shape `(A, T + 1)`): The chosen tokens; meaningless past the end.
        counts (`torch.LongTensor` of shape `(A,)`): Tokens to commit: accepted draft tokens + 1.
        is_nan (`torch.BoolTensor` of shape `(A,)`): A chosen token came from NaN scores.
        stops: Per sequence, the token after which it ends, if that was asked after each step; else `None`.
        scores, logits: Per token, (A, V) float32, after and before processors; kept only if asked for.
    """

    nodes: torch.Tensor
    tokens: torch.Tensor
    counts: torch.Tensor
    is_nan: torch.Tensor
    scores: list[torch.Tensor] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    stops: list[int | None] | None = None

    def hold_back(self) -> None:
        """Lockstep: every row commits as many tokens as the slowest. The others choose the same tokens again later."""
        self.counts = self.counts.min().expand_as(self.counts)


def greedy_walk(tree: DraftTree, logits: torch.Tensor) -> Walk:
    """The walk of greedy decoding without processors, all nodes at once. `logits` (A, N + 1, V)."""
    values, choices = logits.max(dim=-1)  # (A, N + 1); the first index among equals, as argmax
    if tree.num_draft_tokens == 0:
        return Walk(tree.depths, choices, choices.new_ones(choices.shape[0]), values[:, 0].isnan())
    matched = tree.tokens == choices.gather(1, tree.parents.clamp(min=0))
    matched[:, 0] = True
    accepted = ~(tree.ancestors & ~matched[:, None]).any(dim=-1)  # (A, N + 1): a node counts if all above it do
    nodes = by_depth(tree, accepted)
    return Walk(nodes, choices.gather(1, nodes), accepted.sum(dim=1), values.gather(1, nodes).isnan().any(dim=1))


def accepted_nodes(tree: DraftTree, walk: Walk, counts: torch.Tensor) -> torch.Tensor:
    """Which nodes the first `counts` (A,) draft tokens of each row's path are, (A, N + 1) bool; never the root."""
    is_taken = torch.arange(walk.nodes.shape[1], device=counts.device) <= counts[:, None]
    out = torch.zeros_like(tree.tokens, dtype=torch.bool)
    out.scatter_(1, walk.nodes.to(out.device) * is_taken, True)
    out[:, 0] = False
    return out


def by_depth(tree: DraftTree, accepted: torch.Tensor) -> torch.Tensor:
    """
    Accepted node of each depth, (A, T + 1), 0 where there is none. Siblings carry different tokens: one per depth.
    """
    rows, nodes = tree.tokens.shape
    out = tree.depths.new_zeros(rows, tree.max_depth + 2)
    place = torch.where(accepted, tree.depths, tree.max_depth + 1)
    out.scatter_(1, place, torch.arange(nodes, device=out.device).expand(rows, -1))
    return out[:, :-1]


def stepwise_walk(
    tree: DraftTree,
    logits: torch.Tensor,
    chooser: TokenChooser,
    rows: list[int],
    lengths: list[int],
    steps: list[int],
    keep_scores: bool = False,
    check_stop=None,
    ended: list[int] | None = None,
    pad_token_id: int = 0,
) -> Walk:
    """
    The walk level by level, for sampling and processors.

    Args:
        logits: (A, N + 1, V).
        rows: Original row numbers.
        lengths: Tokens each row has, the root included; a step's token is written behind them into the chooser's ids.
        steps: Steps each row has behind it: the number of the one chosen first.
        keep_scores: Keep scores and logits.
        check_stop: Lockstep: called with (tokens so far, their kept scores) after each step; True ends the walk.
            Given, the walk also ends when any row has no child to step into.
        ended: Places of sequences that ended and are kept as padding: they get `pad_token_id`.
    """
    active = len(rows)
    node = torch.zeros(active, dtype=torch.long, device=logits.device)
    alive = torch.ones(active, dtype=torch.bool, device=logits.device)
    counts = torch.zeros_like(node)
    is_nan = torch.zeros_like(alive)
    nodes, tokens, kept, raws = [], [], [], []
    waits = logits.device.type == "cpu" or check_stop is not None
    index = torch.arange(active, device=logits.device)
    chooser.rows.reserve(tree.max_depth + 1)
    needs_prefix = chooser.kind > Kind.PREFIX_FREE or check_stop is not None
    places = on_device([rows, lengths], logits.device) if needs_prefix else None
    for depth in range(tree.max_depth + 1):
        at_node = logits[index, node]
        token, scores, raw, nan = chooser.choose(
            at_node, rows, [n + depth for n in lengths], [s + depth for s in steps]
        )
        is_nan |= alive & nan
        if ended:
            token = token.index_fill(0, on_device(ended, token.device), pad_token_id)
        if needs_prefix:
            chooser.rows.ids[places[0], places[1] + depth] = token
        nodes.append(node)
        tokens.append(token)
        counts += alive
        if keep_scores:
            kept.append(scores)
            raws.append(raw)
        if check_stop is not None and check_stop(tokens, kept):
            break
        child = (tree.tokens == token[:, None]) & (tree.parents == node[:, None])
        alive = alive & child.any(dim=1)
        if waits and not (alive.all() if check_stop is not None else alive.any()):
            break
        node = torch.where(alive, child.int().argmax(dim=1), 0)
    return Walk(torch.stack(nodes, dim=1), torch.stack(tokens, dim=1), counts, is_nan, kept, raws)
