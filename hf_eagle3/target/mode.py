"""Which draft shape a target can verify (tree, chain or none) and why. Does not know drafts or generation options."""

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
from ..compat.models import attention_name, optional_field
from ..compat.versions import transformers_version
from ..errors import CallRefused
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


# Architectures where a multi-token forward, or a second one, differs from token-by-token decoding, so that nothing can
# be verified. Layers that lose their states are detected by `multi_token.py` instead. (transformers 5.23)
_COUNTS = "it derives positions from the token ids of each pass"
REFUSED = {
    "cpmant": "every token of a pass attends to later ones",
    "git": "image keys precede the prompt in its cache and have no token ids",
    "kosmos_2_5_text_model": _COUNTS,
    "kosmos_2_text_model": _COUNTS,
    "recurrent_gemma": "its layers hold states that a pass over several tokens resets",
    "xlstm": "its own cache class cannot be rolled back",
    "voxtral_realtime_text": "every token consumes a piece of the audio",
}
# Attention whose caches cannot branch. (transformers 5.23)
CHAIN_ONLY = {
    "deepseek_v4": "its caches pool several tokens into one entry, which branches of a tree cannot share",
    "minimax_m3_vl_text": "it attends to blocks of neighbouring slots, which branches of a tree would share",
}
# Compressed, sparse or windowed attention that mixes slot indices and positions: with left padding, a multi-token
# forward differs from token-by-token decoding. (transformers 5.23)
UNPADDED_ONLY = ("deepseek_v4", "minimax_m3_vl_text", "unlimited_ocr_text")
OWN_CACHE = ("minimax",)  # the model creates a cache of its own class; `generate` passes none
KEY_LIMIT = "keep_window_size"  # Doge: beyond it, only the keys with the largest gates are attended to
TREE_ATTENTION = ("sdpa", "eager")  # take an additive 4-D mask; sdpa replaces the others where it can


@dataclass(frozen=True)
class DecodingMode:
    """`kind` is "tree", "chain" or "refused"; `reason` says why."""

    kind: str
    reason: str


def decoding_mode(target: PreTrainedModel, cache: Cache | None) -> DecodingMode:
    """What `target` can verify, given how it was loaded and the cache that `generate` made for it."""
    config = target.config.get_text_config(decoder=True)
    fault = _why_refused(target, cache)
    if fault is not None:
        return DecodingMode("refused", fault)
    known = (DynamicLayer, SlidingLayer, IndexedLayer, EmptyLayer)
    strange = [type(layer).__name__ for layer in cache.layers if type(layer) not in known]
    if config.model_type in OWN_CACHE:
        return DecodingMode("chain", "linear-attention states cannot branch; they are copied and restored")
    if any(isinstance(layer, StateLayer) for layer in cache.layers):
        fault = chain_fault(target)
        if fault is not None:
            return DecodingMode("refused", fault)
        return DecodingMode("chain", "recurrent or convolution states cannot branch; they are copied and restored")
    if cache.offloading or any("Static" in name or "Quant" in name for name in strange):
        return DecodingMode(
            "refused",
            f"cache layers of type {', '.join(sorted(set(strange))) or 'offloaded'} are not supported; use the "
            'default cache, or `cache_implementation="static"` without `past_key_values`',
        )
    windows = {window_of(layer) for layer in cache.layers} - {None}
    if len(windows) > 1:
        return DecodingMode("chain", f"sliding windows of several sizes ({sorted(windows)})")
    if optional_field(config, "cross_attention_layers"):
        return DecodingMode("chain", "cross-attention layers cache image keys beside those of the text")
    if config.model_type in CHAIN_ONLY:
        if not strange:
            return DecodingMode(
                "refused", f"transformers {transformers_version} gives it a plain cache when a draft is passed"
            )
        return DecodingMode("chain", CHAIN_ONLY[config.model_type])
    if strange:
        return DecodingMode(
            "chain", f"cache layers of type {', '.join(sorted(set(strange)))} hold more than keys and values"
        )
    if optional_field(config, "alibi") and not needs_layer_inputs(config):
        return DecodingMode("chain", "ALiBi of an unknown architecture")
    takes_trees = attention_name(config) in TREE_ATTENTION
    if not takes_trees and not sdpa_stands_in(target):
        return DecodingMode(
            "chain",
            f"{attention_name(config)} takes no tree mask, and sdpa cannot replace it in this architecture; load with "
            "eager attention for trees",
        )
    derives_positions = target.config.model_type in NO_POSITION_IDS + POSITION_IDS_BY_KEYWORD
    if "position_ids" not in inspect.signature(target.forward).parameters and not derives_positions:
        return DecodingMode("chain", "the model takes no `position_ids`")
    if needs_layer_inputs(config) and is_compiled(target):
        return DecodingMode("chain", "a tree needs hooks on its layers, which a compiled model ignores")
    if not mask_kinds(config).keys() <= KNOWN_KINDS:
        return DecodingMode("chain", f"unknown attention kinds {sorted(mask_kinds(config).keys() - KNOWN_KINDS)}")
    if not takes_trees:
        return DecodingMode("tree", f"{attention_name(config)} takes no tree mask: sdpa verifies trees")
    return DecodingMode("tree", "attention only, keys and values per slot")


def _why_refused(target: PreTrainedModel, cache: Cache | None) -> str | None:
    """Why nothing can be drafted for `target`, whatever its cache layers are; `None` if something may."""
    config = target.config.get_text_config(decoder=True)
    if target.config.is_encoder_decoder:
        return "encoder-decoder models are not supported; use a decoder-only target"
    if not isinstance(cache, Cache):
        return "the model has no transformers `Cache`, which drafting requires"
    if config.model_type in REFUSED:
        return REFUSED[config.model_type]
    if optional_field(config, "recurrent_kv_cache_mode") == "last_loop":  # Dory
        return "earlier loops read keys of the last loop, which only tokens of previous passes have"
    if config.model_type == "glm_moe_dsa" and not HAS_INDEXED_LAYERS:
        return f"transformers {transformers_version} keeps the indexer's keys outside the cache"
    if cache_argument(target.forward) is None:
        return "the model reads no cache, which drafting requires"
    return None


def accepted_mode(target: PreTrainedModel, cache: Cache | None) -> DecodingMode:
    """
    `decoding_mode` of a target that can verify drafts.

    Raises:
        CallRefused: it cannot; the message gives the reason.
    """
    mode = decoding_mode(target, cache)
    if mode.kind == "refused":
        raise CallRefused(f"`assistant_model` cannot speed up {type(target).__name__}: {mode.reason}.")
    return mode


def is_looped(config) -> bool:
    """Whether layers run several times per pass, and `hidden_states` lists every run (Dory, transformers 5.24)."""
    return (optional_field(config, "n_recurrent_loops") or 1) > 1


def own_cache(target: PreTrainedModel) -> Cache | None:
    """An empty cache of the architecture's own class (`OWN_CACHE`); `None` for all others."""
    if target.config.model_type not in OWN_CACHE:
        return None
    classes = vars(sys.modules[type(target).__module__])
    return classes["MiniMaxCache"]()
