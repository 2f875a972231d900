"""Kinds of attention, and what decoder layers must be given of it while a tree is verified.

Most targets take our masks and positions as arguments. Some make a bias, a window or a table of positions inside, from
the order of slots; for the time of a pass, hooks on their layers put the same numbers at each slot's token position.
Knows architectures by the names of their arguments; does not know trees, caches or rows. (transformers 5.8 to 5.23)

Shape letters: A rows, N drafted nodes, K slots (prefix and nodes), h heads, d head size.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn


FULL, INDEXED = "full_attention", "indexed_attention"
SLIDING, CHUNKED = "sliding_attention", "chunked_attention"
KNOWN_KINDS = {FULL, INDEXED, SLIDING, CHUNKED, "global", "local"}


@dataclass(frozen=True)
class Reach:
    """How far back a layer attends: `window` tokens with the token itself, or its own `chunk`; by default all."""

    window: int | None = None
    chunk: int | None = None

    @property
    def kept(self) -> int | None:
        """The size by which the host's cache layer of such a kind goes."""
        return self.window if self.chunk is None else self.chunk


def mask_kinds(config) -> dict[str, Reach]:
    """Kinds of attention in the model; where it takes masks as a dictionary, its keys."""
    if config.model_type == "gpt_neo":
        return {"global": Reach(), "local": Reach(window=config.window_size)}
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    reaches = {SLIDING: Reach(window=window), CHUNKED: Reach(chunk=chunk)}
    if takes_mask_dictionary(config):
        return {kind: reaches.get(kind, Reach()) for kind in sorted(set(config.layer_types))}
    kind = SLIDING if window is not None else CHUNKED if chunk is not None else FULL
    return {kind: reaches.get(kind, Reach())}


def takes_mask_dictionary(config) -> bool:
    """Whether masks go in as a dictionary per layer type, as in the host's `create_masks_for_generate`."""
    return getattr(config, "layer_types", None) is not None


@dataclass
class PassInputs:
    """What a verification pass knows of its slots and nodes."""

    masks: dict[str, torch.Tensor]  # additive, (A, 1, N + 1, K), by kind of attention
    slot_positions: torch.Tensor | None  # (A, K): token positions, left padding not counted; with hooks only
    node_columns: torch.Tensor  # (A, N + 1): left padding counted
    made: dict[Callable, dict] = field(default_factory=dict)

    @property
    def slot_columns(self) -> torch.Tensor:
        """Column of each slot, padding counted wherever it stands, (A, K)."""
        nodes = self.node_columns
        prefix = torch.arange(self.slot_positions.shape[1] - nodes.shape[1], device=nodes.device)
        return torch.cat((prefix.expand(nodes.shape[0], -1), nodes), dim=1)

    @property
    def mask(self) -> torch.Tensor:
        """Of a model with one kind of attention."""
        return next(iter(self.masks.values()))


class _RowBias:
    """
    A bias (A, h, 1, K) of each row, for MPT, whose attention takes one (h, 1, K) for all rows, asks for its sizes,
    slices and adds it.
    """

    def __init__(self, bias: torch.Tensor):
        self.bias, self.shape = bias, bias.shape[1:]

    def size(self, axis: int) -> int:
        return self.shape[axis]

    def __getitem__(self, index) -> "_RowBias":
        return self

    def __radd__(self, scores: torch.Tensor) -> torch.Tensor:
        return scores + self.bias.to(scores.device)


def _at(positions: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """(A, h, 1, K) of a table (h, positions) at `positions` (A, K)."""
    return table[:, positions.to(table.device)].transpose(0, 1)[:, :, None]


def _once_per_pass(function: Callable[..., dict]) -> Callable[..., dict]:
    """For what all layers get alike."""

    @functools.wraps(function)
    def made_once(arguments: dict, given: PassInputs, config, layer: int) -> dict:
        if function not in given.made:
            given.made[function] = function(arguments, given)
        return dict(given.made[function])

    return made_once


# The biases of ALiBi are linear in the key's position, and a softmax does not see what all keys share. So one bias for
# each key's position serves all nodes. The host's own tables, at our positions, give plain generate's numbers.


@_once_per_pass
def _bloom(arguments: dict, given: PassInputs) -> dict:
    table = arguments["alibi"].unflatten(0, (given.slot_positions.shape[0], -1))[0, :, 0]
    return {"alibi": _at(given.slot_positions, table).flatten(0, 1), "attention_mask": given.mask}


@_once_per_pass
def _falcon(arguments: dict, given: PassInputs) -> dict:
    biases, mask = arguments["alibi"], arguments["attention_mask"]
    # The host has added the scaled bias to its mask; the last query sees all slots.
    scaled = _at(given.slot_positions, mask[0, :, -1])
    closed = given.mask.to(scaled.device) < 0
    return {
        "alibi": _at(given.slot_positions, biases[0, :, 0]),
        "attention_mask": scaled.masked_fill(closed, torch.finfo(scaled.dtype).min),
    }


@_once_per_pass
def _mpt(arguments: dict, given: PassInputs) -> dict:
    table = arguments["position_bias"][:, 0]  # (h, max_seq_len), 0 at its end, where plain generate has the newest key
    columns = given.slot_columns  # MPT counts columns, also where the mask is 0 between tokens
    newest = columns.amax(dim=1, keepdim=True)
    return {"position_bias": _RowBias(_at(columns - newest + table.shape[1] - 1, table))}


def _gpt_neo(arguments: dict, given: PassInputs, config, layer: int) -> dict:
    return {"attention_mask": given.masks[config.attention_layers[layer]]}


def _masked(arguments: dict, given: PassInputs, config, layer: int) -> dict:
    return {"attention_mask": given.mask}


def _ctrl(arguments: dict, given: PassInputs, config, layer: int) -> dict:
    return {"attention_mask": given.mask} | ({"mask": None} if "mask" in arguments else {})


def _roformer(arguments: dict, given: PassInputs, config, layer: int) -> dict:
    # (1, 1, A, N + 1, d): the rows that `_roformer_table` has brought in, one axis too far.
    return {"sinusoidal_pos": arguments["sinusoidal_pos"][0, 0].unsqueeze(1), "attention_mask": given.mask}


def _roformer_table(arguments: dict, given: PassInputs, config, layer: int) -> dict:
    return {"position_ids": given.node_columns}


# What replaces which arguments of a decoder layer, by `model_type`.
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
# Are given a 2-D mask: to make biases from it, or because transformers 5.8 knows no other there.
PLAIN_MASK = ("big_bird", "bloom", "ctrl", "falcon", "megatron-bert", "rembert", "roformer")
POSITION_TABLES = {"roformer": ("embed_positions", _roformer_table)}
SLOT_ORDER = {"gpt_neo": "bias"}  # buffers that apply causality and windows by slot, over our mask
# Have no `position_ids` among their arguments: get positions from the above, or pass them on as they pass any keyword
# (then the host gives none to the prompt, whose positions are columns, left padding counted).
NO_POSITION_IDS = ("bloom", "mpt", "roformer")
POSITION_IDS_BY_KEYWORD = ("moss_transcribe_diarize",)


def needs_layer_inputs(config) -> bool:
    """Whether trees are verified with hooks on the layers."""
    return config.model_type in LAYER_INPUTS and (config.model_type != "falcon" or config.alibi)


def mask_argument(config, given: PassInputs):
    """The `attention_mask` of a pass: one mask, one per kind, or (with hooks) the plainest 2-D one."""
    if needs_layer_inputs(config) and config.model_type in PLAIN_MASK:
        return torch.ones_like(given.slot_positions)
    return given.masks if takes_mask_dictionary(config) else given.mask


class LayerInputs:
    """
    Hooks on a target's layers for one call of generate, which replace arguments during verification passes only, and
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
        """Handles of the hooks."""
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
            args = tuple(new.pop(name, value) for name, value in zip(names, args, strict=False))
            return args, kwargs | new

        return replace

    @contextmanager
    def replaced(self, given: PassInputs) -> Iterator[None]:
        """The pass inside gets `given`."""
        with ExitStack() as stack:
            for module, name in self.buffers:
                stack.enter_context(_open_buffer(module, name))
            self.given, self.thread = given, threading.get_ident()
            try:
                yield
            finally:
                self.given = self.thread = None


class _OpenBuffer:
    """In place of a Boolean buffer: true everywhere for the threads that verify, as it is for all others."""

    def __init__(self, module: nn.Module, name: str):
        self.module, self.name, self.threads = module, name, []

    def __getitem__(self, index) -> torch.Tensor:
        part = self.module._buffers[self.name]
        return part.new_ones(()) if threading.get_ident() in self.threads else part[index]


_LOCK = threading.Lock()


@contextmanager
def _open_buffer(module: nn.Module, name: str) -> Iterator[None]:
    # An attribute of the instance hides the buffer, which stays where it is.
    with _LOCK:
        hiding = vars(module).setdefault(name, _OpenBuffer(module, name))
        hiding.threads.append(threading.get_ident())
    try:
        yield
    finally:
        with _LOCK:
            hiding.threads.remove(threading.get_ident())
            if not hiding.threads:
                del vars(module)[name]


# RoPE whose frequencies depend on the largest position in the pass: a node may not cross the threshold ahead of plain.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def length_dependent_rope(config) -> tuple[int, bool] | None:
    """
    (length past which RoPE frequencies depend on the longest sequence of the pass, whether they change there only
    once); `None` for most models.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    for part in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if part.get("rope_type") in LENGTH_DEPENDENT_ROPE:
            threshold = part.get("original_max_position_embeddings") or config.max_position_embeddings
            return threshold, part["rope_type"] == "longrope"
    return None
