"""Running the target on a draft: inputs, masks and cache of one verification, in the two ways a target allows.

`TreePass` verifies any tree in slots, rows at lengths of their own. `ChainPass` verifies a chain through the target's
own causal path and the host's cache; states that cannot be cropped are copied before and restored after, and the
accepted tokens are run again. Rows then go in lockstep. Does not know how trees are made or tokens chosen.

Shape letters: B rows, A active rows, N drafted nodes, V vocabulary, F features.
"""

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.utils import logging

from ...compat.caches import DynamicLayer, EmptyLayer, drop_columns, select_sequences
from ...compat.calls import BOOKKEEPING, cache_of, pass_inputs, put_cache, updated_kwargs
from ...compat.models import attention_name
from ...target.layer_inputs import PassInputs, mask_argument, mask_kinds
from ...target.mode import TREE_ATTENTION, own_cache
from ...target.target import Target
from ..batch import Rows
from ..ops.transfer import on_device
from ..tree.draft_tree import DraftTree, chain
from .attention import share_mask, take_tree_masks
from .slots import SlotCache, slot_positions, verification_masks


logger = logging.get_logger(__name__)

PADDING_CHUNK = 256  # tokens of a pass of padding, for sequences that ended before others
# What the prompt gives per token, and whether generated tokens go on with its last value or have zeros.
_PER_TOKEN = {
    "token_type_ids": True,
    "mm_token_type_ids": False,
    "moe_mm_token_type_ids": False,
    "image_attention_mask": True,  # of the first Idefics
}
# Kept by this module, or meant for the prompt only.
_NOT_PASSED_ON = {*BOOKKEEPING, *_PER_TOKEN}


def prepared_cache(model: PreTrainedModel, model_kwargs: dict) -> Cache | None:
    """The cache that `generate` prepared; where it leaves that to the model, an empty one of the model's own class."""
    if cache_of(model_kwargs) is None and (cache := own_cache(model)) is not None:
        put_cache(model_kwargs, cache)
    return cache_of(model_kwargs)


def left_by_prompt(model: PreTrainedModel, outputs, model_kwargs: dict) -> dict:
    """What the prompt's pass hands to later ones beside the cache, by name: an image's states in the first Idefics."""
    updated = updated_kwargs(model, outputs, model_kwargs)
    return {name: value for name, value in updated.items() if name not in model_kwargs}


class TreePass:
    """
    Args:
        target: The target.
        rows: Lengths and padding; read, never changed.
        model_kwargs: The host's, after prefill.
        room: Most nodes of a pass, root included.
        max_length: Columns of `ids` that can be reached.
    """

    lockstep = False

    def __init__(self, target: Target, rows: Rows, model_kwargs: dict, room: int, max_length: int):
        self.target, self.rows, self.dtype = target, rows, target.model.dtype
        attention = attention_name(target.config)
        if attention not in TREE_ATTENTION:
            logger.warning_once(
                f"{attention} takes no tree mask: it reads the prompt, and sdpa verifies the draft's trees. "
                '`attn_implementation="sdpa"` does both.'
            )
        if attention != "eager":
            take_tree_masks(attention)
        self.host_cache: Cache = cache_of(model_kwargs)
        self.cache = self._slots(room, rows.prompt_length + rows.cache_shift, max_length + rows.cache_shift)
        # Layers of a sliding kind may stand in a cache without windows (a plain `DynamicCache()` of the user's).
        spans, any_span = self.cache.spans, next(iter(self.cache.spans.values()))
        self.kinds = {
            kind: (spans.get(reach.kept, spans.get(None, any_span)), reach)
            for kind, reach in mask_kinds(target.config).items()
        }
        self.order = list(range(rows.num_rows))  # original row of each storage row
        self.keeps_rows = True
        self.extra = {name: value for name, value in model_kwargs.items() if name not in _NOT_PASSED_ON}
        self.per_token = {
            name: model_kwargs[name][:, -1:] if goes_on else torch.zeros_like(model_kwargs[name][:, -1:])
            for name, goes_on in _PER_TOKEN.items()
            if model_kwargs.get(name) is not None
        }
        positions = model_kwargs.get("position_ids")
        if positions is None:
            positions = torch.tensor(rows.num_visible, device=rows.ids.device)[:, None] - 1
        if positions.shape[-2] == 1 and rows.num_rows > 1:
            positions = positions.expand(*positions.shape[:-2], rows.num_rows, -1)
        self.last_position = positions[..., -1:]  # (..., B, 1): of the prompt
        # Nodes past a row's limit are never committed, but learned positions must exist.
        self.most_steps = max_length - rows.prompt_length - 1

    def _slots(self, room: int, length: int, limit: int) -> SlotCache:
        """The prompt's `length` columns as slots, for passes of `room` nodes that end before column `limit`."""
        return SlotCache(self.host_cache, self.rows.num_rows, length, room, limit)

    def verify(self, tree: DraftTree):
        """The target's outputs for every node: logits (A, N + 1, V), features (A, N + 1, F), and the raw outputs."""
        inputs, given = self._inputs(tree)
        with self.target.capturing(), self.target.layer_inputs.replaced(given):
            outputs = self.target.model(**inputs, return_dict=True)
        return outputs.logits, self.target.features(outputs), outputs

    def _inputs(self, tree: DraftTree) -> tuple[dict, PassInputs]:
        """Arguments of the target's pass over `tree`, and what its layers are given beside them."""
        rows, model = self.rows, self.target.model
        columns = rows.cached_columns
        num_nodes = tree.tokens.shape[1]
        self.write = max(columns)
        # Sequences that have ended but stay in the cache need their window for the padding behind them.
        shortest = min(rows.lengths) - 1 + rows.cache_shift if self.keeps_rows else min(columns)
        self.cache.begin_pass(self.write, shortest, max(num_nodes, tree.max_depth + 1))
        device = tree.tokens.device
        self.lengths, steps = on_device([columns, rows.steps], device)
        visible = rows.active_visible(device)
        masks = self._masks(tree, visible)
        ahead = (steps[:, None] + tree.depths).clamp(max=self.most_steps)
        last = self.last_position
        if len(rows.active) < rows.num_rows:
            last = last.index_select(-2, on_device(rows.active, last.device))
        positions = last.to(device) + ahead
        node_columns = rows.prompt_length + rows.cache_shift - 1 + ahead
        by_slot = slot_positions(self.write, visible, node_columns) if self.target.layer_inputs.hooked else None
        given = PassInputs(masks, by_slot, node_columns)
        per_token = {
            name: value.expand(-1, num_nodes, *value.shape[2:]) for name, value in self._active(self.per_token).items()
        }
        kwargs = {"position_ids": positions, **per_token, **self._active(self.extra)}
        put_cache(kwargs, self.cache)
        inputs = pass_inputs(model, tree.tokens, num_nodes, kwargs)
        # Phi-3's preparation takes a pass as long as its RoPE threshold for a prompt, and would leave the cache out.
        put_cache(inputs, self.cache)
        inputs["attention_mask"] = mask_argument(self.target.config, given)
        if self.target.takes_positions:
            prepared = inputs.get("position_ids", positions)
            if prepared is None or self.target.counts_padding:  # the model counts columns, padding included
                positions = node_columns
            elif prepared.shape == positions.shape:  # perhaps shifted (PaliGemma)
                positions = prepared
            inputs["position_ids"] = positions
        if self.target.keeps_logits:
            inputs["logits_to_keep"] = num_nodes
        return inputs, given

    def _masks(self, tree: DraftTree, visible: torch.Tensor | None) -> dict[str, torch.Tensor]:
        dtype, device = self.dtype, tree.tokens.device
        if visible is None and self._sees_everything(tree):
            rows = tree.tokens.shape[0]
            return {
                kind: share_mask(torch.zeros(rows, 1, 1, span.offset + 1, dtype=dtype, device=device), True)
                for kind, (span, _) in self.kinds.items()
            }
        masks = verification_masks(self.kinds, self.lengths, visible, tree.depths, tree.ancestors, dtype)
        return {kind: share_mask(mask, hides_nothing=False) for kind, mask in masks.items()}

    def _sees_everything(self, tree: DraftTree) -> bool:
        """Whether the pass is a plain step of rows equally long, and no window or chunk has an end behind it."""
        is_plain = tree.num_draft_tokens == 0 and min(self.rows.cached_columns) == self.write
        return is_plain and all(
            reach.chunk is None and (reach.window is None or span.offset < reach.window)
            for span, reach in self.kinds.values()
        )

    def _active(self, values: dict) -> dict:
        if len(self.rows.active) == self.rows.num_rows:
            return values
        return {
            name: value[self.rows.active]
            if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == self.rows.num_rows
            else value
            for name, value in values.items()
        }

    def attended(self, a: int, path: torch.Tensor) -> torch.Tensor:
        """Slots that the last node of row `a`'s `path` attends to, in the order plain generate has them."""
        prefix = torch.arange(self.rows.cached_columns[a], device=path.device)
        return torch.cat((prefix, self.write + path))

    def keep(self, nodes: torch.Tensor, counts: list[int]) -> None:
        """Commit each row's path `nodes` (A, T + 1), the root first."""
        if nodes.shape[1] > 1 or min(self.rows.cached_columns) < self.write:  # else roots that stand where they belong
            self.cache.keep(self.write, self.lengths, nodes)

    def forget_nodes(self) -> None:
        """Undo the last pass: what it left in slots that are masked may not be finite."""
        self.cache.clear_behind(self.rows.cached_columns)

    def select_rows(self, kept: list[int], drop: bool) -> None:
        """Only the active rows at `kept` go on; `drop`: nobody will ask for the others' keys and values."""
        self.cache.select_rows(kept, drop)
        self.keeps_rows &= not drop
        others = [] if drop else [place for place in range(len(self.order)) if place not in kept]
        self.order = [self.order[place] for place in kept + others]

    @property
    def longest_chain(self) -> int:
        """Most tokens of a pass of padding."""
        return PADDING_CHUNK

    def cache_padding(self, ended: list[int]) -> None:
        """
        Fill the caches of sequences that ended before others as plain `generate` does, which feeds them padding until
        all have ended: a later turn may attend to it.
        """
        rows, lengths = self.rows, list(self.rows.lengths)
        longest = max(lengths)
        while ended := [row for row in ended if rows.lengths[row] < longest]:
            rows.active = ended
            self.select_rows([self.order.index(row) for row in ended], drop=False)
            count = min(longest - min(rows.active_lengths), self.longest_chain)
            roots = self.target.on_input_device(rows.roots())
            padding = roots.new_full((len(ended), count - 1), rows.pad_token_id)
            self.verify(chain(roots, padding, torch.zeros_like(padding, dtype=torch.float32)))
            self.keep(torch.arange(count, device=roots.device).expand(len(ended), -1), [count] * len(ended))
            for row in ended:
                rows.lengths[row] = min(rows.lengths[row] + count, longest)
        rows.active, rows.lengths = [], lengths

    def close(self, is_wanted: bool) -> Cache:
        """The host's cache, an ordinary one again of all columns but the last token's, which is not cached."""
        order = self.order if is_wanted and self.keeps_rows else None
        self.cache.give_back(self.rows.final_cache_length, order)
        return self.host_cache


class ChainPass:
    """Chains through the target's own causal path. Arguments as for [`TreePass`]."""

    lockstep = True

    def __init__(self, target: Target, rows: Rows, model_kwargs: dict, room: int, max_length: int):
        self.target, self.rows, self.model_kwargs = target, rows, model_kwargs
        self.host_cache: Cache = cache_of(model_kwargs)
        self.num_running = rows.num_rows
        self.saved: list[dict] | None = None

    def verify(self, tree: DraftTree):
        """As `TreePass.verify`; the tree must be a chain and all rows equally long."""
        self.saved = snapshot(self.host_cache)
        self.tokens = tree.tokens
        outputs = self._run(tree.tokens)
        return outputs.logits[:, -tree.tokens.shape[1] :], self.target.features(outputs), outputs

    def _run(self, tokens: torch.Tensor):
        rows, model, count = self.rows, self.target.model, tokens.shape[1]
        length = rows.lengths[rows.active[0]]
        ids = torch.cat((rows.ids[rows.active, : length - 1], tokens), dim=1)
        # The host's own bookkeeping for steps already taken, then for the tokens of this pass.
        kwargs = {name: value for name, value in self.model_kwargs.items() if name != "inputs_embeds"}
        kwargs = updated_kwargs(model, {}, kwargs, num_new_tokens=length - 1 - rows.prompt_length + count)
        inputs = pass_inputs(model, ids, count, kwargs)
        if self.target.keeps_logits:
            inputs["logits_to_keep"] = count
        with self.target.capturing(), self.target.stepping():
            return model(**inputs, return_dict=True)

    def attended(self, a: int, path: torch.Tensor) -> torch.Tensor:
        """As in [`TreePass`]: a chain stands where plain generate's tokens would."""
        return torch.arange(self.rows.cached_columns[a] + len(path), device=path.device)

    def keep(self, nodes: torch.Tensor, counts: list[int]) -> None:
        """
        Commit: with anything rejected, drop it from a cache of keys and values alone; else restore the states and run
        the accepted tokens again. A row that ended commits fewer than the others, which go on at one length.
        """
        longest = max(counts)
        rejected = self.tokens.shape[1] - longest
        tokens, is_changed = self._padded(self.tokens[:, :longest])
        layers = {type(layer) for layer in self.host_cache.layers}
        if type(self.host_cache) is DynamicCache and layers <= {DynamicLayer, EmptyLayer}:
            for layer, saved in zip(self.host_cache.layers, self.saved[1:], strict=True):
                # Cross-attention layers have an image's keys, which passes leave as they are.
                if rejected and layer.keys is not None and layer.keys is not saved["keys"]:
                    drop_columns(layer, rejected)
        elif rejected or is_changed:
            restore(self.host_cache, self.saved)
            self._run(tokens)
        self.saved = None

    def forget_nodes(self) -> None:
        """Undo the last pass."""
        restore(self.host_cache, self.saved)
        self.saved = None

    def _padded(self, tokens: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """Tokens as plain generate feeds them: padding behind rows that ended in this cycle and run along."""
        rows, is_changed = self.rows, False
        for a, row in enumerate(rows.active):
            first = rows.ends.get(row, rows.lengths[row] + tokens.shape[1]) - rows.lengths[row] + 1
            if 1 < first < tokens.shape[1] and rows.pads_ended_rows:
                tokens = tokens.clone()
                tokens[a, first:] = rows.pad_token_id
                is_changed = True
        return tokens, is_changed

    def select_rows(self, kept: list[int], drop: bool) -> None:
        """Only the active rows at `kept` go on; `drop` is always true here (see `Generation`)."""
        index = torch.tensor(kept, device=self.rows.ids.device)
        select_sequences(self.host_cache, index)
        for name, value in self.model_kwargs.items():
            axis = -2 if name == "position_ids" else 0
            if isinstance(value, torch.Tensor) and value.dim() and value.shape[axis] == self.num_running:
                self.model_kwargs[name] = value.index_select(axis, index.to(value.device))
        self.num_running = len(kept)

    def close(self, is_wanted: bool) -> Cache:
        """The host's cache, which is an ordinary one already unless a pass was interrupted."""
        if self.saved is not None:
            restore(self.host_cache, self.saved)
        return self.host_cache


def snapshot(cache: Cache) -> list[dict]:
    """
    The state of the cache and of its layers, so that `restore` undoes passes made since. Keys and values, which passes
    replace rather than write into, are kept by reference; recurrent and convolution states are copied.
    """
    return [_state_of(holder, vars(holder)) for holder in (cache, *cache.layers)]


def _state_of(holder, attributes: dict) -> dict:
    by_reference = ("keys", "values") if isinstance(holder, DynamicLayer) else ("layers",)
    return {name: value if name in by_reference else _copy(value) for name, value in attributes.items()}


def _copy(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copy(entry) for key, entry in value.items()}
    return type(value)(map(_copy, value)) if type(value) in (list, tuple) else value


def restore(cache: Cache, saved: list[dict]) -> None:
    """Put back what `snapshot` took. States are copied once more: a pass writes into them, and may be interrupted."""
    for holder, state in zip((cache, *cache.layers), saved, strict=True):
        vars(holder).clear()
        vars(holder).update(_state_of(holder, state))
