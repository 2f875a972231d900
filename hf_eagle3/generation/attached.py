"""Drafts attached to targets, and what becomes of a target's calls without `assistant_model`.

Nothing is stored on the target, so that copying, pickling and saving it know nothing of the draft. Does not know how a
draft is found or loaded.
"""

import time
import weakref
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..errors import CallRefused
from .stats import SpeculationStats, new_stats, publish, record


logger = logging.get_logger(__name__)
ATTACHED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # target -> draft
# Options that no attached draft serves, with the values that disable them.
OTHER_DECODINGS = {"num_beams": 1, "penalty_alpha": 0, "dola_layers": None, "output_attentions": False}


class OptionRefused(CallRefused):
    """Refused by its options alone, before a streamer has seen the prompt."""


class _AfterPrompt:
    """A streamer that has seen the prompt in the refused attempt."""

    def __init__(self, streamer):
        self.streamer, self.is_prompt = streamer, True

    def put(self, value: torch.Tensor) -> None:
        if not self.is_prompt:
            self.streamer.put(value)
        self.is_prompt = False

    def end(self) -> None:
        self.streamer.end()


def option(name: str, target: PreTrainedModel, given: dict) -> Any:
    """A generation option as `generate` finds it: the argument, else that of the call's or the target's config."""
    value = given.get(name)
    for config in (given.get("generation_config"), target.generation_config):
        value = vars(config).get(name) if value is None and config is not None else value
    return value


def refuse_other_decodings(target: PreTrainedModel, given: dict) -> None:
    """Raises OptionRefused where transformers would warn about an assistant, or a draft would fail halfway."""
    for name, off in OTHER_DECODINGS.items():
        value = option(name, target, given)
        if value not in (None, off):
            raise OptionRefused(f"`{name}` is {value!r}, which no draft serves.")


def is_handed_on(given: dict) -> bool:
    """Whether `generate` passes the call on to other code: custom decodings, continuous batching."""
    return given.get("custom_generate") is not None or given.get("cache_implementation") == "paged"


def attached_call(target: PreTrainedModel, generate, given: dict) -> Any:
    """
    `generate` with an attached draft, or plain if that refuses; logs tokens, seconds and acceptance at level INFO.

    Args:
        generate: Transformers' own.
        given: Its arguments, the draft among them as `assistant_model`.
    """
    started = time.perf_counter()
    with record(synchronize=new_stats().synchronize) as stats:
        try:
            refuse_other_decodings(target, given)
            out = generate(target, **given)
        except CallRefused as refused:
            logger.warning_once(f"{type(target).__name__} runs a call without its attached draft: {refused}")
            stats.mode, stats.reason = "plain", str(refused)
            plain = {name: value for name, value in given.items() if name != "assistant_model"}
            if given.get("streamer") is not None and not isinstance(refused, OptionRefused):
                plain["streamer"] = _AfterPrompt(given["streamer"])
            out = generate(target, **plain)
        except Exception as error:
            logger.info(f"ended by {type(error).__name__} after {time.perf_counter() - started:.2f} s")
            raise
    publish(stats)
    logger.info(summary(stats, num_tokens(out, given, stats), time.perf_counter() - started))
    return out


def num_tokens(out: Any, given: dict, stats: SpeculationStats) -> int:
    """Generated tokens of all sequences."""
    if stats.generated_lengths:
        return sum(stats.generated_lengths)
    sequences = out if isinstance(out, torch.Tensor) else out.sequences
    prompt = given.get("input_ids", given.get("inputs"))
    return sequences.shape[0] * (sequences.shape[1] - (0 if prompt is None else prompt.shape[1]))


def summary(stats: SpeculationStats, tokens: int, seconds: float) -> str:
    """One line for a call."""
    line = f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.1f} tokens/s"
    if stats.num_cycles:
        return f"{line}, tau {stats.acceptance_length:.2f} in {stats.num_cycles} cycles"
    return f"{line}, without the draft: {stats.reason}"
