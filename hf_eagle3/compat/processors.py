"""Logits processors and stopping criteria of transformers: which inputs they depend on, and attributes of some.

A class that is missing is skipped; one that is not listed here runs step by step, which is correct but slower. Does
not know how decoding uses them.
"""

from collections.abc import Iterable, Sequence

import torch

from .points import PROCESSORS, is_missing, uses


LOGITS, STOPPING = "transformers.generation.logits_process", "transformers.generation.stopping_criteria"


def _classes(owner: str, names: Iterable[str]) -> tuple[type, ...]:
    found = [uses(owner, name, "drafting several steps at once with it", scope=PROCESSORS) for name in names]
    return tuple(cls for cls in found if not is_missing(cls))


_Temperature, _TopK, _TopP = (
    uses(LOGITS, name, "the draft's own warping", scope=PROCESSORS)
    for name in ("TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper")
)
_MaxLength, _Eos, _MaxTime = (
    uses(STOPPING, name, "where sequences end")
    for name in ("MaxLengthCriteria", "EosTokenCriteria", "MaxTimeCriteria")
)
uses(STOPPING, "max_length", "where sequences end", holder=lambda: _MaxLength(max_length=1), is_word=True)
uses(STOPPING, "eos_token_id", "where sequences end", holder=lambda: _Eos(eos_token_id=1), is_word=True)
uses(
    LOGITS, "temperature", "the draft's own warping", scope=PROCESSORS, holder=lambda: _Temperature(0.5), is_word=True
)
uses(LOGITS, "top_k", "the draft's own warping", scope=PROCESSORS, holder=lambda: _TopK(1), is_word=True)
uses(LOGITS, "top_p", "the draft's own warping", scope=PROCESSORS, holder=lambda: _TopP(0.5), is_word=True)

# Depend on each sequence's scores only.
PREFIX_FREE = (
    *(cls for cls in (_Temperature, _TopK, _TopP) if not is_missing(cls)),
    *_classes(
        LOGITS,
        (
            "TopHLogitsWarper",
            "MinPLogitsWarper",
            "TypicalLogitsWarper",
            "EpsilonLogitsWarper",
            "EtaLogitsWarper",
            "InfNanRemoveLogitsProcessor",
            "LogitNormalization",
            "SuppressTokensLogitsProcessor",
        ),
    ),
)
# Depend on the sequence's own prefix too.
SEQUENCE_WISE = (
    *_classes(
        LOGITS,
        (
            "MinLengthLogitsProcessor",
            "MinNewTokensLengthLogitsProcessor",
            "NoRepeatNGramLogitsProcessor",
            "SequenceBiasLogitsProcessor",
            "NoBadWordsLogitsProcessor",
            "ForcedBOSTokenLogitsProcessor",
            "ForcedEOSTokenLogitsProcessor",
            "ExponentialDecayLengthPenalty",
            "SuppressTokensAtBeginLogitsProcessor",
            "WatermarkLogitsProcessor",
        ),
    ),
    *_classes(STOPPING, ("StopStringCriteria",)),
    *(cls for cls in (_MaxLength, _MaxTime, _Eos) if not is_missing(cls)),
)
# Depend on the sequence's own prefix and its index in the batch.
SEQUENCE_IN_PLACE = _classes(
    LOGITS,
    (
        "RepetitionPenaltyLogitsProcessor",  # may ignore each sequence's own padding
        "EncoderNoRepeatNGramLogitsProcessor",
        "EncoderRepetitionPenaltyLogitsProcessor",
    ),
)


def warping(processors: Sequence) -> dict[str, float | int]:
    """`temperature`, `top_k` and `top_p` of transformers' warpers among the processors; the last of a kind wins."""
    warpers = {"temperature": _Temperature, "top_k": _TopK, "top_p": _TopP}
    return {
        name: getattr(processor, name)
        for processor in processors
        for name, warper in warpers.items()
        if isinstance(processor, warper) and hasattr(processor, name)
    }


def keep_top_k(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """`logits` (..., V) with -inf outside the `top_k` largest."""
    return _TopK(top_k)(None, logits)


def keep_top_p(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """`logits` (B, V) with -inf outside the nucleus of mass `top_p`."""
    return _TopP(top_p)(None, logits)


def is_length_limit(criterion) -> bool:
    """Whether a criterion ends sequences at a length and nothing else."""
    return type(criterion) is _MaxLength


def is_timer(criterion) -> bool:
    """Whether a criterion ends sequences after a time and nothing else."""
    return type(criterion) is _MaxTime


def is_end_of_sequence(criterion) -> bool:
    """Whether a criterion ends sequences at certain tokens and nothing else."""
    return type(criterion) is _Eos


def length_limit(criteria: Sequence) -> float:
    """The smallest `max_length` among the criteria, infinite without one."""
    return min((criterion.max_length for criterion in criteria if is_length_limit(criterion)), default=float("inf"))


def end_tokens(criteria: Sequence) -> set[int]:
    """Tokens that end a sequence."""
    return {token for c in criteria if is_end_of_sequence(c) for token in c.eos_token_id.tolist()}


def pads_ended(criteria: Sequence) -> bool:
    """Whether plain `generate` pads finished sequences; its own test is whether a criterion has EOS tokens."""
    return any(hasattr(criterion, "eos_token_id") for criterion in criteria)
