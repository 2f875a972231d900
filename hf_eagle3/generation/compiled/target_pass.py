"""Verification over static shapes: `cache_implementation="static"` beside a draft.

Passes have one number of rows, of nodes and of slots for the whole call: rows that ended stay and run along unseen,
trees are filled up with nodes that nobody looks at. So the target's pass can be compiled, where the host would
compile its own, and replayed as a CUDA graph. Tapped layers are read from `hidden_states`, since hooks added for a
call would be compiled in. Does not know how trees are made or tokens chosen.

Shape letters: B rows, A active rows, N drafted nodes, n nodes of a pass with the root, P places of a path, S slots.
"""

import weakref
from collections.abc import Callable

import torch
from transformers import Cache, CompileConfig, DynamicCache, GenerationConfig, PreTrainedModel, StaticCache

from ...compat.caches import (
    DynamicLayer,
    SlidingLayer,
    dynamic_copy,
    keeps_every_column,
    new_static_cache,
    static_lengths,
)
from ...compat.calls import cache_of, compiled_call, makes_dynamic_cache, put_cache, would_compile
from ...target.layer_inputs import needs_layer_inputs
from ...target.mode import DecodingMode, decoding_mode, is_looped
from ...target.target import Target
from ..batch import Rows
from ..ops.transfer import on_device
from ..settings import Settings
from ..tree.draft_tree import DraftTree, padded
from ..verify.tree_pass import TreePass
from .slots import Shelf, StaticSlots, rounded


PLAIN_LAYERS = (DynamicLayer, SlidingLayer)
ASKED = "_hf_eagle3_static"  # among the attributes of a call's configuration
KEPT_SLOTS = Shelf()  # by target
# Targets that gave `hidden_states` before. For the first the host installs hooks under a lock, which dynamo cannot
# trace, so that pass runs uncompiled.
_SHOWED_STATES: weakref.WeakSet = weakref.WeakSet()


def set_aside(config: GenerationConfig) -> None:
    """
    Remember `cache_implementation="static"` and put "dynamic" into a call's configuration before the host reads it: a
    static cache of the host's has no room for a tree (and before transformers 5.15 there is none beside a draft).
    """
    if config.cache_implementation == "static":
        vars(config)[ASKED] = True
        config.cache_implementation = "dynamic"


def asks_for_static(config: GenerationConfig) -> bool:
    """Whether `set_aside` found something in a call's configuration."""
    return ASKED in vars(config)


def host_cache(
    model: PreTrainedModel, config: GenerationConfig, input_ids: torch.Tensor, model_kwargs: dict
) -> StaticCache | None:
    """The empty cache that the host would have made for a call that asks for static shapes; `None` for others."""
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
        cache: See `host_cache`, or the caller's; filled at the end, if it is handed back.
        is_callers: Whether the caller gave it.

    Attributes:
        compiles: Whether the host would compile its own steps here, so that ours are.
    """

    def __init__(self, model: PreTrainedModel, config: GenerationConfig, cache: StaticCache, is_callers: bool):
        self.model, self.config, self.host_cache, self.is_callers = model, config, cache, is_callers
        self.compiles = would_compile(model, cache, config)

    def forward(self, inputs: dict):
        """The outputs of the target's pass."""
        compiles = self.compiles and self.model in _SHOWED_STATES
        call = compiled_call(self.model, self.config) if compiles else self.model
        self.new_cycle()
        outputs = call(**inputs, return_dict=True)
        _SHOWED_STATES.add(self.model)
        return outputs

    def compiled(self, function: Callable) -> Callable:
        """`function`, compiled as the host compiles the target's pass."""
        if not self.compiles:
            return function
        return torch.compile(function, **(self.config.compile_config or CompileConfig()).to_dict())

    def num_slots(self, columns: int, room: int) -> int:
        """
        Slots for `columns` and `room` more; for as many as the host's cache has, if those are more (`max_cache_len`),
        so that a later, longer call finds the same.
        """
        return rounded(max(columns, *static_lengths(self.host_cache)) + room)

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
        ValueError: the target or another option does not go with it.
    """
    own = cache_of(model_kwargs)
    own = own if isinstance(own, StaticCache) else None
    if own is None and not asks_for_static(config):
        return None
    asked = "`cache_implementation` 'static'" if own is None else "a `StaticCache`"
    mode = static_mode(model)
    if mode.kind != "tree":
        raise ValueError(
            f"{asked} does not go with a draft on {type(model).__name__}: {mode.reason}. Leave it out (the dynamic "
            "cache)."
        )
    if own is not None and not keeps_every_column(own):
        raise ValueError(
            f"{asked} whose layers forget columns behind their sliding window does not go with a draft; make it no "
            'longer than the window (from transformers 5.24 on), or give `cache_implementation="static"`.'
        )
    if config.return_dict_in_generate and config.output_attentions:
        raise ValueError(f"`output_attentions` with {asked} does not go with a draft; leave one out.")
    put_cache(model_kwargs, dynamic_copy(own))
    return StaticShapes(model, config, own or host_cache(model, config, input_ids, model_kwargs), own is not None)


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


class StaticPass(TreePass):
    """
    Verifies trees as [`TreePass`] does, in passes of one shape.

    Args:
        target, rows, model_kwargs, room, max_length: As for [`TreePass`]; `room` is the nodes of a pass.
        shapes: See [`StaticShapes`].
        settings: The call's.
    """

    def __init__(
        self,
        target: Target,
        rows: Rows,
        model_kwargs: dict,
        room: int,
        max_length: int,
        shapes: StaticShapes,
        settings: Settings,
    ):
        self.shapes, self.sizes, self.path_length = shapes, settings.pass_sizes, settings.sizes.tree_depth + 1
        super().__init__(target, rows, model_kwargs, room, max_length)
        config = shapes.config
        self.shows_states = bool(config.return_dict_in_generate and config.output_hidden_states)

    def _slots(self, room: int, length: int, limit: int) -> StaticSlots:
        kept = KEPT_SLOTS.take(self.target.model) if self.shapes.compiles else None
        needs = (self.rows.num_rows, self.shapes.num_slots(limit, room), self.path_length, room)
        fits = kept is not None and kept.fits(self.host_cache, *needs)
        slots = kept if fits else StaticSlots(self.host_cache, *needs)
        slots.fill(self.host_cache)
        return slots

    def verify(self, tree: DraftTree):
        """As `TreePass.verify`."""
        rows, active, nodes = self.rows, self.rows.active, tree.tokens.shape[1]
        everybody = list(range(rows.num_rows))
        whole = padded(tree, next(size for size in self.sizes if size >= nodes))
        if active != everybody:  # in the places of rows that ended runs the first that did not
            stand_ins = [active.index(row) if row in active else 0 for row in everybody]
            whole = whole.select_rows(on_device(stand_ins, whole.tokens.device))
        rows.active = everybody
        try:
            inputs, _ = self._inputs(whole)  # beside them nothing: layers with hooks are refused
        finally:
            rows.active = active
        outputs = self.shapes.forward(inputs)
        logits, features = outputs.logits[:, :nodes], self.target.features(outputs)[:, :nodes]
        if active != everybody:
            index = on_device(active, logits.device)
            logits, features = logits[index], features[index.to(features.device)]
            if self.shows_states:
                outputs.hidden_states = tuple(layer[index.to(layer.device)] for layer in outputs.hidden_states)
        return logits, features, outputs

    def _masks(self, tree: DraftTree, visible: torch.Tensor | None) -> dict[str, torch.Tensor]:
        masks = super()._masks(tree, visible)
        least, width = torch.finfo(self.target.model.dtype).min, self.cache.num_slots
        return {
            kind: torch.nn.functional.pad(mask, (0, width - mask.shape[3]), value=least)
            for kind, mask in masks.items()
        }

    def keep(self, nodes: torch.Tensor, counts: list[int]) -> None:
        """Commit each active row's path `nodes` (A, up to P), the root first: in the next pass."""
        steps = torch.arange(self.path_length, device=nodes.device)
        # Places past a path, and rows that ended, move slots that stay masked.
        goal = self.lengths.to(nodes.device)[:, None] + steps
        origin = goal.clone()
        origin[on_device(self.rows.active, nodes.device), : nodes.shape[1]] = self.write + nodes
        self.cache.keep(origin, goal)

    def forget_nodes(self) -> None:
        """As `TreePass.forget_nodes`; of rows that ended all slots stay masked."""
        rows = self.rows
        self.cache.clear_behind([length - 1 + rows.cache_shift for length in rows.lengths])

    @property
    def longest_chain(self) -> int:
        """As many nodes as a pass commits."""
        return min(self.path_length, self.sizes[-1])

    def select_rows(self, kept: list[int], drop: bool) -> None:
        """Rows that ended stay where they are."""

    def close(self, is_wanted: bool) -> Cache:
        """
        The host's static cache, filled with all columns but the last token's if that is wanted.

        Raises:
            ValueError: a cache of the caller's is too short; it is then as it was.
        """
        length, given = self.rows.final_cache_length, self.shapes.host_cache
        is_too_long = self.shapes.is_callers and length > min(static_lengths(given))
        if is_wanted and not is_too_long:
            self.cache.give_back(given, length)
        if self.shapes.compiles:
            KEPT_SLOTS.put(self.target.model, self.cache)
        if is_too_long:
            raise ValueError(f"The static cache has room for {min(static_lengths(given))} tokens, not for {length}.")
        return given
