"""Passes over several tokens through a target's own causal path: whether they compute what single steps would.

Layers with recurrent or convolution states have one path for prompts and another for single tokens; in some versions
of some architectures the former forgets the states that it should go on from. One look at the model tells; there,
these layers get the tokens of a pass one by one, and all others (attention, experts) at once. Does not know drafts,
rows or which architectures there are.
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
from ..compat.versions import host_version
from .parts import is_compiled


logger = logging.get_logger(__name__)

PROMPT, STEPS = 12, 5  # tokens of the comparison
# Relative differences of a token's last hidden state, in full and in half precision. Rounding makes 1e-6 in float32
# (1e-3 where matrix products are less precise), 1e-2 in half precision, and more where it flips an expert, hence the
# median there: forgotten states touch all tokens. They make 0.003 to 1.5 on random models, whose states say less than
# trained ones. Above ROUNDING it is tried whether single steps come nearer, above TOLERANCE nothing is verified.
ROUNDING, TOLERANCE = (1e-3, 0.03), (1e-2, 0.1)


@dataclass(frozen=True)
class Finding:
    """Why chains cannot be verified on a model, if so, and whether its layers with states need one token at a time."""

    fault: str | None = None
    one_by_one: bool = False


_FINDINGS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # model -> {dtype: Finding}
NEEDS_MORE = (TypeError, ValueError)  # raised by decoders that do not run on token ids alone
_LOCK, _FINDING = threading.Lock(), threading.Lock()
_CHANGED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # module -> {attribute: [passes inside, before]}


@dataclass(frozen=True)
class StepParts:
    """The modules whose passes over several tokens differ from single steps."""

    clamped: list[nn.Module]  # Mamba-2: time steps are clamped in passes over several tokens only
    one_by_one: list[nn.Module]

    @classmethod
    def of(cls, model: PreTrainedModel) -> "StepParts":
        """Those of `model`, which may be run for it, once (see `chain_fault`)."""
        mixers = _mixers(model)
        needs_steps = bool(mixers) and _finding(model).one_by_one
        return cls(_clamped(model), mixers if needs_steps else [])


def _clamped(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "time_step_limit")]


def _mixers(model: nn.Module) -> list[nn.Module]:
    """Modules with a convolution over the sequence: they hold the states, whatever their scan is."""
    return [module for module in model.modules() if any(isinstance(child, nn.Conv1d) for child in module.children())]


@contextmanager
def stepping(parts: StepParts) -> Iterator[None]:
    """Passes inside compute what single steps would, as far as `parts` are concerned. Threads may share a model."""
    changes = [(module, "time_step_limit") for module in parts.clamped]
    changes += [(module, "forward") for module in parts.one_by_one]
    with _LOCK:
        for module, name in changes:
            _change(module, name)
    try:
        yield
    finally:
        with _LOCK:
            for module, name in changes:
                _change_back(module, name)


def _change(module: nn.Module, name: str) -> None:
    # A module has a `forward` of its own where accelerate put one.
    change = _CHANGED.setdefault(module, {}).setdefault(name, [0, vars(module).get(name)])
    change[0] += 1
    if change[0] == 1:
        value = (0.0, float("inf")) if name == "time_step_limit" else partial(_one_by_one, module.forward)
        setattr(module, name, value)


def _change_back(module: nn.Module, name: str) -> None:
    change = _CHANGED[module][name]
    change[0] -= 1
    if change[0] == 0:
        del _CHANGED[module][name]
        delattr(module, name)
        if change[1] is not None:
            setattr(module, name, change[1])


def _one_by_one(forward: Callable, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """`forward` over (B, L, H) as L single steps, which have no padding mask."""
    if "attention_mask" in kwargs:
        kwargs["attention_mask"] = None
    return torch.cat([forward(part, *args, **kwargs) for part in hidden_states.split(1, dim=1)], dim=1)


def chain_fault(model: PreTrainedModel) -> str | None:
    """
    Why chains cannot be verified on `model`, or `None` where they can. Found by running its decoder on a few tokens,
    once per model and dtype, with a cache of its own. A model without weights (on the meta device) is not run.
    """
    return _finding(model).fault


def _finding(model: PreTrainedModel) -> Finding:
    if model.device.type == "meta":
        return Finding()
    with _FINDING:  # one thread at a time: what is being looked at has no dropout
        known = _FINDINGS.setdefault(model, {})
        if model.dtype not in known:
            with _evaluating(model):
                known[model.dtype] = _look_at(model)
        return known[model.dtype]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout inside."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _look_at(model: PreTrainedModel) -> Finding:
    is_half = torch.finfo(model.dtype).bits < 32
    clamped, mixers = _clamped(model), _mixers(model)
    error, raised = _error(model, StepParts(clamped, []))
    one_by_one = False
    if error > ROUNDING[is_half] and mixers and not is_compiled(model):  # which may not notice another `forward`
        stepped, _ = _error(model, StepParts(clamped, mixers))
        one_by_one, error = stepped < error, min(stepped, error)
    if error < TOLERANCE[is_half]:
        return Finding(None, one_by_one)
    if raised is not None:
        if isinstance(raised, NEEDS_MORE):
            logger.warning_once(f"{type(model).__name__} was not checked for passes over several tokens: {raised!r}.")
            return Finding()
        return Finding(f"passes over several tokens could not be compared with single steps ({raised!r})")
    return Finding(
        f"with transformers {host_version} its states after a pass over several tokens are not those after single "
        f"steps (hidden states differ by {error:.1g}); another version may be right"
    )


def _error(model: PreTrainedModel, parts: StepParts) -> tuple[float, Exception | None]:
    """The error that counts, and what was raised instead."""
    try:
        errors = step_errors(model, parts)
    except Exception as raised:
        return float("inf"), raised
    return float(errors.max() if torch.finfo(model.dtype).bits >= 32 else errors.median()), None


@torch.no_grad()
def step_errors(model: PreTrainedModel, parts: StepParts) -> torch.Tensor:
    """|pass - steps| / |steps| of the last hidden states of `STEPS` tokens behind a prompt of `PROMPT`, (STEPS,)."""
    decoder = model.get_decoder()
    parameters = inspect.signature(decoder.forward).parameters
    name = cache_argument(decoder.forward)
    config = model.config.get_text_config(decoder=True)
    columns = torch.arange(PROMPT + STEPS, device=model.device)[None]
    inputs = {"input_ids": (columns * 7 + 3) % config.vocab_size}
    if "position_ids" in parameters:
        inputs["position_ids"] = columns

    def run(*widths: int) -> torch.Tensor:
        options = {"use_cache": True, "return_dict": True, name: DynamicCache(config=config)}
        split = zip(*(value.split(widths, dim=1) for value in inputs.values()), strict=True)
        states = []
        for i, part in enumerate(split):
            with stepping(parts) if i else nullcontext():  # the prompt goes as prompts go
                states.append(decoder(**dict(zip(inputs, part, strict=True)), **options).last_hidden_state)
        return torch.cat(states[1:], dim=1)[0].cpu().double()  # (STEPS, H); there is no float64 on MPS

    with torch.autocast(model.device.type, enabled=False):
        at_once, steps = run(PROMPT, STEPS), run(PROMPT, *[1] * STEPS)
    return ((at_once - steps).norm(dim=-1) / steps.norm(dim=-1)).nan_to_num(float("inf"))
