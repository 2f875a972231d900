"""Does a multi-token forward of a target equal token-by-token decoding?

Layers with recurrent or convolution states have separate code paths for prompts and for single tokens; in some
architectures and versions the prompt path ignores the cached states. A short run of the model detects this; such
layers then process the tokens of a pass one at a time, and all others (attention, experts) at once. Does not know
drafts, batches or architectures.

Shape letters: B batch, L tokens of a pass, H hidden.
"""

import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.utils import logging

from ..compat.calls import cache_argument
from ..compat.versions import transformers_version
from .parts import is_compiled


logger = logging.get_logger(__name__)

PROMPT, STEPS = 12, 5  # token counts of the comparison
# Relative errors of last hidden states in (full, half) precision. Rounding gives 1e-6 (1e-3 with less precise matrix
# products) and 1e-2; above this bound, single steps are tried as a fix.
ROUNDING = (1e-3, 0.03)
# Above this bound, the model is refused: ignored states gave 0.003 to 1.5 on random models, more on trained ones.
TOLERANCE = (1e-2, 0.1)


@dataclass(frozen=True)
class MultiTokenSupport:
    """`fault`: why chains cannot be verified, if so. `one_by_one`: layers with states need one token at a time."""

    fault: str | None = None
    one_by_one: bool = False


_SUPPORT: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # model -> {dtype: MultiTokenSupport}
MISSING_INPUTS = (TypeError, ValueError)  # raised by decoders that need more than token ids
_PATCH_LOCK, _SUPPORT_LOCK = threading.Lock(), threading.Lock()
_PATCHED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # module -> {attribute: [users, own value before]}


@dataclass(frozen=True)
class StepParts:
    """Modules whose multi-token forward differs from single steps."""

    clamped: list[nn.Module]  # Mamba-2: time steps are clamped in multi-token passes only
    one_by_one: list[nn.Module]  # get the tokens of a pass one at a time

    @classmethod
    def of(cls, model: PreTrainedModel) -> "StepParts":
        """Those of `model`, which is run once to find out (see `chain_fault`)."""
        found = mixers(model)
        needs_steps = bool(found) and _support(model).one_by_one
        return cls(_clamped(model), found if needs_steps else [])


def _clamped(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if "time_step_limit" in vars(module)]


def mixers(model: nn.Module) -> list[nn.Module]:
    """Modules with a convolution over the sequence, which are the ones that hold states, whatever their scan is."""
    return [module for module in model.modules() if any(isinstance(child, nn.Conv1d) for child in module.children())]


@contextmanager
def stepping(parts: StepParts) -> Iterator[None]:
    """Make passes inside the block equal to single steps in the modules of `parts`. Threads may share a model."""
    changes = [(module, "time_step_limit") for module in parts.clamped]
    changes += [(module, "forward") for module in parts.one_by_one]
    with _PATCH_LOCK:
        for module, name in changes:
            _patch(module, name)
    try:
        yield
    finally:
        with _PATCH_LOCK:
            for module, name in changes:
                _unpatch(module, name)


def _patch(module: nn.Module, name: str) -> None:
    # The instance may have its own `forward`, from accelerate's hooks, which `_unpatch` puts back.
    patch = _PATCHED.setdefault(module, {}).setdefault(name, [0, vars(module).get(name)])
    patch[0] += 1
    if patch[0] == 1:
        value = (0.0, float("inf")) if name == "time_step_limit" else partial(_one_by_one, module.forward)
        setattr(module, name, value)


def _unpatch(module: nn.Module, name: str) -> None:
    patch = _PATCHED[module][name]
    patch[0] -= 1
    if patch[0] == 0:
        del _PATCHED[module][name]
        delattr(module, name)
        if patch[1] is not None:
            setattr(module, name, patch[1])


def _one_by_one(forward: Callable, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """`forward` over (B, L, H) as L single steps."""
    if "attention_mask" in kwargs:
        kwargs["attention_mask"] = None  # (B, L) does not fit one token, and single steps see no padding
    return torch.cat([forward(part, *args, **kwargs) for part in hidden_states.split(1, dim=1)], dim=1)


def chain_fault(model: PreTrainedModel) -> str | None:
    """
    Why chains cannot be verified on `model`; `None` if they can. Found by running its decoder on a few tokens with a
    separate cache, once per model and dtype. A model on the meta device is not run.
    """
    return _support(model).fault


def _support(model: PreTrainedModel) -> MultiTokenSupport:
    if model.device.type == "meta":
        return MultiTokenSupport()
    with _SUPPORT_LOCK:  # `_evaluating` changes the modules' training flags
        known = _SUPPORT.setdefault(model, {})
        if model.dtype not in known:
            with _evaluating(model):
                known[model.dtype] = _probe(model)
        return known[model.dtype]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Disable dropout inside the block. (`model.train()` would switch on modules that the user switched off.)"""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _probe(model: PreTrainedModel) -> MultiTokenSupport:
    is_half = torch.finfo(model.dtype).bits < 32
    clamped, found = _clamped(model), mixers(model)
    error, raised = _error(model, StepParts(clamped, []))
    one_by_one = False
    if error > ROUNDING[is_half] and found and not is_compiled(model):  # compiled code ignores a new `forward`
        stepped, _ = _error(model, StepParts(clamped, found))
        one_by_one, error = stepped < error, min(stepped, error)
    if error < TOLERANCE[is_half]:
        return MultiTokenSupport(None, one_by_one)
    if raised is not None:
        if isinstance(raised, MISSING_INPUTS):
            logger.warning_once(f"{type(model).__name__} could not be checked for multi-token passes: {raised!r}.")
            return MultiTokenSupport()
        return MultiTokenSupport(f"multi-token passes could not be compared with single steps ({raised!r})")
    return MultiTokenSupport(
        f"with transformers {transformers_version} its states after a multi-token pass are not those after single "
        f"steps (hidden states differ by {error:.1g}); another version may be right"
    )


def _error(model: PreTrainedModel, parts: StepParts) -> tuple[float, Exception | None]:
    """(Error of the whole comparison, the exception that prevented it)."""
    try:
        errors = step_errors(model, parts)
    except Exception as raised:
        return float("inf"), raised
    # The median in half precision: rounding may flip an expert of one token, ignored states affect all of them.
    return float(errors.max() if torch.finfo(model.dtype).bits >= 32 else errors.median()), None


@torch.no_grad()
def step_errors(model: PreTrainedModel, parts: StepParts) -> torch.Tensor:
    """|pass - steps| / |steps| of the last hidden states of `STEPS` tokens after a prompt of `PROMPT`, (STEPS,)."""
    decoder = model.get_decoder()
    parameters = inspect.signature(decoder.forward).parameters
    name = cache_argument(decoder.forward)
    config = model.config.get_text_config(decoder=True)
    positions = torch.arange(PROMPT + STEPS, device=model.device)[None]
    inputs = {"input_ids": (positions * 7 + 3) % config.vocab_size}  # distinct ids, so that states differ
    if "position_ids" in parameters:
        inputs["position_ids"] = positions

    def run(*widths: int) -> torch.Tensor:
        # One pass per width over the same cache; the first one is the prompt.
        options = {"use_cache": True, "return_dict": True, name: DynamicCache(config=config)}
        split = zip(*(value.split(widths, dim=1) for value in inputs.values()), strict=True)
        states = []
        for i, part in enumerate(split):
            with stepping(parts) if i else nullcontext():  # the prompt runs unpatched, as in `generate`
                states.append(decoder(**dict(zip(inputs, part, strict=True)), **options).last_hidden_state)
        return torch.cat(states[1:], dim=1)[0].cpu().double()  # (STEPS, H); MPS has no float64

    with torch.autocast(model.device.type, enabled=False):
        at_once, steps = run(PROMPT, STEPS), run(PROMPT, *[1] * STEPS)
    return ((at_once - steps).norm(dim=-1) / steps.norm(dim=-1)).nan_to_num(float("inf"))
