"""`LookaheadDraft`: the target's own guesses at later tokens, made in the passes that verify, kept as n-grams.

    the cat | sat on the .      window: guesses at the coming positions, the trunk; below each its later iterations
               |  |  |  |       target's choices at the lowest nodes:  new guesses, and n-grams for the pool
              on the mat Tom    pool["the"]: "mat .", "dog ran"   ->   proposed behind "the"

The window is part of the tree: a position's guess attends to the trunk before it and to its own column, as in the
paper's attention pattern, so one verification does both. No model.

Source: Lookahead decoding (arXiv 2402.02057), section 3; defaults W 15, N 5, G 15 are its authors' for 7B models.
"""

import random
from math import log

import torch

from ..generation.auto.calibration import OWN_NOISE
from ..generation.auto.traits import DraftingTraits
from ..generation.draft.interface import DraftContext, Drafter, Prompt, Roots, register_drafter
from ..generation.tree.draft_tree import DraftTree
from ..generation.tree.policy import TreePolicy
from ..tree_config import TreeConfig
from .base import Draft
from .proposals import UNLEARNT, Continuation, Proposals, cumulative, expand, tree_of


ESCAPE = 2.0  # weight of no n-gram being right
# What a node of the window counts for: it is hardly ever right itself, but fills the pool. With the paper's 120 nodes
# and 0.8 tokens more per cycle (its figure 5) a node brings 0.007.
LOG_WINDOW, LOG_BELOW = log(0.007), -1e-4


class LookaheadDraft(Draft):
    """
    Proposes n-grams that the target guessed in earlier passes, and those of the text so far; needs no model.

    Args:
        window: Positions guessed at in every pass (W).
        ngram: Tokens of an n-gram (N).
        guesses: N-grams tried per pass at most (G).

    Raises:
        ValueError: a size is too small.

    The tree mode "auto", the default, leaves the window out where a pass of more tokens costs more than it brings, as
    on CPUs; "static" always runs it.
    """

    def __init__(self, window: int = 15, ngram: int = 5, guesses: int = 15):
        for name, value, least in (("window", window, 1), ("ngram", ngram, 2), ("guesses", guesses, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` is {value!r}; give an integer of at least {least}.")
        self.window, self.ngram, self.guesses = window, ngram, guesses
        nodes = (window + guesses) * (ngram - 1)
        depth = window + ngram - 2
        self.tree_config = TreeConfig(
            "auto", num_draft_tokens=nodes, tree_depth=max(depth, ngram - 1), tree_top_k=max(2, guesses)
        )


class Lookahead:
    """
    One sequence's pool and window.

    Args:
        draft: Sizes.
        tokens: The prompt.

    Attributes:
        tokens: The text so far.
        columns: Per position of the window its guesses, oldest first, (W, N - 1): what stands at a position, then what
            followed it in later iterations.
        choices: The target's choice below each column, if the last pass ran the window.
    """

    def __init__(self, draft: LookaheadDraft, tokens: list[int], seed: int):
        self.draft, self.tokens, self.random = draft, [], random.Random(seed)
        self.pool: dict[int, dict[tuple[int, ...], None]] = {}
        self.columns: list[list[int]] = []
        self.choices: list[int] | None = None
        self.commit(tokens)

    def commit(self, tokens: list[int]) -> None:
        """The text goes on with `tokens`, and the window moves on by as many positions."""
        first = max(0, len(self.tokens) - self.draft.ngram + 1)
        self.tokens += tokens
        for start in range(first, len(self.tokens) - self.draft.ngram + 1):
            self.remember(self.tokens[start : start + self.draft.ngram])
        gone = len(tokens)
        if self.choices is not None:
            for column, choice in zip(self.columns, self.choices, strict=True):
                self.remember([*column, choice])
            self.columns = [[*column[1:], choice] for column, choice in zip(self.columns, self.choices, strict=True)]
            self.choices, gone = None, gone - 1  # one iteration later each column is one position further
        self.columns = self.columns[gone:]
        while self.tokens and len(self.columns) < self.draft.window:
            self.columns.append(self.random.choices(self.tokens, k=self.draft.ngram - 1))

    def remember(self, ngram: list[int]) -> None:
        """One more n-gram; of those with its first token the last `guesses` are kept."""
        known = self.pool.setdefault(ngram[0], {})
        rest = tuple(ngram[1:])
        known.pop(rest, None)
        known[rest] = None
        if len(known) > self.draft.guesses:
            del known[next(iter(known))]

    def guesses(self, depth: int, num_nodes: int, top_k: int) -> Proposals:
        """What the pool has behind the last token, as a tree."""
        found = [Continuation(rest, 0, 1) for rest in reversed(self.pool.get(self.tokens[-1], ()))]
        return expand(found, min(depth, self.draft.ngram - 1), num_nodes, top_k, ESCAPE)

    def window(self, depth: int) -> Proposals:
        """The window as a tree: the trunk is each column's oldest guess, the rest of a column hangs below."""
        out, known, trunk = Proposals(), {}, -1
        for column in self.columns[:depth]:
            parent = trunk
            for row, token in enumerate(column):
                if parent >= 0 and out.depths[parent] == depth:
                    break
                if (parent, token) not in known:
                    known[parent, token] = out.add(token, parent, UNLEARNT)
                parent = known[parent, token]
                trunk = parent if row == 0 else trunk
        return out

    def observe(self, tokens: list[int], parents: list[int], choices: list[int]) -> None:
        """The target's `choices` at every node of a verified tree, the root first."""
        known = {key: node for node, key in enumerate(zip(parents, tokens, strict=True))}
        found, trunk = [], 0
        for column in self.columns:
            node = trunk
            for row, token in enumerate(column):
                node = known.get((node, token))
                if node is None:
                    return  # the tree was cut: this pass ran no whole window
                trunk = node if row == 0 else trunk
            found.append(choices[node])
        self.choices = found


class LookaheadDrafter(Drafter):
    """See [`LookaheadDraft`]."""

    reads_choices = True

    def __init__(self, draft: LookaheadDraft, context: DraftContext):
        self.draft, self.batch, self.timer = draft, context.batch, context.timer
        self.device, self.sizes = torch.device("cpu"), context.settings.sizes
        self.texts: list[Lookahead] = []
        self.sequences: list[int] = []  # original numbers of those of the last tree

    def start(self, prompt: Prompt) -> None:
        """As in [`Drafter`]: n-grams of the prompt are known from the start."""
        if not prompt.is_read:
            return
        batch, length = self.batch, self.batch.prompt_length
        seen = [[True] * length] * batch.num_sequences
        if batch.visible is not None and batch.cache_shift == 0:
            seen = batch.visible[:, :length].tolist()
        self.texts = [
            Lookahead(self.draft, [token for token, is_seen in zip(row, own, strict=True) if is_seen], number)
            for number, (row, own) in enumerate(zip(batch.ids[:, :length].tolist(), seen, strict=True))
        ]
        self.known = [length] * batch.num_sequences

    def grow(self, roots: Roots, depth: int, policy: TreePolicy) -> DraftTree:
        """As in [`Drafter`]."""
        with self.timer.phase("tree"):
            self.sequences, each, scores = roots.sequences, [], []
            for number in roots.sequences:
                text, length = self.texts[number], self.batch.lengths[number]
                text.commit(self.batch.ids[number, self.known[number] : length].tolist())
                self.known[number] = length
                guesses = text.guesses(depth, self.sizes.num_draft_tokens, policy.top_k)
                edges = policy.chances(torch.tensor(guesses.log_probs)).tolist() if len(guesses) else []
                if policy.top_k > 1:
                    window = text.window(depth)
                    below = [LOG_WINDOW if parent < 0 else LOG_BELOW for parent in window.parents]
                    guesses.join(edges, window, below)
                each.append(guesses)
                scores.append(cumulative(guesses, edges))
            return tree_of(each, roots.tokens.to(self.device), policy, scores)

    def observe(self, tree: DraftTree, logits: torch.Tensor) -> None:
        """As in [`Drafter`]: the window's new guesses."""
        if not self.sequences or tree.num_draft_tokens < self.draft.window:
            return
        facts = (tree.tokens, tree.parents, logits.argmax(dim=-1))
        for number, *own in zip(self.sequences, *(fact.tolist() for fact in facts), strict=True):
            self.texts[number].observe(*own)
        self.sequences = []


register_drafter(
    LookaheadDraft,
    LookaheadDrafter,
    device=lambda draft, target: torch.device("cpu"),
    identity=lambda draft: LookaheadDraft,
    traits=lambda draft: DraftingTraits(OWN_NOISE, is_free=True),
)
