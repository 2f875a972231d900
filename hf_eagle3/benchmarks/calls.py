"""One timed call of `generate` by any method: tokens, seconds, acceptance. Does not know tasks or repetitions."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..compat.outputs import BaseStreamer
from ..generation.stats import SpeculationStats, record
from .methods import PLAIN, Method
from .timing import timed, without_eos
from .work import Work


@dataclass(frozen=True)
class Call:
    """New `tokens` (B, n); `seconds` of the whole call, prefill included; `stats`, empty for plain generate."""

    tokens: torch.Tensor
    seconds: float
    stats: SpeculationStats


class AssistedCycles(BaseStreamer):
    """Counts tokens per cycle of transformers' assisted decoding, which passes each cycle's tokens to its streamer."""

    def __init__(self):
        self.counts: list[int] | None = None

    def put(self, value: torch.Tensor) -> None:
        """Receives the prompt (1, P) first, then the tokens of each cycle."""
        if self.counts is None:
            self.counts = []
        else:
            self.counts.append(value.numel())

    def end(self) -> None:
        """Called after the last token."""

    def stats(self) -> SpeculationStats:
        """
        Statistics without acceptance rates, as the number of proposed tokens is unknown. The first cycle includes
        prefill.
        """
        out = SpeculationStats(mode="host", num_iterations=len(self.counts or ()))
        out.start(1)
        for count in self.counts or ():
            out.count_cycle(0, num_accepted_tokens=count - 1, num_committed=count, depth=0, is_cut=False)
        return out


def run_call(target: PreTrainedModel, method: Method, work: Work, options: dict, synchronize: bool = False) -> Call:
    """
    Generate exactly `work.new_tokens` tokens with `method`.

    Args:
        options: Arguments of `generate` that all methods share.
        synchronize: Wait for the accelerator between phases: accurate phase times, but a slower call.

    Raises:
        ValueError: `generate` returned another number of tokens.
    """
    counter = None if method.is_ours or method.name == PLAIN else AssistedCycles()
    extra = {} if counter is None else {"streamer": counter}
    with record(synchronize) as stats, without_eos(target):
        tokens, seconds = timed(target, work.inputs, work.seed, **options, **method.options, **extra)
    if tokens.shape[1] != work.new_tokens:
        raise ValueError(
            f"{method.name} generated {tokens.shape[1]} tokens instead of {work.new_tokens}; remove stopping criteria "
            "other than EOS and length (`stop_strings`, `max_time`) from the target's generation_config.json."
        )
    return Call(tokens, seconds, stats if counter is None else counter.stats())
