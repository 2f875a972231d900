"""The walk: at each node take the token plain generate would take there, and step into the child that carries it.

No acceptance ratios and no residuals: the committed token is a function of the target's scores and the step's noise
alone, so no tree can bias it. Does not know caches or models.

    chosen at root: "cat"   child "cat" exists  -> step      nodes   0  1  3
    chosen at cat:  "sat"   child "sat" exists  -> step      tokens  cat  sat  on
    chosen at sat:  "on"    no child            -> stop      counts  3 (two accepted draft tokens and the target's own)

Shape letters: A active sequences, N drafted nodes, T tree levels, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .batch import Batch
from .ops.transfer import on_device
from .sampling.chooser import TokenChooser
from .sampling.kinds import Kind
from .tree.draft_tree import DraftTree


@dataclass
class Walk:
    """
    Args:
        nodes (`torch.LongTensor` of shape `(A, T + 1)`): Node at which each token was chosen; 0 past the end.
        tokens (`torch.LongTensor` of shape `(A, T + 1)`): The chosen tokens; meaningless past the end.
        counts (`torch.LongTensor` of shape `(A,)`): Tokens to commit: accepted draft tokens + 1.
        is_nan (`torch.BoolTensor` of shape `(A,)`): A chosen token came from NaN scores.
        stops: Per sequence, the index of the token after which it ends, if that was asked after each step; else
            `None`.
        scores, logits: Per token, (A, V) float32, after and before processors; kept only if asked for.
        is_written: Whether the tokens stand behind their sequences already.
    """

    nodes: torch.Tensor
    tokens: torch.Tensor
    counts: torch.Tensor
    is_nan: torch.Tensor
    scores: list[torch.Tensor] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    stops: list[int | None] | None = None
    is_written: bool = False


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
    """Which nodes the first `counts` (A,) draft tokens of each path are, (A, N + 1) bool; never the root."""
    is_taken = torch.arange(walk.nodes.shape[1], device=counts.device) <= counts[:, None]
    out = torch.zeros_like(tree.tokens, dtype=torch.bool)
    out.scatter_(1, walk.nodes.to(out.device) * is_taken, True)
    out[:, 0] = False
    return out


def by_depth(tree: DraftTree, accepted: torch.Tensor) -> torch.Tensor:
    """
    Accepted node of each depth, (A, T + 1), 0 where there is none. Siblings carry different tokens: one per depth.
    """
    count, nodes = tree.tokens.shape
    out = tree.depths.new_zeros(count, tree.max_depth + 2)
    place = torch.where(accepted, tree.depths, tree.max_depth + 1)
    out.scatter_(1, place, torch.arange(nodes, device=out.device).expand(count, -1))
    return out[:, :-1]


def stepwise_walk(
    tree: DraftTree,
    logits: torch.Tensor,
    chooser: TokenChooser,
    batch: Batch,
    keep_scores: bool = False,
    stopping: Callable[[list[torch.Tensor], list[torch.Tensor]], list[int | None]] | None = None,
) -> Walk:
    """
    The walk level by level, for sampling and processors. Where those look at prefixes, each token is written behind
    its sequence as soon as it is chosen.

    Args:
        logits: (A, N + 1, V).
        keep_scores: Keep scores and logits.
        stopping: For processors or criteria that must see each step once, with all sequences at one length: asked
            after each step (tokens so far, their kept scores) which sequences end with it. Given, the walk ends when
            one does, or when any sequence has no child to step into.
    """
    numbers, lengths, steps, padding = batch.active, batch.active_lengths, batch.steps, batch.padding_places
    active, device = len(numbers), logits.device
    node = torch.zeros(active, dtype=torch.long, device=device)
    alive = torch.ones(active, dtype=torch.bool, device=device)
    counts = torch.zeros_like(node)
    is_nan = torch.zeros_like(alive)
    nodes, tokens, kept, raws, stops = [], [], [], [], None
    # Asking whether any sequence continues costs nothing on a CPU; elsewhere it would wait for the device.
    asks = device.type == "cpu" or stopping is not None
    index = torch.arange(active, device=device)
    writes = chooser.kind > Kind.PREFIX_FREE or stopping is not None
    for depth in range(tree.max_depth + 1):
        at_node = logits[index, node]
        at = [length + depth for length in lengths], [step + depth for step in steps]
        token, scores, raw, nan = chooser.choose(at_node, numbers, *at)
        is_nan |= alive & nan
        if padding:
            token = token.index_fill(0, on_device(padding, device), batch.pad_token_id)
        if writes:
            batch.write(token[:, None], depth)
        nodes.append(node)
        tokens.append(token)
        counts += alive
        if keep_scores:
            kept.append(scores)
            raws.append(raw)
        if stopping is not None:
            stops = stopping(tokens, kept)
            if any(stop is not None for stop in stops):
                break
        child = (tree.tokens == token[:, None]) & (tree.parents == node[:, None])
        alive = alive & child.any(dim=1)
        if asks and not (alive.all() if stopping is not None else alive.any()):
            break
        node = torch.where(alive, child.int().argmax(dim=1), 0)
    return Walk(torch.stack(nodes, dim=1), torch.stack(tokens, dim=1), counts, is_nan, kept, raws, stops, writes)
