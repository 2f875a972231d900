"""Whether sequences end, token by token, so that none gets one too many.

Does not know trees. Shape letters: B sequences of the batch.
"""

from transformers import StoppingCriteriaList

from ...compat import processors as known
from ..batch import Batch
from .kinds import Kind, kind_of


class StopChecker:
    """
    Args:
        criteria: The list that `generate` prepared.
        batch: The batch; prefixes are read from its tokens.
    """

    def __init__(self, criteria: StoppingCriteriaList, batch: Batch):
        self.criteria, self.batch = criteria, batch
        self.kind = kind_of(criteria)
        simple = (known.is_length_limit, known.is_end_of_sequence, known.is_timer)
        self._others = StoppingCriteriaList(c for c in criteria if not any(is_kind(c) for is_kind in simple))
        self._timers = [c for c in criteria if known.is_timer(c)]
        self.max_length = known.length_limit(criteria)
        self._ends = known.end_tokens(criteria)
        self.only_length = all(known.is_length_limit(c) for c in criteria)

    def stopping_index(
        self, numbers: list[int], lengths: list[int], new_tokens: list[list[int]], scores: tuple | None = None
    ) -> list[int | None]:
        """
        Per sequence, the index of the first of its `new_tokens` after which it ends, or `None`.

        Args:
            numbers: Original numbers of the sequences.
            lengths: Tokens each had before; the new ones are in `ids` already.
            new_tokens: Per sequence, on the CPU.
            scores: As plain generate passes them, for criteria that look at them.
        """
        found: list[int | None] = [None] * len(numbers)
        out_of_time = self._timers and any(bool(c(self.batch.ids[:1, :1], None).any()) for c in self._timers)
        for a, (length, tokens) in enumerate(zip(lengths, new_tokens, strict=True)):
            for index, token in enumerate(tokens):
                if token in self._ends or out_of_time or length + index + 1 >= self.max_length:
                    found[a] = index
                    break
        if self._others:
            self._ask_others(found, numbers, lengths, new_tokens, scores)
        return found

    def _ask_others(self, found, numbers, lengths, new_tokens, scores) -> None:
        """Length by length, the sequences that reach it and have not been found to end before."""
        ids, ends = self.batch.ids, [length + len(tokens) for length, tokens in zip(lengths, new_tokens, strict=True)]
        for length in range(min(lengths) + 1, max(ends) + 1):
            here = [
                a
                for a in range(len(numbers))
                if lengths[a] < length <= ends[a] and (found[a] is None or length <= lengths[a] + found[a] + 1)
            ]
            if not here:
                continue
            if self.kind == Kind.ROW_WISE:
                done = self._others(ids[[numbers[a] for a in here], :length], scores).tolist()
            else:
                everyone = self._others(ids[:, :length], scores).tolist()
                done = [everyone[numbers[a]] for a in here]
            for a, is_done in zip(here, done, strict=True):
                if is_done:
                    found[a] = length - lengths[a] - 1
