"""One measured call: tokens, seconds, and what was accepted on the way, for every kind of method alike."""

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
    """`tokens` (B, n), all new; `seconds` of the whole call, prompt included; `stats` empty for plain generate."""

    tokens: torch.Tensor
    seconds: float
    stats: SpeculationStats


class HostCycles(BaseStreamer):
    """Counts the cycles of the host's assisted decoding, which hands each cycle's tokens to its streamer at once."""

    def __init__(self):
        self.counts: list[int] | None = None

    def put(self, value: torch.Tensor) -> None:
        """The prompt (1, P) first, then each cycle's tokens."""
        if self.counts is None:  # the prompt comes first
            self.counts = []
        else:
            self.counts.append(value.numel())

    def end(self) -> None:
        """After the last token."""

    def stats(self) -> SpeculationStats:
        """
        The prompt is part of the first cycle there. How many tokens a cycle proposed is not known: no acceptance
        rates.
        """
        out = SpeculationStats(mode="host", num_iterations=len(self.counts or ()))
        out.start_rows(1)
        for count in self.counts or ():
            out.count_cycle(0, num_accepted_tokens=count - 1, num_committed=count, depth=0, is_cut=False)
        return out


def run_call(target: PreTrainedModel, method: Method, work: Work, options: dict, synchronize: bool = False) -> Call:
    """
    Exactly `work.new_tokens` tokens by `method`.

    Args:
        options: What all methods share.
        synchronize: Wait for the accelerator between phases; truer phases, a slower call.

    Raises:
        ValueError: another number of tokens came out.
    """
    counter = None if method.is_ours or method.name == PLAIN else HostCycles()
    extra = {} if counter is None else {"streamer": counter}
    with record(synchronize) as stats, without_eos(target):
        tokens, seconds = timed(target, work.inputs, work.seed, **options, **method.options, **extra)
    if tokens.shape[1] != work.new_tokens:
        raise ValueError(
            f"{method.name} wrote {tokens.shape[1]} tokens where {work.new_tokens} were asked for; remove other ends "
            "than EOS and length (`stop_strings`, `max_time`) from the target's generation_config.json."
        )
    return Call(tokens, seconds, stats if counter is None else counter.stats())
