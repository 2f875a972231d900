"""Passes over several tokens through a target's own causal path: whether they compute what single steps would.

Layers with recurrent or convolution states have one path for prompts and another for single tokens; in some versions
of some architectures the former forgets the states that it should go on from. One look at the model tells. Does not
know drafts, rows or which architectures there are.
"""

import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers import __version__ as host_version
from transformers.utils import logging


logger = logging.get_logger(__name__)

PROMPT, STEPS = 12, 5  # tokens of the comparison
# Relative differences of a token's last hidden state. Rounding makes 1e-6 in float32 (1e-3 where matrix products are
# less precise), 1e-2 in half precision, and more where it flips an expert, hence the median there: forgotten states
# touch all tokens. They make 0.1 to 1.5 on random models, whose states say less than trained ones.
FULL_PRECISION, HALF_PRECISION = 1e-2, 0.1

_FAULTS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # model -> {dtype: fault or None}


def clamped_modules(model: nn.Module) -> list[nn.Module]:
    """Mamba-2 layers, which clamp their time steps in passes over several tokens only."""
    return [module for module in model.modules() if hasattr(module, "time_step_limit")]


@contextmanager
def stepping(clamped: list[nn.Module]) -> Iterator[None]:
    """Passes inside compute what single steps would, as far as `clamped_modules` are concerned."""
    kept = [(module, module.time_step_limit) for module in clamped]
    try:
        for module, _ in kept:
            module.time_step_limit = (0.0, float("inf"))
        yield
    finally:
        for module, limit in kept:
            module.time_step_limit = limit


def chain_fault(model: PreTrainedModel) -> str | None:
    """
    Why chains cannot be verified on `model`, or `None` where they can. Found by running its decoder on a few tokens,
    once per model and dtype, with a cache of its own. A model in training mode, where dropout is random, or without
    weights (on the meta device) is not run.
    """
    if model.training or model.device.type == "meta":
        return None
    known = _FAULTS.setdefault(model, {})
    if model.dtype not in known:
        known[model.dtype] = _find_fault(model)
    return known[model.dtype]


def _find_fault(model: PreTrainedModel) -> str | None:
    try:
        errors = step_errors(model)
    except Exception as error:  # whatever it is, it is not raised for a comparison that nobody asked for
        logger.warning_once(f"{type(model).__name__} was not checked for passes over several tokens: {error!r}.")
        return None
    is_full = torch.finfo(model.dtype).bits >= 32
    error = float(errors.max() if is_full else errors.median())
    if error < (FULL_PRECISION if is_full else HALF_PRECISION):
        return None
    return (
        f"with transformers {host_version} its states after a pass over several tokens are not those after single "
        f"steps (hidden states differ by {error:.1g}); another version may be right"
    )


@torch.no_grad()
def step_errors(model: PreTrainedModel) -> torch.Tensor:
    """|pass - steps| / |steps| of the last hidden states of `STEPS` tokens behind a prompt of `PROMPT`, (STEPS,)."""
    decoder = model.get_decoder()
    parameters = inspect.signature(decoder.forward).parameters
    name = "cache_params" if "cache_params" in parameters else "past_key_values"
    config = model.config.get_text_config(decoder=True)
    columns = torch.arange(PROMPT + STEPS, device=model.device)[None]
    inputs = {"input_ids": (columns * 7 + 3) % config.vocab_size}
    if "position_ids" in parameters:
        inputs["position_ids"] = columns

    def run(*widths: int) -> torch.Tensor:
        options = {"use_cache": True, "return_dict": True, name: DynamicCache(config=config)}
        parts = zip(*(value.split(widths, dim=1) for value in inputs.values()), strict=True)
        states = [decoder(**dict(zip(inputs, part, strict=True)), **options).last_hidden_state for part in parts]
        return torch.cat(states[1:], dim=1)[0].double()  # (STEPS, H)

    with stepping(clamped_modules(model)), torch.autocast(model.device.type, enabled=False):
        at_once, steps = run(PROMPT, STEPS), run(PROMPT, *[1] * STEPS)
    return ((at_once - steps).norm(dim=-1) / steps.norm(dim=-1)).nan_to_num(float("inf"))
