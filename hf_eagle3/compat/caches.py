"""Cache layers of transformers: their kinds, their fields, and the base class of ours. Does not know trees.

A column is an index on the cache's sequence axis, padding included. Shape letters: B batch, C cached columns, n new
columns, A sequences to keep, h key/value heads, d head size.
"""

from typing import Any

import torch
from transformers import Cache, DynamicCache, StaticCache

from .points import is_missing, uses
from .versions import is_at_least


CACHE_UTILS = "transformers.cache_utils"
SLIDING = f"{CACHE_UTILS}.DynamicSlidingWindowLayer"
CacheLayer = uses(CACHE_UTILS, "CacheLayerMixin", "base class of layers that hold a tree")
DynamicLayer = uses(CACHE_UTILS, "DynamicLayer", "keys and values of the prompt")
SlidingLayer = uses(CACHE_UTILS, "DynamicSlidingWindowLayer", "the same with a sliding window")
StaticLayer = uses(CACHE_UTILS, "StaticLayer", "static caches passed in and returned")
StaticSlidingLayer = uses(CACHE_UTILS, "StaticSlidingWindowLayer", "the same with a sliding window")
StateLayer = uses(CACHE_UTILS, "LinearAttentionCacheLayerMixin", "states that cannot branch")
# Layers without keys of their own; none before 5.18.
EmptyLayer = uses(CACHE_UTILS, "DummyLayer", "layers that share another's keys", since="5.18")
# Also caches the keys of an indexer, which selects what queries attend to; before 5.13 the indexer stores them itself.
IndexedLayer = uses(CACHE_UTILS, "DynamicIndexedLayer", "keys of an indexer", since="5.13")
HAS_INDEXED_LAYERS = not is_missing(IndexedLayer) and issubclass(IndexedLayer, DynamicLayer)

KEYS_AND_VALUES, INDEXER_KEYS = ("keys", "values"), "indexer_keys"


def _filled_cache() -> DynamicCache:
    cache, one = DynamicCache(), torch.zeros(1, 1, 1, 1)
    cache.update(one, one, 0)
    return cache


def _filled_layer():
    return _filled_cache().layers[0]


def _filled_indexer():
    layer = IndexedLayer()
    layer.update_indexer(torch.zeros(1, 1, 1))
    return layer


def _static_layer():
    return StaticLayer(max_cache_len=1)


def _sliding_layer():
    return SlidingLayer(sliding_window=2)


_FIELDS = "contents of a cache"
for _name in ("layers", "offloading"):
    uses("transformers.Cache", _name, _FIELDS, holder=_filled_cache, is_word=True)
for _name in (*KEYS_AND_VALUES, "device"):
    uses("transformers.cache_utils.DynamicLayer", _name, _FIELDS, holder=_filled_layer, is_word=True)
uses("transformers.cache_utils.DynamicLayer", "is_initialized", _FIELDS, holder=_filled_layer)
uses(
    "transformers.cache_utils.DynamicSlidingWindowLayer",
    "sliding_window",
    _FIELDS,
    holder=_sliding_layer,
    is_word=True,
)
uses(SLIDING, "cumulative_length", _FIELDS, holder=_sliding_layer)
for _name in (INDEXER_KEYS, "is_indexer_initialized"):
    uses(
        "transformers.cache_utils.DynamicIndexedLayer",
        _name,
        _FIELDS,
        holder=_filled_indexer,
        since="5.13",
        is_word=_name == INDEXER_KEYS,
    )
for _name in ("update", "lazy_initialization", "get_mask_sizes"):
    uses("transformers.cache_utils.CacheLayerMixin", _name, "what models ask of a layer", is_word=_name == "update")
uses("transformers.cache_utils.CacheLayerMixin", "get_seq_length", "what models ask of a layer", is_word=True)
uses("transformers.cache_utils.DynamicIndexedLayer", "update_indexer", "what models ask of a layer", since="5.13")
uses(
    "transformers.cache_utils.StaticLayer",
    "max_cache_len",
    _FIELDS,
    holder=_static_layer,
    is_word=True,
)
uses("transformers.cache_utils.StaticLayer", "is_croppable", _FIELDS, holder=_static_layer, since="5.24")
uses("transformers.Cache", "reorder_cache", "dropping finished sequences from a cache with states")


class OwnLayer(CacheLayer):
    """
    Adapter from the interface that models and mask builders call to the methods of our cache layers:

    - `write(keys, values)`: stores those of a pass, (B, h, n, d), and returns the keys and values to attend to,
    - `write_indexer(keys)`: the same for an indexer's keys, (B, n, d),
    - `columns_of_pass(num_queries)`: (number of mask columns, index of the first one),
    - `columns_before()`: columns before the queries of the pass.
    """

    is_compileable = False

    def __init__(self):
        super().__init__()
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """No-op: storage is allocated up front."""

    def update(self, key_states, value_states, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """See `write`."""
        return self.write(key_states, value_states)

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """See `write_indexer`."""
        return self.write_indexer(indexer_key_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """See `columns_of_pass`."""
        return self.columns_of_pass(query_length)

    def get_seq_length(self) -> Any:
        """See `columns_before`."""
        return self.columns_before()

    def get_max_length(self) -> int:
        """-1: unlimited."""
        return -1

    # The name before 5.13.
    get_max_cache_shape = get_max_length


def holds_columns(layer: CacheLayer) -> bool:
    """Whether a layer already holds keys and values."""
    return not isinstance(layer, EmptyLayer) and layer.is_initialized


def is_unused(cache: Cache) -> bool:
    """Whether no attention layer has written into the cache."""
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    return not cache.layers or (bool(layers) and not any(layer.is_initialized for layer in layers))


def window_of(layer: CacheLayer) -> int | None:
    """The sliding window of a layer in tokens, the query's own included; `None` without one."""
    return layer.sliding_window if isinstance(layer, SlidingLayer) else None


def has_indexer(layer: CacheLayer) -> bool:
    """Whether a layer holds indexer keys."""
    return isinstance(layer, IndexedLayer) and layer.is_indexer_initialized


def part_names(layer: CacheLayer) -> tuple[str, ...]:
    """Names of a layer's tensors, for `part` and `put_part`."""
    return KEYS_AND_VALUES + (INDEXER_KEYS,) * has_indexer(layer)


def part(layer: CacheLayer, name: str) -> torch.Tensor:
    """A tensor of a layer as (B, h, C, d); indexer keys have h = 1."""
    found = getattr(layer, name)
    return found[:, None] if name == INDEXER_KEYS else found


def put_part(layer: CacheLayer, name: str, tensor: torch.Tensor | None) -> None:
    """Set what `part` reads; `None` frees the memory."""
    setattr(layer, name, tensor[:, 0] if name == INDEXER_KEYS and tensor is not None else tensor)


def make_empty(layer: CacheLayer) -> None:
    """Reset a layer to its state before the first token."""
    vars(layer).update(keys=None, values=None, is_initialized=False)
    if has_indexer(layer):
        vars(layer).update(indexer_keys=None, is_indexer_initialized=False)


def set_length(layer: CacheLayer, length: int) -> None:
    """Set how many tokens a sliding layer has seen; no-op for others."""
    if isinstance(layer, SlidingLayer):
        layer.cumulative_length = length


def drop_columns(layer: CacheLayer, count: int) -> None:
    """Drop the last `count` columns of a layer without a window."""
    layer.keys, layer.values = layer.keys[..., :-count, :], layer.values[..., :-count, :]


def cached_columns(cache: Cache | None, otherwise: int) -> int:
    """Columns of the first attention layer with content, or `otherwise`; layers with states have none."""
    for layer in cache.layers if isinstance(cache, Cache) else ():
        if isinstance(layer, (DynamicLayer, StaticLayer)) and layer.is_initialized:
            return int(layer.get_seq_length())
    return otherwise


def can_go_back(cache: Cache) -> bool:
    """Whether transformers' own loop can drop rejected tokens: since 5.17 it can record linear-attention states."""
    return hasattr(cache, "activate_past_recording") or not any(isinstance(part, StateLayer) for part in cache.layers)


def select_sequences(cache: Cache, index: torch.Tensor) -> None:
    """Keep only the sequences at `index` (A,)."""
    cache.reorder_cache(index)


# Since 5.17 `generate` marks a cache passed by the caller; before, any cache may be the caller's.
_MARKS_CACHES = is_at_least("5.17")


def is_user_provided(cache: Cache | None) -> bool:
    """Whether the cache outlives the call."""
    return bool(getattr(cache, "_is_user_defined", not _MARKS_CACHES))


def new_static_cache(config, length: int) -> StaticCache:
    """An empty static cache of `length` columns for a model's text configuration."""
    return StaticCache(config=config, max_cache_len=length)


def static_lengths(cache: StaticCache) -> list[int]:
    """Columns of each layer of a static cache."""
    return [layer.max_cache_len for layer in cache.layers]


def keeps_every_column(cache: StaticCache) -> bool:
    """Whether no layer of a static cache overwrites columns. Sliding layers may; before 5.24 they do not say."""
    return all(
        type(layer) is StaticLayer or (type(layer) is StaticSlidingLayer and getattr(layer, "is_croppable", False))
        for layer in cache.layers
    )


def dynamic_copy(cache: StaticCache | None) -> DynamicCache:
    """A static cache's content as a growing cache without windows."""
    copy, length = DynamicCache(), cached_columns(cache, 0)
    for index, layer in enumerate(cache.layers if length else ()):
        copy.update(layer.keys[:, :, :length].clone(), layer.values[:, :, :length].clone(), index)
    return copy
