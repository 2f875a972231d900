"""What a call over static shapes is: `cache_implementation="static"`, or a caller's `StaticCache`, beside a draft.

Passes have one number of sequences, of nodes and of slots for the whole call, so that the target's can be compiled
where `generate` would compile its own, and replayed as CUDA graphs. Does not know trees.
"""

import weakref
from collections.abc import Callable

import torch
from transformers import CompileConfig, DynamicCache, GenerationConfig, PreTrainedModel, StaticCache

from ...compat.caches import (
    DynamicLayer,
    SlidingLayer,
    dynamic_copy,
    keeps_every_column,
    new_static_cache,
    static_lengths,
)
from ...compat.calls import cache_of, compiled_call, makes_dynamic_cache, put_cache, would_compile
from ...errors import CallRefused
from ...target.layer_inputs import needs_layer_inputs
from ...target.mode import DecodingMode, decoding_mode, is_looped
from ..ops.storage import Shelf, rounded


PLAIN_LAYERS = (DynamicLayer, SlidingLayer)
STATIC_REQUESTED = "_hf_eagle3_static"  # among the attributes of a call's configuration
KEPT_SLOTS = Shelf()  # by target
# Targets that gave `hidden_states` before. For the first such pass transformers installs hooks under a lock, which
# dynamo cannot trace, so that it runs uncompiled.
_WARMED_UP: weakref.WeakSet = weakref.WeakSet()


def stash_static_request(config: GenerationConfig) -> None:
    """
    Remember `cache_implementation="static"` and put "dynamic" into a call's configuration before `generate` reads it:
    its static cache has no room for a tree (and before transformers 5.15 there is none beside a draft).
    """
    if config.cache_implementation == "static":
        vars(config)[STATIC_REQUESTED] = True
        config.cache_implementation = "dynamic"


def asks_for_static(config: GenerationConfig) -> bool:
    """Whether `stash_static_request` found something in a call's configuration."""
    return STATIC_REQUESTED in vars(config)


def plain_static_cache(
    model: PreTrainedModel, config: GenerationConfig, input_ids: torch.Tensor, model_kwargs: dict
) -> StaticCache | None:
    """The empty cache that plain `generate` would make for a call that asks for static shapes; `None` for others."""
    if not asks_for_static(config):
        return None
    embeds, length = model_kwargs.get("inputs_embeds"), config.max_length - 1
    if embeds is not None and embeds.shape[1] != input_ids.shape[1]:  # else `max_length` counts the prompt already
        length += embeds.shape[1]
    # transformers 5.8 has no `max_cache_len`.
    length = max(length, config.to_dict().get("max_cache_len") or 0)
    return new_static_cache(model.config.get_text_config(decoder=True), length)


class StaticShapes:
    """
    What the passes of one call share.

    Args:
        model: The target.
        config: The call's.
        cache: See `plain_static_cache`, or the caller's; filled at the end, if it is handed back.
        is_callers: Whether the caller gave it.

    Attributes:
        compiles: Whether `generate` would compile its own steps here, so that ours are.
    """

    def __init__(self, model: PreTrainedModel, config: GenerationConfig, cache: StaticCache, is_callers: bool):
        self.model, self.config, self.cache, self.is_callers = model, config, cache, is_callers
        self.compiles = would_compile(model, cache, config)

    def forward(self, inputs: dict):
        """The outputs of the target's pass."""
        compiles = self.compiles and self.model in _WARMED_UP
        call = compiled_call(self.model, self.config) if compiles else self.model
        self.new_cycle()
        outputs = call(**inputs, return_dict=True)
        _WARMED_UP.add(self.model)
        return outputs

    def compiled(self, function: Callable) -> Callable:
        """`function`, compiled as `generate` compiles the target's pass."""
        if not self.compiles:
            return function
        return torch.compile(function, **(self.config.compile_config or CompileConfig()).to_dict())

    def num_slots(self, columns: int, room: int) -> int:
        """
        Slots for `columns` tokens and `room` more; for as many as the cache has, if those are more (`max_cache_len`),
        so that a later, longer call finds the same.
        """
        return rounded(max(columns, *static_lengths(self.cache)) + room)

    def new_cycle(self) -> None:
        """A CUDA graph's outputs may be overwritten from here on."""
        if self.compiles:
            torch.compiler.cudagraph_mark_step_begin()


def static_shapes(
    model: PreTrainedModel, config: GenerationConfig, input_ids: torch.Tensor, model_kwargs: dict
) -> StaticShapes | None:
    """
    What the call needs if it asks for static shapes, by `cache_implementation` or by a `StaticCache` of the caller's,
    else `None`. The prompt is then read into a dynamic cache that knows no windows.

    Raises:
        CallRefused: the target or another option does not go with it.
    """
    own = cache_of(model_kwargs)
    own = own if isinstance(own, StaticCache) else None
    if own is None and not asks_for_static(config):
        return None
    asked = "`cache_implementation` 'static'" if own is None else "a `StaticCache`"
    mode = static_mode(model)
    if mode.kind != "tree":
        raise CallRefused(
            f"{asked} does not go with a draft on {type(model).__name__}: {mode.reason}. Leave it out (the dynamic "
            "cache)."
        )
    if own is not None and not keeps_every_column(own):
        raise CallRefused(
            f"{asked} whose layers forget columns behind their sliding window does not go with a draft; make it no "
            'longer than the window (from transformers 5.24 on), or give `cache_implementation="static"`.'
        )
    if config.return_dict_in_generate and config.output_attentions:
        raise CallRefused(f"`output_attentions` with {asked} does not go with a draft; leave one out.")
    put_cache(model_kwargs, dynamic_copy(own))
    cache = own or plain_static_cache(model, config, input_ids, model_kwargs)
    return StaticShapes(model, config, cache, own is not None)


def static_mode(model: PreTrainedModel) -> DecodingMode:
    """Whether a target takes trees over static shapes, and why not."""
    config = model.config.get_text_config(decoder=True)
    cache = DynamicCache(config=config) if makes_dynamic_cache(model) else None
    mode = decoding_mode(model, cache)
    if mode.kind != "tree":
        return mode
    if needs_layer_inputs(config):
        return DecodingMode("refused", "hooks on its layers make biases or masks that grow with the text")
    if is_looped(config):
        return DecodingMode("refused", "its outputs show what layers that run several times left each time")
    strange = {type(layer).__name__ for layer in cache.layers if type(layer) not in PLAIN_LAYERS}
    if strange:
        return DecodingMode("refused", f"cache layers of type {', '.join(sorted(strange))} hold more than slots")
    return mode
