"""`GraftedDraft`: another draft's tree with the proposals of a [`SuffixDraft`] in it, one budget shared by chance.

    the draft       on 0.5  - the 0.4               joined, 4 nodes   on 0.5  - the 0.45  - mat 0.4
                    down 0.3                                          down 0.3
    seen before     on 0.5  - the 0.45 - mat 0.4

Where text is being copied, the other draft's levels are left out: what they would add is known already. Chances of
copied tokens are calibrated here, the draft's by the policy. Joining is done on the CPU.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from math import exp, log1p
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from ..generation.auto.calibration import GREEDY, OWN_NOISE, SHARED_NOISE, Calibration
from ..generation.draft.interface import (
    DraftContext,
    Drafter,
    DraftInputs,
    Prompt,
    Roots,
    drafter_kind,
    register_drafter,
)
from ..generation.tree.draft_tree import DraftTree
from ..generation.tree.policy import FixedPolicy, TreePolicy
from ..tree_config import TreeConfig
from .base import Draft
from .proposals import Proposals, cumulative, tree_of
from .suffix import SuffixDraft, SuffixTexts, check_ids, escape_of, indexed


SUFFIX_SIZES = (24, 31, 4)  # levels, nodes and children per node of what is copied, at most
SURE = 0.7  # a fixed tree's draft is not asked for a level that copied tokens reach with this chance


class GraftedDraft(Draft):
    """
    See `with_suffix`.

    Args:
        draft: The draft whose trees are shared.
        documents: See [`SuffixDraft`].

    Raises:
        ValueError: `draft` copies text already.
    """

    def __init__(self, draft: Any, documents: Sequence[Sequence[int]] = ()):
        if isinstance(draft, (SuffixDraft, GraftedDraft)):
            raise ValueError(
                f"`with_suffix` of a {type(draft).__name__}: it proposes repeated text already; leave it."
            )
        self.draft, self.documents = draft, indexed(documents)

    @property
    def tree_config(self) -> TreeConfig:
        """The draft's, with room for longer copies in trees."""
        sizes = self.draft.tree_config
        return sizes if sizes.is_chain else replace(sizes, tree_depth=max(sizes.tree_depth, SUFFIX_SIZES[0]))

    def with_tree(self, tree_mode: str, **sizes) -> "GraftedDraft":
        """As the draft's own: a view with another tree."""
        return self._around(self.draft.with_tree(tree_mode, **sizes))

    def _around(self, draft: Any) -> "GraftedDraft":
        view = copy.copy(self)
        view.draft = draft
        return view


def fit(draft: GraftedDraft, target: PreTrainedModel) -> GraftedDraft:
    """The draft around one that fits."""
    check_ids(draft.documents, target)
    return draft._around(drafter_kind(draft.draft).fit(draft.draft, target))


def sizes_of(draft: GraftedDraft) -> TreeConfig:
    """As `GraftedDraft.tree_config`, of the fitted draft."""
    sizes = drafter_kind(draft.draft).sizes(draft.draft)
    return sizes if sizes.is_chain else replace(sizes, tree_depth=max(sizes.tree_depth, SUFFIX_SIZES[0]))


class JoinedPolicy(TreePolicy):
    """
    A policy as the other draft sees it while copied tokens stand beside its own.

    Args:
        policy: The call's.
        covered: Chance that copied tokens reach level 1, 2, ...; mean over sequences.
        most: Nodes that the other draft hands over.
    """

    def __init__(self, policy: TreePolicy, covered: list[float], most: int):
        super().__init__(policy.top_k)
        self.policy, self.covered, self.most, self.is_adaptive = policy, covered, most, policy.is_adaptive

    def chances(self, log_probs: torch.Tensor) -> torch.Tensor:
        """As in [`TreePolicy`]."""
        return self.policy.chances(log_probs)

    def width(self, level: int, scores: torch.Tensor) -> int:
        """As in [`TreePolicy`]: children are worth what copied tokens leave, since one token is right at a level."""
        covered = self.covered[level] if level < len(self.covered) else 0.0
        if not self.is_adaptive and covered > SURE:
            return 0
        return self.policy.width(level, scores + log1p(-covered))

    def num_nodes(self, scores: torch.Tensor, levels: int) -> int:
        """As in [`TreePolicy`]; the call's policy decides on the joined tree."""
        return min(self.most, scores.shape[1])


class GraftedDrafter(Drafter):
    """See [`GraftedDraft`]."""

    def __init__(self, draft: GraftedDraft, context: DraftContext):
        kind, settings = drafter_kind(draft.draft), context.settings
        # For targets that take chains only the settings differ from what the draft asks for.
        self.sizes = settings.sizes if settings.sizes.is_chain else kind.sizes(draft.draft)
        self.inner = kind.open(draft.draft, replace(context, settings=replace(settings, sizes=self.sizes)))
        self.documents, self.batch, self.timer = draft.documents, context.batch, context.timer
        self.device, self.is_static = self.inner.device, settings.static is not None
        self.reads_choices = self.inner.reads_choices
        self.texts: SuffixTexts | None = None
        self.escape = escape_of(context)
        cpu = torch.device("cpu")
        self.copying = Calibration(cpu, OWN_NOISE)
        self.assumed = Calibration(cpu, GREEDY if context.noise is None else SHARED_NOISE)  # of fixed trees
        self._last: list[
            tuple[int, int, Proposals]
        ] = []  # number and length of each sequence, and what it was to copy

    def start(self, prompt: Prompt) -> None:
        """As in [`Drafter`]."""
        self.inner.start(prompt)
        if prompt.is_read:
            self.texts = SuffixTexts(self.batch, self.documents, self.escape)

    def extend(self, inputs: DraftInputs) -> None:
        """As in [`Drafter`]."""
        self.inner.extend(inputs)

    def observe(self, tree: DraftTree, logits: torch.Tensor) -> None:
        """As in [`Drafter`]."""
        self.inner.observe(tree, logits)

    def grow(self, roots: Roots, depth: int, policy: TreePolicy) -> DraftTree:
        """As in [`Drafter`]."""
        with self.timer.phase("tree"):
            self._learn()
            deepest, nodes, top_k = SUFFIX_SIZES
            sizes = (min(depth, deepest), nodes, min(top_k, policy.top_k))
            copies = [self.texts.proposals(number, *sizes) for number in roots.sequences]
            self._last = [
                (number, self.batch.lengths[number], one) for number, one in zip(roots.sequences, copies, strict=True)
            ]
            chances = [self._chances(self.copying, one.log_probs) for one in copies]
        if self.is_static and not policy.is_adaptive:
            seen = FixedPolicy(self.sizes)
        else:
            seen = JoinedPolicy(policy, _covered(copies, chances), self.sizes.num_draft_tokens)
        tree = self.inner.grow(roots, min(depth, self.sizes.tree_depth), seen)
        with self.timer.phase("tree"):
            return self._joined(tree, copies, chances, policy, roots.tokens.to(tree.tokens.device))

    @staticmethod
    def _chances(calibration: Calibration, log_probs: list[float]) -> list[float]:
        return calibration(torch.tensor(log_probs)).tolist() if log_probs else []

    def _joined(
        self, tree: DraftTree, copies: list[Proposals], chances: list, policy: TreePolicy, roots: torch.Tensor
    ) -> DraftTree:
        each, scores = [], []
        for own, own_edges, copied, edges in zip(*self._parts(tree, policy.is_adaptive), copies, chances, strict=True):
            if policy.top_k == 1:
                joined, joined_edges = _better_chain((own, own_edges), (copied, edges))
            else:
                joined, joined_edges = own, own_edges
                own.join(own_edges, copied, edges)
            each.append(joined)
            scores.append(cumulative(joined, joined_edges))
        return tree_of(each, roots, policy, scores)

    def _parts(self, tree: DraftTree, is_adaptive: bool) -> tuple[list[Proposals], list[list[float]]]:
        """The other draft's nodes, and the log-chance of each given its parent."""
        each, all_edges = [], []
        log_probs = tree.log_probs if tree.log_probs is not None else tree.scores
        facts = (tree.tokens, tree.parents, tree.depths, tree.scores, log_probs)
        for tokens, parents, depths, scores, own in zip(*(fact.tolist() for fact in facts), strict=True):
            edges = [score - scores[parent] for score, parent in zip(scores[1:], parents[1:], strict=True)]
            each.append(Proposals(tokens[1:], [parent - 1 for parent in parents[1:]], depths[1:], own[1:]))
            all_edges.append(edges if is_adaptive else self._chances(self.assumed, edges))
        return each, all_edges

    def _learn(self) -> None:
        """Which of the copied tokens of the last tree were right, by what was committed since, verified or not."""
        for number, length, copied in self._last:
            committed = self.batch.ids[number, length : self.batch.lengths[number]].tolist()
            asked, taken, path = [], [], {-1}
            for node, parent in enumerate(copied.parents):
                depth = copied.depths[node]
                asked.append(parent in path and depth <= len(committed))
                taken.append(asked[-1] and copied.tokens[node] == committed[depth - 1])
                if taken[-1]:
                    path.add(node)
            if asked:
                self.copying.observe(torch.tensor(copied.log_probs), torch.tensor(asked), torch.tensor(taken))
        self._last = []

    def select(self, kept: list[int]) -> None:
        """As in [`Drafter`]."""
        self.inner.select(kept)

    def close(self, cache: Cache | None) -> None:
        """As in [`Drafter`]."""
        self.inner.close(cache)


def _covered(copies: list[Proposals], chances: list[list[float]]) -> list[float]:
    """Chance that the likeliest copied node of each level is right, mean over sequences."""
    levels = [0.0] * max((depth for one in copies for depth in one.depths), default=0)
    for one, edges in zip(copies, chances, strict=True):
        best: dict[int, float] = {}
        for depth, score in zip(one.depths, cumulative(one, edges), strict=True):
            best[depth] = max(best.get(depth, 0.0), exp(score))
        for depth, chance in best.items():
            levels[depth - 1] += chance / len(copies)
    return levels


def _better_chain(*chains: tuple[Proposals, list[float]]) -> tuple[Proposals, list[float]]:
    """The chain that is expected to be accepted further."""
    return max(chains, key=lambda chain: sum(map(exp, cumulative(*chain))))


def _of(name: str):
    """The answer of the kind of the draft inside."""
    return lambda draft, *others: vars(drafter_kind(draft.draft))[name](draft.draft, *others)


register_drafter(
    GraftedDraft,
    GraftedDrafter,
    fit=fit,
    sizes=sizes_of,
    **{name: _of(name) for name in ("features", "vocabulary", "device", "identity", "traits")},
)
