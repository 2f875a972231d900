"""Verifying chains through the target's own causal path and cache, where slots do not do.

States that cannot be cropped are copied before a pass; after a rejection they are restored, and the layers that hold
them run the accepted tokens again (`replay.py`), or else the whole target does.
Sequences go in lockstep. Does not know how chains are made or tokens chosen.

Shape letters: B sequences of the batch, A active ones, N drafted nodes.
"""

import torch
from transformers import Cache, DynamicCache

from ...compat.caches import DynamicLayer, EmptyLayer, drop_columns, select_sequences
from ...compat.calls import cache_of, pass_inputs, updated_kwargs
from ...target.target import Target
from ..batch import Batch
from ..tree.draft_tree import DraftTree
from .replay import StateReplay


class ChainPass:
    """Chains through the target's own causal path. Arguments as for [`TreePass`]."""

    def __init__(self, target: Target, batch: Batch, model_kwargs: dict, room: int, max_length: int):
        self.target, self.batch, self.model_kwargs = target, batch, model_kwargs
        self.target_cache: Cache = cache_of(model_kwargs)
        self.num_running = batch.num_sequences
        self.saved: list[dict] | None = None
        self.replay = StateReplay(target, self.target_cache)

    def verify(self, tree: DraftTree):
        """As `TreePass.verify`; the tree must be a chain and all sequences equally long."""
        self.saved = snapshot(self.target_cache)
        self.tokens = tree.tokens
        with self.replay.recording():
            outputs = self._run(tree.tokens)
        return outputs.logits[:, -tree.tokens.shape[1] :], self.target.features(outputs), outputs

    def _run(self, tokens: torch.Tensor):
        batch, model, count = self.batch, self.target.model, tokens.shape[1]
        length = batch.lengths[batch.active[0]]
        ids = torch.cat((batch.ids[batch.active, : length - 1], tokens), dim=1)
        # transformers' own bookkeeping for steps already taken, then for the tokens of this pass.
        kwargs = {name: value for name, value in self.model_kwargs.items() if name != "inputs_embeds"}
        kwargs = updated_kwargs(model, {}, kwargs, num_new_tokens=length - 1 - batch.prompt_length + count)
        inputs = pass_inputs(model, ids, count, kwargs)
        if self.target.keeps_logits:
            inputs["logits_to_keep"] = count
        with self.target.capturing(), self.target.stepping():
            return model(**inputs, return_dict=True)

    def attended(self, a: int, path: torch.Tensor) -> torch.Tensor:
        """As in [`TreePass`]: a chain stands where plain generate's tokens would."""
        return torch.arange(self.batch.cached_lengths[a] + len(path), device=path.device)

    def keep(self, nodes: torch.Tensor, counts: list[int], ended: dict[int, int]) -> None:
        """
        Commit: with anything rejected, drop it from a cache of keys and values alone; else restore the states and make
        those of the accepted tokens. A sequence that ended commits fewer than the others, which stay at one length.

        Args:
            counts: Tokens that each active sequence commits.
            ended: Where sequences end that end with them and stay in the batch.
        """
        longest = max(counts)
        rejected = self.tokens.shape[1] - longest
        tokens, is_changed = self._padded(self.tokens[:, :longest], self.batch.ends | ended)
        layers = {type(layer) for layer in self.target_cache.layers}
        if type(self.target_cache) is DynamicCache and layers <= {DynamicLayer, EmptyLayer}:
            for layer, saved in zip(self.target_cache.layers, self.saved[1:], strict=True):
                # Cross-attention layers have an image's keys, which passes leave as they are.
                if rejected and layer.keys is not None and layer.keys is not saved["keys"]:
                    drop_columns(layer, rejected)
        elif rejected and not is_changed and self.replay.covers(self.tokens.shape[1]):
            self._rewind(longest)
        elif rejected or is_changed:
            restore(self.target_cache, self.saved)
            self._run(tokens)
        self.saved = None

    def _rewind(self, count: int) -> None:
        """Keys and values of the pass's first `count` tokens stay; states are made of them once more."""
        passed = [vars(layer).get("keys") for layer in self.target_cache.layers]
        values = [vars(layer).get("values") for layer in self.target_cache.layers]
        restore(self.target_cache, self.saved)
        for layer, saved, key, value in zip(self.target_cache.layers, self.saved[1:], passed, values, strict=True):
            if key is not None and key is not saved["keys"]:
                width = key.shape[-2] - self.tokens.shape[1] + count
                layer.keys, layer.values = key[..., :width, :], value[..., :width, :]
        self.replay.run(self.tokens.shape[1], count)

    def forget_nodes(self) -> None:
        """Undo the last pass."""
        restore(self.target_cache, self.saved)
        self.saved = None

    def _padded(self, tokens: torch.Tensor, ends: dict[int, int]) -> tuple[torch.Tensor, bool]:
        """Tokens as plain generate feeds them: padding behind sequences that ended in this cycle and are kept."""
        batch, is_changed = self.batch, False
        for a, number in enumerate(batch.active):
            first = ends.get(number, batch.lengths[number] + tokens.shape[1]) - batch.lengths[number] + 1
            if 1 < first < tokens.shape[1] and batch.pads_ended:
                tokens = tokens.clone()
                tokens[a, first:] = batch.pad_token_id
                is_changed = True
        return tokens, is_changed

    def select(self, kept: list[int], drop: bool) -> None:
        """Only the active sequences at `kept` continue; `drop` is always true here (see `call.py`)."""
        index = torch.tensor(kept, device=self.batch.ids.device)
        select_sequences(self.target_cache, index)
        for name, value in self.model_kwargs.items():
            axis = -2 if name == "position_ids" else 0
            if isinstance(value, torch.Tensor) and value.dim() and value.shape[axis] == self.num_running:
                self.model_kwargs[name] = value.index_select(axis, index.to(value.device))
        self.num_running = len(kept)

    def close(self, is_wanted: bool) -> Cache:
        """The target's cache, an ordinary one already unless a pass was interrupted."""
        if self.saved is not None:
            restore(self.target_cache, self.saved)
        return self.target_cache


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
