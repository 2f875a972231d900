"""The fallback policy: whether a target verifies trees, chains or nothing, and why."""

import inspect
import sys
from dataclasses import dataclass

from transformers import Cache, PreTrainedModel

from ..compat.caches import (
    HAS_INDEXED_LAYERS,
    DynamicLayer,
    EmptyLayer,
    IndexedLayer,
    SlidingLayer,
    StateLayer,
    window_of,
)
from ..compat.calls import cache_argument
from ..compat.models import attention_name
from ..compat.versions import host_version
from .layer_inputs import (
    KNOWN_KINDS,
    NO_POSITION_IDS,
    POSITION_IDS_BY_KEYWORD,
    mask_kinds,
    needs_layer_inputs,
)
from .multi_token import chain_fault
from .parts import (
    is_compiled,
    sdpa_stands_in,
)


# Architectures where a pass over several tokens, or a second pass, is not what token by token would be, so that
# nothing can be verified. What forgets its states there is found out in `multi_token.py`. (transformers 5.23)
_COUNTS = "it counts positions from the token ids of each pass"
REFUSED = {
    "cpmant": "every token of a pass sees those behind it",
    "git": "its images stand in the cache before the prompt, with no tokens of their own",
    "kosmos_2_5_text_model": _COUNTS,
    "kosmos_2_text_model": _COUNTS,
    "recurrent_gemma": "it keeps states in its layers, which a pass over several tokens starts afresh",
    "xlstm": "its cache is of a class of its own, which cannot be taken back",
    "voxtral_realtime_text": "it listens to a piece of its audio with every token",
}
# Attention whose caches cannot branch. (transformers 5.23)
CHAIN_ONLY = {
    "deepseek_v4": "its caches pool several tokens into one entry, which branches of a tree cannot share",
    "minimax_m3_vl_text": "it attends to blocks of neighbouring slots, which branches of a tree would share",
}
# Compressed, sparse or windowed attention that counts by slot in one place and by position in another: with padding on
# the left, a pass over several tokens is not what token by token would be. (transformers 5.23)
UNPADDED_ONLY = ("deepseek_v4", "minimax_m3_vl_text", "unlimited_ocr_text")
OWN_CACHE = ("minimax",)  # with a class of its own, which `generate` leaves to the model to make
KEY_LIMIT = "keep_window_size"  # Doge: past it only the keys of the largest gates are attended to
TREE_ATTENTION = ("sdpa", "eager")  # implementations that take an additive 4-D mask; sdpa stands in for others


@dataclass(frozen=True)
class DecodingMode:
    """`kind` is "tree", "chain" or "refused"; `reason` says why."""

    kind: str
    reason: str


def decoding_mode(target: PreTrainedModel, cache: Cache | None) -> DecodingMode:
    """The fallback policy, decided before generation from the model, the way it is loaded and its cache."""
    config = target.config.get_text_config(decoder=True)
    if target.config.is_encoder_decoder:
        return DecodingMode("refused", "encoder-decoder models are not supported; use a decoder-only target")
    if not isinstance(cache, Cache):
        return DecodingMode("refused", "the model has no transformers `Cache`; drafts need one to build on")
    if config.model_type in REFUSED:
        return DecodingMode("refused", REFUSED[config.model_type])
    if getattr(config, "recurrent_kv_cache_mode", None) == "last_loop":  # Dory
        return DecodingMode("refused", "its first loops see what the last loop leaves, only of tokens of other passes")
    if config.model_type == "glm_moe_dsa" and not HAS_INDEXED_LAYERS:
        return DecodingMode("refused", f"transformers {host_version} keeps keys of its indexer outside the cache")
    parameters = inspect.signature(target.forward).parameters
    if cache_argument(target.forward) is None:
        return DecodingMode("refused", "the model reads no cache; drafts need one to build on")
    known = (DynamicLayer, SlidingLayer, IndexedLayer, EmptyLayer)
    strange = [type(layer).__name__ for layer in cache.layers if type(layer) not in known]
    if config.model_type in OWN_CACHE:
        return DecodingMode("chain", "states of linear attention cannot branch; they are copied instead")
    if any(isinstance(layer, StateLayer) for layer in cache.layers):
        fault = chain_fault(target)
        if fault is not None:
            return DecodingMode("refused", fault)
        return DecodingMode("chain", "recurrent or convolution states cannot branch; they are copied instead")
    if cache.offloading or any("Static" in name or "Quant" in name for name in strange):
        return DecodingMode(
            "refused",
            f"cache layers of type {', '.join(sorted(set(strange))) or 'offloaded'} are not supported; use the "
            'default, or `cache_implementation="static"` and no cache of your own',
        )
    windows = {window_of(layer) for layer in cache.layers} - {None}
    if len(windows) > 1:
        return DecodingMode("chain", f"windows of several sizes ({sorted(windows)})")
    if getattr(config, "cross_attention_layers", None):
        return DecodingMode("chain", "cross-attention layers keep an image's keys beside those of the text")
    if config.model_type in CHAIN_ONLY:
        if not strange:
            return DecodingMode("refused", f"transformers {host_version} gives it a plain cache beside a draft")
        return DecodingMode("chain", CHAIN_ONLY[config.model_type])
    if strange:
        return DecodingMode(
            "chain", f"cache layers of type {', '.join(sorted(set(strange)))} hold more than keys and values"
        )
    if getattr(config, "alibi", False) and not needs_layer_inputs(config):
        return DecodingMode("chain", "ALiBi of a model unknown here")
    takes_trees = attention_name(config) in TREE_ATTENTION
    if not takes_trees and not sdpa_stands_in(target):
        return DecodingMode(
            "chain",
            f"{attention_name(config)} takes no tree mask, and sdpa cannot stand in for it in this architecture; "
            "load with eager attention for trees",
        )
    places_itself = target.config.model_type in NO_POSITION_IDS + POSITION_IDS_BY_KEYWORD
    if "position_ids" not in parameters and not places_itself:
        return DecodingMode("chain", "the model takes no `position_ids`")
    if needs_layer_inputs(config) and is_compiled(target):
        return DecodingMode("chain", "trees need hooks on its layers, which a compiled model ignores")
    if not mask_kinds(config).keys() <= KNOWN_KINDS:
        return DecodingMode("chain", f"attention kinds {sorted(mask_kinds(config).keys() - KNOWN_KINDS)}")
    if not takes_trees:
        return DecodingMode("tree", f"{attention_name(config)} takes no tree mask: sdpa verifies trees")
    return DecodingMode("tree", "attention only, keys and values per slot")


def accepted_mode(target: PreTrainedModel, cache: Cache | None) -> DecodingMode:
    """
    `decoding_mode` of a target that allows speculation.

    Raises:
        ValueError: it does not, with the reason.
    """
    mode = decoding_mode(target, cache)
    if mode.kind == "refused":
        raise ValueError(f"`assistant_model` cannot speed up {type(target).__name__}: {mode.reason}.")
    return mode


def is_looped(config) -> bool:
    """Whether layers run several times in a pass, and outputs show each time (Dory, transformers 5.24)."""
    return (getattr(config, "n_recurrent_loops", None) or 1) > 1


def own_cache(target: PreTrainedModel) -> Cache | None:
    """An empty cache of the class that an architecture of `OWN_CACHE` has to itself; `None` for the others."""
    if target.config.model_type not in OWN_CACHE:
        return None
    classes = vars(sys.modules[type(target).__module__])
    return classes["MiniMaxCache"]()
