"""`SuffixDraft`: what followed the last tokens before, in the sequence itself and in documents given beforehand.

    ... the cat sat on the mat . then the cat      ->  "the cat" stood before: sat on the mat .

No model. Places behind equal n-grams are looked up, compared further back, and their continuations merged into a tree,
the more likely the longer the match and the more places agree. Prompt lookup is the chain of the newest place.

Source: SuffixDecoding (arXiv 2411.04975); an index of a few n-gram sizes stands in for its suffix trees.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ..generation.auto.calibration import OWN_NOISE
from ..generation.auto.traits import DraftingTraits
from ..generation.batch import Batch
from ..generation.draft.interface import DraftContext, Drafter, Prompt, Roots, register_drafter
from ..generation.tree.draft_tree import DraftTree
from ..generation.tree.policy import TreePolicy
from ..tree_config import TreeConfig
from .base import Draft
from .proposals import SEPARATOR, Continuation, Proposals, expand, tree_of


ORDERS = (8, 4, 2, 1)  # n-grams that are indexed
MOST_PLACES = 12  # looked at per text and cycle, the newest first
LONGEST_MATCH = 16  # tokens compared backwards: what is longer says no more
# Weight of what was never seen, see `POWER`: sampled text repeats itself less than greedy one.
ESCAPE, SAMPLED_ESCAPE = 4.0, 14.0


class SuffixIndex:
    """
    Places in a growing text by the tokens before them.

    Args:
        tokens: The text's first tokens; `SEPARATOR` between texts.

    Attributes:
        largest: Of these tokens.
    """

    def __init__(self, tokens: Sequence[int] = ()):
        self.tokens: list[int] = []
        self.largest = max(tokens, default=SEPARATOR)
        self._places: dict[tuple[int, ...], list[int]] = {}
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """The text goes on with `tokens`."""
        text, places = self.tokens, self._places
        for token in tokens:
            place = len(text)
            for order in ORDERS:
                if order <= place:
                    places.setdefault(tuple(text[place - order :]), []).append(place)
            text.append(token)

    def continuations(self, context: list[int]) -> list[Continuation]:
        """Places of this text behind the last tokens of `context`, weighted by how far they agree."""
        found: dict[int, Continuation] = {}
        for order in ORDERS:
            if order > len(context):
                continue
            for place in reversed(self._places.get(tuple(context[-order:]), ())):
                if len(found) == MOST_PLACES:
                    break
                if place not in found:
                    length = self._agreement(place, context, order)
                    found[place] = Continuation(self.tokens, place, length)
            if len(found) == MOST_PLACES or (found and order == ORDERS[-2]):
                break  # one token says little where two agree
        return list(found.values())

    def _agreement(self, place: int, context: list[int], known: int) -> int:
        """How many tokens before `place` are those at the end of `context`, of which `known` are."""
        most = min(place, len(context), LONGEST_MATCH)
        while known < most and self.tokens[place - 1 - known] == context[-1 - known] != SEPARATOR:
            known += 1
        return known


class SuffixTexts:
    """
    The texts of a call's sequences, indexed as they grow.

    Args:
        batch: The sequences; read only.
        documents: An index that all of them may continue from.
        escape: Weight of what was never seen.
    """

    def __init__(self, batch: Batch, documents: SuffixIndex | None, escape: float):
        self.batch, self.documents, self.escape = batch, documents, escape
        visible, ids = batch.visible, batch.ids[:, : batch.prompt_length]
        self._known = [batch.prompt_length] * batch.num_sequences
        self._indices = []
        for number, row in enumerate(ids.tolist()):
            if visible is not None and batch.cache_shift == 0:
                seen = visible[number, : batch.prompt_length].tolist()
                row = [token for token, is_seen in zip(row, seen, strict=True) if is_seen]
            self._indices.append(SuffixIndex(row))

    def proposals(self, number: int, depth: int, num_nodes: int, top_k: int) -> Proposals:
        """Candidates of the sequence with the original `number`."""
        index, length = self._indices[number], self.batch.lengths[number]
        if length > self._known[number]:
            index.extend(self.batch.ids[number, self._known[number] : length].tolist())
            self._known[number] = length
        context = index.tokens[-LONGEST_MATCH:]
        found = index.continuations(context)
        if self.documents is not None:
            found += self.documents.continuations(context)
        return expand(found, depth, num_nodes, top_k, self.escape)


class SuffixDraft(Draft):
    """
    Proposes what followed the last tokens before; needs no model.

    Args:
        documents: Token ids (lists or one-dimensional tensors) of texts that answers may quote, beside each sequence's
            own prompt and answer. Indexed once, about 2 microseconds per token.

    Raises:
        ValueError: a document is no list of token ids.
    """

    def __init__(self, documents: Sequence[Sequence[int]] = ()):
        self.tree_config = TreeConfig("auto", num_draft_tokens=47, tree_depth=24, tree_top_k=4)
        self.documents = indexed(documents)


def indexed(documents: Sequence[Sequence[int]]) -> SuffixIndex | None:
    """One index of all `documents`; `None` without any."""
    text: list[int] = []
    for number, document in enumerate(documents):
        ids = document.tolist() if isinstance(document, torch.Tensor) else list(document)
        if not all(isinstance(token, int) and token >= 0 for token in ids):
            raise ValueError(
                f"`documents[{number}]` is {type(document).__name__} {str(document)[:40]!r}; give token ids, such as "
                "`tokenizer(text)['input_ids']`."
            )
        text += [*ids, SEPARATOR]
    return SuffixIndex(text) if text else None


def check_ids(documents: SuffixIndex | None, target: PreTrainedModel) -> None:
    """Raises ValueError if the target has not all tokens of the documents."""
    size = target.config.get_text_config(decoder=True).vocab_size
    if documents is not None and documents.largest >= size:
        raise ValueError(
            f"`documents` contain the token id {documents.largest}, and the target has {size} tokens; tokenise them "
            "with the target's tokenizer."
        )


def fit(draft: SuffixDraft, target: PreTrainedModel) -> SuffixDraft:
    """The draft itself; see `check_ids`."""
    check_ids(draft.documents, target)
    return draft


def escape_of(context: DraftContext) -> float:
    """How much of the chance goes to tokens that were never seen in a call."""
    return ESCAPE if context.noise is None else SAMPLED_ESCAPE


class SuffixDrafter(Drafter):
    """See [`SuffixDraft`]."""

    def __init__(self, draft: SuffixDraft, context: DraftContext):
        self.draft, self.batch, self.timer = draft, context.batch, context.timer
        self.device, self.sizes = torch.device("cpu"), context.settings.sizes
        self.escape = escape_of(context)
        self.texts: SuffixTexts | None = None

    def start(self, prompt: Prompt) -> None:
        """As in [`Drafter`]: the prompt is indexed if a cycle will follow."""
        if prompt.is_read:
            self.texts = SuffixTexts(self.batch, self.draft.documents, self.escape)

    def grow(self, roots: Roots, depth: int, policy: TreePolicy) -> DraftTree:
        """As in [`Drafter`]."""
        with self.timer.phase("tree"):
            sizes = (depth, self.sizes.num_draft_tokens, policy.top_k)
            each = [self.texts.proposals(number, *sizes) for number in roots.sequences]
            return tree_of(each, roots.tokens.to(self.device), policy)


register_drafter(
    SuffixDraft,
    SuffixDrafter,
    fit=fit,
    device=lambda draft, target: torch.device("cpu"),
    identity=lambda draft: SuffixDraft,
    traits=lambda draft: DraftingTraits(OWN_NOISE, is_free=True),
)
