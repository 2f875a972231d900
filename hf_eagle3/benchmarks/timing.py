"""Timing of one `generate` call. Does not know methods or prompts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel, set_seed


def timed(
    target: PreTrainedModel, inputs: dict[str, torch.Tensor], seed: int, **options
) -> tuple[torch.Tensor, float]:
    """(new tokens (B, n), seconds) of one call of `generate` after seeding the random generators."""
    set_seed(seed)
    _wait_for(target.device)
    start = time.perf_counter()
    out = target.generate(**inputs, **options)
    _wait_for(target.device)
    return out[:, inputs["input_ids"].shape[1] :], time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def without_eos(target: PreTrainedModel) -> Iterator[None]:
    """
    Inside, the target's `generate` stops at `max_new_tokens` only.

    `eos_token_id=None` as an argument would be filled in from `generation_config`, so the latter is changed.
    """
    config = target.generation_config
    eos_token_id, config.eos_token_id = config.eos_token_id, None
    try:
        yield
    finally:
        config.eos_token_id = eos_token_id
