"""Choosing a step's token exactly as plain `generate` would: logits processors on the right prefix, then argmax or
draw.

Processors are sorted into kinds by what they may look at, so that rows of different lengths can share a call where
that changes nothing. User-made ones that were not declared row-wise run in lockstep: all rows at one length, once per
step. Does not know trees. Shape letters: B rows of the batch, A active rows, V vocabulary.
"""

import enum
from collections.abc import Sequence

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from ...compat import processors as known
from ..batch import Rows
from .noise import StepNoise


class Kind(enum.IntEnum):
    """What a processor or criterion needs of its call; a list needs the most of its members."""

    NONE = 0  # the list is empty
    PREFIX_FREE = 1  # looks at scores only, each row alone
    ROW_WISE = 2  # looks at its row's prefix
    ROW_IN_PLACE = 3  # looks at its row's prefix and its row's number in the batch
    STEPWISE = 4  # may hold state or look at other rows: called once per step, all rows at one length


_KINDS: dict[type, Kind] = {
    **dict.fromkeys(known.PREFIX_FREE, Kind.PREFIX_FREE),
    **dict.fromkeys(known.SEQUENCE_WISE, Kind.ROW_WISE),
    **dict.fromkeys(known.SEQUENCE_IN_PLACE, Kind.ROW_IN_PLACE),
}


def declare_row_wise(cls: type) -> type:
    """
    Say of your own logits processor that its answer for a row depends on that row's prefix and scores alone, or of
    your stopping criterion that it depends on the prefix alone (it is given no scores), and that it keeps no state.
    Rows then need not wait for each other, and it may be asked about tokens behind a row's end. Usable as a class
    decorator.
    """
    _KINDS[cls] = Kind.ROW_WISE
    return cls


def kind_of(members: Sequence) -> Kind:
    """
    The most demanding kind in a list of processors or criteria; exact types only, since a subclass may do anything.
    """
    return max((_KINDS.get(type(member), Kind.STEPWISE) for member in members), default=Kind.NONE)


class TokenChooser:
    """
    Args:
        processors: The host's prepared list.
        noise: Steps' noise when sampling; `None` for greedy.
        rows: The batch; prefixes are read from its tokens.
    """

    def __init__(self, processors: LogitsProcessorList, noise: StepNoise | None, rows: Rows):
        self.processors, self.noise, self.rows = processors, noise, rows
        self.kind = kind_of(processors)

    @property
    def is_plain_argmax(self) -> bool:
        """Greedy without processors: no scores need to be processed."""
        return self.noise is None and self.kind == Kind.NONE

    def scores(self, logits: torch.Tensor, rows: list[int], lengths: list[int]) -> torch.Tensor:
        """
        Processed scores (A, V) of `logits` (A, V) float32, row `rows[a]` having `lengths[a]` tokens so far. What
        processors change in place is changed in `logits`, as in plain `generate`.
        """
        if self.kind == Kind.NONE:
            return logits
        if self.kind == Kind.PREFIX_FREE:
            return self.processors(self.rows.ids[: len(rows), :1], logits)
        groups: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            groups.setdefault(length, []).append(index)
        if len(groups) == 1:
            return self._one_length(logits, rows, lengths[0])
        out = torch.empty_like(logits)
        for length, members in groups.items():
            part = logits[members]
            out[members] = self._one_length(part, [rows[i] for i in members], length)
            logits[members] = part
        return out

    def _one_length(self, logits: torch.Tensor, rows: list[int], length: int) -> torch.Tensor:
        if len(rows) == self.rows.ids.shape[0] and rows == sorted(rows):
            return self.processors(self.rows.ids[:, :length], logits)
        if self.kind == Kind.ROW_WISE:
            return self.processors(self.rows.ids[rows, :length], logits)
        everyone = logits.new_zeros(self.rows.ids.shape[0], logits.shape[1])
        everyone[rows] = logits
        scores = self.processors(self.rows.ids[:, :length], everyone)[rows]
        logits.copy_(everyone[rows])
        return scores

    def choose(
        self, logits: torch.Tensor, rows: list[int], lengths: list[int], steps: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        (tokens (A,), processed scores (A, V), logits (A, V) float32, is NaN (A,)) of one step; `logits` (A, V) in the
        target's dtype.
        """
        logits = logits.to(torch.float32, copy=True)
        # NaN that a processor makes is plain generate's choice, too.
        was_nan = logits.amax(dim=-1).isnan() if self.noise is None and self.kind != Kind.NONE else None
        scores = self.scores(logits, rows, lengths)
        if self.noise is None:
            best = scores.max(dim=-1)
            is_nan = best.values.isnan()
            return best.indices, scores, logits, is_nan if was_nan is None else is_nan & was_nan
        probabilities = scores.softmax(dim=-1)
        tokens = (probabilities / self.noise.at(steps, rows)).argmax(dim=-1)
        return tokens, scores, logits, probabilities[:, 0].isnan()  # one NaN score makes all probabilities NaN


class StopChecker:
    """
    Whether rows end, token by token, so that none gets one too many.

    Args:
        criteria: The host's prepared list.
        rows: The batch; prefixes are read from its tokens.
    """

    def __init__(self, criteria: StoppingCriteriaList, rows: Rows):
        self.criteria, self.rows = criteria, rows
        self.kind = kind_of(criteria)
        simple = (known.is_length_limit, known.is_end_of_sequence, known.is_timer)
        self._others = StoppingCriteriaList(c for c in criteria if not any(is_kind(c) for is_kind in simple))
        self._timers = [c for c in criteria if known.is_timer(c)]
        self.max_length = known.length_limit(criteria)
        self._ends = known.end_tokens(criteria)
        self.only_length = all(known.is_length_limit(c) for c in criteria)
        self.pads_finished_rows = known.pads_ended(criteria)

    def stopping_index(
        self, rows: list[int], lengths: list[int], new_tokens: list[list[int]], scores: tuple | None = None
    ) -> list[int | None]:
        """
        Per row, the index of the first of its `new_tokens` after which it ends, or `None`.

        Args:
            rows: Original row numbers.
            lengths: Tokens each row had before; the new ones are in `ids` already.
            new_tokens: On the host, per row.
            scores: As plain generate passes them, for criteria that look at them.
        """
        found: list[int | None] = [None] * len(rows)
        out_of_time = self._timers and any(bool(c(self.rows.ids[:1, :1], None).any()) for c in self._timers)
        for a, (length, tokens) in enumerate(zip(lengths, new_tokens, strict=True)):
            for index, token in enumerate(tokens):
                if token in self._ends or out_of_time or length + index + 1 >= self.max_length:
                    found[a] = index
                    break
        if self._others:
            self._ask_others(found, rows, lengths, new_tokens, scores)
        return found

    def _ask_others(self, found, rows, lengths, new_tokens, scores) -> None:
        ends = [length + len(tokens) for length, tokens in zip(lengths, new_tokens, strict=True)]
        for length in range(min(lengths) + 1, max(ends) + 1):
            here = [
                a
                for a in range(len(rows))
                if lengths[a] < length <= ends[a] and (found[a] is None or length <= lengths[a] + found[a] + 1)
            ]
            if not here:
                continue
            if self.kind == Kind.ROW_WISE:
                done = self._others(self.rows.ids[[rows[a] for a in here], :length], scores).tolist()
            else:
                everyone = self._others(self.rows.ids[:, :length], scores).tolist()
                done = [everyone[rows[a]] for a in here]
            for a, is_done in zip(here, done, strict=True):
                if is_done:
                    found[a] = length - lengths[a] - 1
