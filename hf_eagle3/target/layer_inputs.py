"""Attention kinds of a target, and the inputs that some decoder layers need replaced while a tree is verified.

Most targets take a 4-D mask and `position_ids` as arguments. Some derive a bias, a window or a position table from the
slot order, which is not the token order in a tree; hooks on their layers replace those values during verification.
Knows architectures by `model_type` and argument names; does not know trees or caches. (transformers 5.8 to 5.23)

Shape letters: A active sequences, N drafted nodes, K cache slots (prefix and nodes), h heads, d head size.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from ..compat.models import optional_field


FULL, INDEXED = "full_attention", "indexed_attention"
SLIDING, CHUNKED = "sliding_attention", "chunked_attention"
KNOWN_KINDS = {FULL, INDEXED, SLIDING, CHUNKED, "global", "local"}


@dataclass(frozen=True)
class Reach:
    """How far back a layer attends: `window` tokens including the query's own, or within its `chunk`; default: all."""

    window: int | None = None
    chunk: int | None = None

    @property
    def kept(self) -> int | None:
        """The size that transformers gives the cache layer of this kind."""
        return self.window if self.chunk is None else self.chunk


def mask_kinds(config) -> dict[str, Reach]:
    """Attention kinds of the model; where it takes masks as a dictionary, these are the keys."""
    if config.model_type == "gpt_neo":
        return {"global": Reach(), "local": Reach(window=config.window_size)}
    window, chunk = optional_field(config, "sliding_window"), optional_field(config, "attention_chunk_size")
    reaches = {SLIDING: Reach(window=window), CHUNKED: Reach(chunk=chunk)}
    if takes_mask_dictionary(config):
        return {kind: reaches.get(kind, Reach()) for kind in sorted(set(config.layer_types))}
    kind = SLIDING if window is not None else CHUNKED if chunk is not None else FULL
    return {kind: reaches.get(kind, Reach())}


def takes_mask_dictionary(config) -> bool:
    """Whether the model takes one mask per layer type, as transformers' `create_masks_for_generate` makes them."""
    return optional_field(config, "layer_types") is not None


@dataclass
class PassInputs:
    """Masks and positions of one verification pass."""

    masks: dict[str, torch.Tensor]  # additive, (A, 1, N + 1, K), by attention kind
    slot_positions: torch.Tensor | None  # (A, K): token positions, left padding not counted; only with hooks
    node_columns: torch.Tensor  # (A, N + 1): positions with left padding counted
    shared_by_layers: dict[Callable, dict] = field(default_factory=dict)

    @property
    def slot_columns(self) -> torch.Tensor:
        """Position of each slot with padding counted, (A, K)."""
        nodes = self.node_columns
        # A prefix slot's index is its column; a node's column is given by its depth, not by its slot.
        prefix = torch.arange(self.slot_positions.shape[1] - nodes.shape[1], device=nodes.device)
        return torch.cat((prefix.expand(nodes.shape[0], -1), nodes), dim=1)

    @property
    def mask(self) -> torch.Tensor:
        """The mask of a model with a single attention kind."""
        return next(iter(self.masks.values()))


class _PerSequenceBias:
    """
    A bias (A, h, 1, K) that poses as MPT's single (h, 1, K): its attention reads the sizes, slices, and adds it to the
    scores. Here slicing is a no-op (the size already fits) and the addition broadcasts per sequence.
    """

    def __init__(self, bias: torch.Tensor):
        self.bias, self.shape = bias, bias.shape[1:]

    def size(self, axis: int) -> int:
        return self.shape[axis]

    def __getitem__(self, index) -> "_PerSequenceBias":
        return self

    def __radd__(self, scores: torch.Tensor) -> torch.Tensor:
        return scores + self.bias.to(scores.device)


def _bias_at(positions: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Entries of a table (h, positions) at `positions` (A, K), as (A, h, 1, K)."""
    # Indexing the last axis gives (h, A, K): sequences come first in scores, and one bias serves all queries.
    return table[:, positions.to(table.device)].transpose(0, 1)[:, :, None]


def _once_per_pass(function: Callable[..., dict]) -> Callable[..., dict]:
    """Compute arguments that are the same for all layers in the first layer only."""

    @functools.wraps(function)
    def cached(arguments: dict, given: PassInputs, config, layer: int) -> dict:
        if function not in given.shared_by_layers:
            given.shared_by_layers[function] = function(arguments, given)
        return dict(given.shared_by_layers[function])  # a copy: the hook pops from it

    return cached


# ALiBi is linear in the key's position and softmax is invariant to a constant per query, so one bias per key position
# serves all nodes. Indexing the model's own table at token positions reproduces the numbers of plain `generate`.


@_once_per_pass
def _bloom(arguments: dict, given: PassInputs) -> dict:
    # (A * h, 1, K) -> (h, K): under the all-ones 2-D mask, every sequence has the same table.
    table = arguments["alibi"].unflatten(0, (given.slot_positions.shape[0], -1))[0, :, 0]
    return {"alibi": _bias_at(given.slot_positions, table).flatten(0, 1), "attention_mask": given.mask}


@_once_per_pass
def _falcon(arguments: dict, given: PassInputs) -> dict:
    biases, mask = arguments["alibi"], arguments["attention_mask"]
    # Falcon has already added the scaled bias to its causal mask; only the last query's row shows all slots.
    scaled = _bias_at(given.slot_positions, mask[0, :, -1])
    is_masked = given.mask.to(scaled.device) < 0
    return {
        "alibi": _bias_at(given.slot_positions, biases[0, :, 0]),
        "attention_mask": scaled.masked_fill(is_masked, torch.finfo(scaled.dtype).min),
    }


@_once_per_pass
def _mpt(arguments: dict, given: PassInputs) -> dict:
    table = arguments["position_bias"][:, 0]  # (h, max_seq_len); the last entry, 0, belongs to the newest key
    columns = given.slot_columns  # MPT counts padding too, also zeros of the mask between tokens
    newest = columns.amax(dim=1, keepdim=True)
    return {"position_bias": _PerSequenceBias(_bias_at(columns - newest + table.shape[1] - 1, table))}


def _gpt_neo(arguments: dict, given: PassInputs, config, layer: int) -> dict:
    return {"attention_mask": given.masks[config.attention_layers[layer]]}


def _masked(arguments: dict, given: PassInputs, config, layer: int) -> dict:
    return {"attention_mask": given.mask}


def _ctrl(arguments: dict, given: PassInputs, config, layer: int) -> dict:
    return {"attention_mask": given.mask} | ({"mask": None} if "mask" in arguments else {})


def _roformer(arguments: dict, given: PassInputs, config, layer: int) -> dict:
    # The model adds two leading axes to (A, N + 1, d), as looked up by `_roformer_table`; heads belong at axis 1.
    return {"sinusoidal_pos": arguments["sinusoidal_pos"][0, 0].unsqueeze(1), "attention_mask": given.mask}


def _roformer_table(arguments: dict, given: PassInputs, config, layer: int) -> dict:
    return {"position_ids": given.node_columns}


# By `model_type`: (arguments of the layer, inputs of the pass, config, layer index) -> arguments to replace.
LAYER_INPUTS: dict[str, Callable[..., dict]] = {
    "big_bird": _masked,
    "bloom": _bloom,
    "ctrl": _ctrl,
    "falcon": _falcon,
    "gpt_neo": _gpt_neo,
    "megatron-bert": _masked,
    "mpt": _mpt,
    "rembert": _masked,
    "roformer": _roformer,
}
# Models passed a 2-D mask: they build biases from it, or take no other kind in transformers 5.8.
PLAIN_MASK = ("big_bird", "bloom", "ctrl", "falcon", "megatron-bert", "rembert", "roformer")
POSITION_TABLES = {"roformer": ("embed_positions", _roformer_table)}
SLOT_ORDER = {"gpt_neo": "bias"}  # boolean buffers that apply causality and windows by slot, on top of the mask
# Models without a `position_ids` argument: positions come from the replaced inputs above, or pass through `**kwargs`
# (`generate` then gives none to the prompt, so that its positions count left padding).
NO_POSITION_IDS = ("bloom", "mpt", "roformer")
POSITION_IDS_BY_KEYWORD = ("moss_transcribe_diarize",)


def needs_layer_inputs(config) -> bool:
    """Whether verifying a tree needs hooks on the layers."""
    return config.model_type in LAYER_INPUTS and (config.model_type != "falcon" or config.alibi)


def mask_argument(config, given: PassInputs):
    """The `attention_mask` of a pass: one mask, one per kind, or an all-ones 2-D mask where hooks set the real one."""
    if needs_layer_inputs(config) and config.model_type in PLAIN_MASK:
        return torch.ones_like(given.slot_positions)
    return given.masks if takes_mask_dictionary(config) else given.mask


class LayerInputs:
    """
    Hooks on a target's layers for one `generate` call. They replace arguments during verification passes only, and
    only in the thread that verifies.

    Args:
        model: The target.
        config: Its text configuration.
        layers: Its decoder layers.
    """

    def __init__(self, model: nn.Module, config, layers: nn.ModuleList | None):
        self.config = config
        self.given: PassInputs | None = None
        self.thread: int | None = None
        self.hooked: list[tuple[nn.Module, Callable[..., dict], int]] = []
        self.buffers: list[tuple[nn.Module, str]] = []
        if layers is None or not needs_layer_inputs(config):
            return
        kind = config.model_type
        self.hooked = [(layer, LAYER_INPUTS[kind], index) for index, layer in enumerate(layers)]
        if kind in POSITION_TABLES:
            name, function = POSITION_TABLES[kind]
            tables = [module for path, module in model.named_modules() if path.split(".")[-1] == name]
            self.hooked += [(module, function, 0) for module in tables]
        if kind in SLOT_ORDER:
            name = SLOT_ORDER[kind]
            self.buffers = [(part, name) for layer in layers for part in layer.modules() if name in part._buffers]

    def register(self) -> list:
        """Register the hooks and return their handles."""
        return [
            module.register_forward_pre_hook(self._hook(module, function, index), with_kwargs=True)
            for module, function, index in self.hooked
        ]

    def _hook(self, module: nn.Module, function: Callable[..., dict], index: int):
        names = list(inspect.signature(module.forward).parameters)

        def replace(module, args, kwargs):
            if self.given is None or self.thread != threading.get_ident():
                return None
            new = function(dict(zip(names, args, strict=False)) | kwargs, self.given, self.config, index)
            # Positional arguments stay positional: passing them by keyword too would be a TypeError.
            args = tuple(new.pop(name, value) for name, value in zip(names, args, strict=False))
            return args, kwargs | new

        return replace

    @contextmanager
    def replaced(self, given: PassInputs) -> Iterator[None]:
        """Replace the layers' arguments by those of `given` in passes inside the block."""
        with ExitStack() as stack:
            for module, name in self.buffers:
                stack.enter_context(_all_true(module, name))
            self.given, self.thread = given, threading.get_ident()
            try:
                yield
            finally:
                self.given = self.thread = None


class _AllTrueBuffer:
    """Stands in for a boolean buffer: true everywhere in verifying threads, the buffer itself in all others."""

    def __init__(self, module: nn.Module, name: str):
        self.module, self.name, self.threads = module, name, []

    def __getitem__(self, index) -> torch.Tensor:
        part = self.module._buffers[self.name]
        return part.new_ones(()) if threading.get_ident() in self.threads else part[index]


_BUFFER_LOCK = threading.Lock()


@contextmanager
def _all_true(module: nn.Module, name: str) -> Iterator[None]:
    # An instance attribute shadows the buffer, which nn.Module looks up only if there is none.
    with _BUFFER_LOCK:
        shadow = vars(module).setdefault(name, _AllTrueBuffer(module, name))
        shadow.threads.append(threading.get_ident())
    try:
        yield
    finally:
        with _BUFFER_LOCK:
            shadow.threads.remove(threading.get_ident())
            if not shadow.threads:
                del vars(module)[name]


# RoPE types whose frequencies depend on the largest position of the pass: a node beyond the threshold would change
# them for nodes before it, which plain `generate` computes with the old ones.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def length_dependent_rope(config) -> tuple[int, bool] | None:
    """
    (length beyond which RoPE frequencies depend on the longest sequence of the pass, whether they change only once,
    at that length); `None` for models without such RoPE.
    """
    rope = optional_field(config, "rope_parameters") or {}
    for part in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if part.get("rope_type") in LENGTH_DEPENDENT_ROPE:
            threshold = part.get("original_max_position_embeddings") or config.max_position_embeddings
            return threshold, part["rope_type"] == "longrope"
    return None
