"""How a draft passed to `generate` as `assistant_model` reaches this package.

Wraps methods of transformers' `GenerationMixin`, once per process. The outermost is the public `generate`, where a
draft is dropped if this transformers cannot be used. Inside it: validation of the generation mode, the decoding method
for assistants, and the choice of a candidate generator. Does not know what the handler does with a draft.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from .calls import MIXIN
from .points import uses


WRAPPED_MARK = "_hf_eagle3_wrapped"
uses(
    MIXIN,
    "_validate_generation_mode",
    "refusing incompatible options",
    parameters=("generation_mode", "generation_config", "generation_mode_kwargs"),
)
uses(
    MIXIN,
    "_assisted_decoding",
    "decoding with a draft",
    parameters=(
        "input_ids",
        "logits_processor",
        "stopping_criteria",
        "generation_config",
        "assistant_model",
        "streamer",
    ),
)
uses(
    MIXIN,
    "_get_candidate_generator",
    "the tree mode 'host_chain'",
    parameters=("input_ids", "generation_config", "logits_processor", "assistant_model"),
)
_OWN: dict[str, Callable] = {}  # transformers' own methods, by name
# Prepared by `generate` for its own assisted decoding; not used by ours.
_FOR_ASSISTANTS = ("synced_gpus", "inputs_tensor", "assistant_tokenizer", "tokenizer")


class Handler(Protocol):
    """Decisions about a draft; implemented by `generation/hook.py`."""

    def accepted(self, target: PreTrainedModel, assistant: Any, given: dict) -> Any:
        """
        Our draft if `assistant` (a model or its name) is one, given the other arguments of `generate`; `None` for any
        other assistant. Raises ValueError for a draft that was loaded as another class.
        """

    def attached(self, target: PreTrainedModel, given: dict) -> Any:
        """The draft of a call without an assistant, given its arguments; `None`: it has none."""

    def attached_call(self, target: PreTrainedModel, generate, given: dict) -> Any:
        """The result of such a call, without the draft where it cannot be used."""

    def draft_of(self, assistant: Any) -> Any:
        """`assistant` if it is our draft, else `None`."""

    def plain(self, target: PreTrainedModel, generate, given: dict) -> Any:
        """The result of plain `generate` if drafts cannot be used; `None` if they can."""

    def validate(self, target: PreTrainedModel, draft: Any, mode: Any, config: GenerationConfig, given: dict) -> None:
        """Raises ValueError for options that cannot be honoured."""

    def fitted(self, target: PreTrainedModel, draft: Any) -> Any:
        """The draft with the target's vocabulary size, which transformers' own loop compares."""

    def decodes(self, draft: Any) -> bool:
        """Whether our loop decodes, not transformers'."""

    def validate_cache(self, target: PreTrainedModel, input_ids: torch.Tensor, model_kwargs: dict) -> None:
        """Raises ValueError for a target or cache that transformers' own loop cannot draft for."""

    def decode(self, target: PreTrainedModel, draft: Any, input_ids: torch.Tensor, prepared: dict, model_kwargs: dict):
        """Decode with our loop; what the decoding method returns."""

    def candidates(self, target: PreTrainedModel, draft: Any, **prepared) -> Any:
        """The candidate generator for transformers' own loop."""


def install(handler: Handler) -> None:
    """Wrap the methods; a second call does nothing."""
    if WRAPPED_MARK in vars(GenerationMixin):
        return
    setattr(GenerationMixin, WRAPPED_MARK, True)
    _wrap_generate(handler)
    _wrap("_validate_generation_mode", functools.partial(_validation, handler))
    _wrap("_assisted_decoding", functools.partial(_decoding, handler))
    _wrap("_get_candidate_generator", functools.partial(_candidates, handler))


def remove() -> None:
    """Unwrap the methods inside `generate`."""
    for name in _OWN:
        setattr(GenerationMixin, name, _OWN[name])
    _OWN.clear()


def _wrap(name: str, wrapper) -> None:
    own = vars(GenerationMixin).get(name)
    if own is not None:  # else the guard reports a missing point, and no draft reaches it
        _OWN[name] = own
        setattr(GenerationMixin, name, functools.wraps(own)(wrapper(own)))


def _wrap_generate(handler: Handler) -> None:
    own = GenerationMixin.generate
    names = list(inspect.signature(own).parameters)
    place = names.index("assistant_model") - 1 if "assistant_model" in names else len(names)

    @functools.wraps(own)
    def generate(self, *args, **kwargs):
        assistant = args[place] if len(args) > place else kwargs.get("assistant_model")
        given = dict(zip(names[1:], args, strict=False)) | kwargs
        draft = handler.attached(self, given) if assistant is None else handler.accepted(self, assistant, given)
        if draft is None:
            return own(self, *args, **kwargs)
        given["assistant_model"] = draft
        plain = handler.plain(self, own, given)
        if plain is not None:
            return plain
        return handler.attached_call(self, own, given) if assistant is None else own(self, **given)

    GenerationMixin.generate = generate


def _validation(handler: Handler, own):
    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        draft = handler.draft_of(generation_mode_kwargs.get("assistant_model"))
        if draft is None:
            return own(self, generation_mode, generation_config, generation_mode_kwargs)
        handler.validate(self, draft, generation_mode, generation_config, generation_mode_kwargs)
        if handler.decodes(draft):
            return None
        given = generation_mode_kwargs | {"assistant_model": handler.fitted(self, draft)}
        return own(self, generation_mode, generation_config, given)  # transformers' loop decodes, so its checks apply

    return _validate_generation_mode


def _decoding(handler: Handler, own):
    def _assisted_decoding(self, input_ids, *args, assistant_model=None, **kwargs):
        draft = handler.draft_of(assistant_model)
        if draft is None:
            return own(self, input_ids, *args, assistant_model=assistant_model, **kwargs)
        if not handler.decodes(draft):
            handler.validate_cache(self, input_ids, kwargs)
            return own(self, input_ids, *args, assistant_model=assistant_model, **kwargs)
        for name in _FOR_ASSISTANTS:
            kwargs.pop(name, None)
        names = ("logits_processor", "stopping_criteria", "generation_config")
        prepared = dict(zip(names, args, strict=False)) | {name: kwargs.pop(name) for name in names if name in kwargs}
        prepared["streamer"] = kwargs.pop("streamer", None)
        return handler.decode(self, draft, input_ids, prepared, kwargs)

    return _assisted_decoding


def _candidates(handler: Handler, own):
    def _get_candidate_generator(self, *args, assistant_model=None, **kwargs):
        draft = handler.draft_of(assistant_model)
        if draft is None:
            return own(self, *args, assistant_model=assistant_model, **kwargs)
        return handler.candidates(self, draft, **kwargs)

    return _get_candidate_generator
