"""Cache layers of transformers: their kinds, their fields, and the base of ours.

Shape letters: B batch, C cached columns, n new columns, h key/value heads, d head size.
"""

from typing import Any

import torch
from transformers import Cache, DynamicCache, StaticCache

from .points import is_missing, uses
from .versions import is_at_least


CACHE_UTILS = "transformers.cache_utils"
SLIDING = f"{CACHE_UTILS}.DynamicSlidingWindowLayer"
CacheLayer = uses(CACHE_UTILS, "CacheLayerMixin", "base of the layers that hold a tree")
DynamicLayer = uses(CACHE_UTILS, "DynamicLayer", "keys and values of the prompt")
SlidingLayer = uses(CACHE_UTILS, "DynamicSlidingWindowLayer", "the same with a sliding window")
StaticLayer = uses(CACHE_UTILS, "StaticLayer", "static caches handed in and back")
StaticSlidingLayer = uses(CACHE_UTILS, "StaticSlidingWindowLayer", "the same with a sliding window")
StateLayer = uses(CACHE_UTILS, "LinearAttentionCacheLayerMixin", "states that cannot branch")
# Layers without keys of their own; before 5.18 there are none.
EmptyLayer = uses(CACHE_UTILS, "DummyLayer", "layers that share another's keys", since="5.18")
# With the keys of an indexer, which chooses what queries attend to; before 5.13 indexers keep their keys themselves.
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


_FIELDS = "what a cache holds"
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
uses("transformers.Cache", "reorder_cache", "sequences that ended leave a cache with states")


class OwnLayer(CacheLayer):
    """
    A cache layer of ours, under the names by which models and mask builders ask it. Subclasses have

    - `write(keys, values)`: (B, h, n, d) of a pass; returns the keys and values to attend to,
    - `write_indexer(keys)`: the same for an indexer's keys (B, n, d),
    - `columns_of_pass(num_queries)`: (columns of its mask, the first one's number),
    - `columns_before()`: columns before the queries of the pass.
    """

    is_compileable = False

    def __init__(self):
        super().__init__()
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: storage exists from the start."""

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
        """-1: as many as needed."""
        return -1

    # Before 5.13 models ask by this name.
    get_max_cache_shape = get_max_length


def holds_columns(layer: CacheLayer) -> bool:
    """Whether a layer has keys and values already."""
    return not isinstance(layer, EmptyLayer) and layer.is_initialized


def is_unused(cache: Cache) -> bool:
    """Whether no attention layer has written into the cache."""
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    return not cache.layers or (bool(layers) and not any(layer.is_initialized for layer in layers))


def window_of(layer: CacheLayer) -> int | None:
    """Tokens that a layer's queries attend to at most, themselves included."""
    return layer.sliding_window if isinstance(layer, SlidingLayer) else None


def has_indexer(layer: CacheLayer) -> bool:
    """Whether a layer holds keys of an indexer."""
    return isinstance(layer, IndexedLayer) and layer.is_indexer_initialized


def part_names(layer: CacheLayer) -> tuple[str, ...]:
    """Names of the tensors of a layer, for `part` and `put_part`."""
    return KEYS_AND_VALUES + (INDEXER_KEYS,) * has_indexer(layer)


def part(layer: CacheLayer, name: str) -> torch.Tensor:
    """A tensor of a layer as (B, h, C, d); an indexer's keys have one head."""
    found = getattr(layer, name)
    return found[:, None] if name == INDEXER_KEYS else found


def put_part(layer: CacheLayer, name: str, tensor: torch.Tensor | None) -> None:
    """Set what `part` reads; `None` frees it."""
    setattr(layer, name, tensor[:, 0] if name == INDEXER_KEYS and tensor is not None else tensor)


def make_empty(layer: CacheLayer) -> None:
    """As before the first token."""
    vars(layer).update(keys=None, values=None, is_initialized=False)
    if has_indexer(layer):
        vars(layer).update(indexer_keys=None, is_indexer_initialized=False)


def set_length(layer: CacheLayer, length: int) -> None:
    """Tell a layer with a window how many tokens it has seen."""
    if isinstance(layer, SlidingLayer):
        layer.cumulative_length = length


def drop_columns(layer: CacheLayer, count: int) -> None:
    """Forget the last `count` columns of a layer without a window."""
    layer.keys, layer.values = layer.keys[..., :-count, :], layer.values[..., :-count, :]


def cached_columns(cache: Cache | None, otherwise: int) -> int:
    """Columns of the first layer that counts them; layers with states do not."""
    for layer in cache.layers if isinstance(cache, Cache) else ():
        if isinstance(layer, (DynamicLayer, StaticLayer)) and layer.is_initialized:
            return int(layer.get_seq_length())
    return otherwise


def can_go_back(cache: Cache) -> bool:
    """Whether transformers' own loop can drop rejected tokens: states of linear attention are recorded since 5.17."""
    return hasattr(cache, "activate_past_recording") or not any(isinstance(part, StateLayer) for part in cache.layers)


def select_sequences(cache: Cache, index: torch.Tensor) -> None:
    """Keep the sequences at `index` (A,)."""
    cache.reorder_cache(index)


# From 5.17 on `generate` marks a cache that the caller passed; before, any cache might be the caller's.
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
    """Whether no layer of a static cache forgets columns. With a window it may; before 5.24 it does not tell."""
    return all(
        type(layer) is StaticLayer or (type(layer) is StaticSlidingLayer and getattr(layer, "is_croppable", False))
        for layer in cache.layers
    )


def dynamic_copy(cache: StaticCache | None) -> DynamicCache:
    """The columns that a static cache holds, in a cache that grows and knows no windows."""
    copy, length = DynamicCache(), cached_columns(cache, 0)
    for index, layer in enumerate(cache.layers if length else ()):
        copy.update(layer.keys[:, :, :length].clone(), layer.values[:, :, :length].clone(), index)
    return copy
