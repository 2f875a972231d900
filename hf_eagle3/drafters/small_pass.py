"""Passes of a small causal LM in slots of its own: its prompt, committed tokens, the levels of a tree.

    slots   the cat sat on | a  the | mat rug .       committed tokens, then the expanded nodes of two levels
                                                      accepted: a mat  ->  the cat sat on a mat

Committed tokens run once: where they were nodes of the last tree, their keys and values are moved into place. Does
not know trees beyond what each node sees, or why tokens were committed.

Shape letters: A active sequences, n nodes of a pass, w nodes written since the last commit, S slots, V vocabulary.
"""

import torch
from transformers import DynamicCache, PreTrainedModel

from ..compat.calls import cache_of, pass_inputs, prefill, put_cache
from ..compat.models import attention_name
from ..generation.ops.transfer import additive, on_device
from ..generation.verify.attention import share_mask, take_tree_masks
from ..generation.verify.masks import slot_positions
from ..generation.verify.slots import SlotCache
from ..target.layer_inputs import PassInputs, mask_argument, mask_kinds
from ..target.target import Target


class SmallPasses:
    """
    Args:
        model: The small model.
        ids: Prompts, (B, P), left padded.
        visible: Which of them are no padding, (B, P); `None`: all.
        room: Most nodes written between two commits.
        limit: Tokens that a sequence can reach.

    Attributes:
        cached: Committed tokens in the cache, per active sequence, left padding included.
    """

    def __init__(self, model: PreTrainedModel, ids: torch.Tensor, visible: torch.Tensor | None, room: int, limit: int):
        self.target, self.model = Target(model, None), model
        self.handles = self.target.layer_inputs.register()
        self.device, self.dtype = model.device, model.dtype
        num_sequences, length = ids.shape
        if visible is not None and bool(visible.all()):
            visible = None
        kwargs = {"attention_mask": torch.ones_like(ids) if visible is None else visible.long(), "use_cache": True}
        put_cache(kwargs, DynamicCache(config=self.target.config))
        if visible is not None and self.target.takes_positions and not self.target.counts_padding:
            kwargs["position_ids"] = (visible.long().cumsum(dim=1) - 1).clamp(min=0)
        if self.target.keeps_logits:
            kwargs["logits_to_keep"] = 1
        outputs = prefill(model, ids, model.generation_config, kwargs)
        if attention_name(self.target.config) != "eager":
            take_tree_masks(attention_name(self.target.config))
        self.slots = SlotCache(cache_of(outputs), num_sequences, length, room, limit)
        self.cached = [length] * num_sequences
        self.padding = [0] * num_sequences if visible is None else (length - visible.sum(dim=1)).tolist()
        self.visible = visible if visible is None else torch.nn.functional.pad(visible, (0, limit + room), value=True)
        spans, any_span = self.slots.spans, next(iter(self.slots.spans.values()))
        self.kinds = {
            kind: (spans.get(reach.kept, spans.get(None, any_span)), reach)
            for kind, reach in mask_kinds(self.target.config).items()
        }
        self.limit = limit
        self.begin()

    def begin(self) -> None:
        """Nothing is written behind the committed tokens."""
        self.write, self.written = max(self.cached), 0
        self._places: torch.Tensor | None = None
        self._prefixes: dict[str, torch.Tensor] = {}

    def run(
        self, tokens: torch.Tensor, depths: torch.Tensor, seen: torch.Tensor, is_chain: bool = False
    ) -> torch.Tensor:
        """
        Logits (A, n, V) of nodes, which are written behind those written before.

        Args:
            tokens, depths: Of the nodes, (A, n); depth 0 is the token behind the cached ones.
            seen: What they see of the nodes written since the last commit, themselves included, additive,
                (A, 1, n, w + n).
            is_chain: They see all of these.
        """
        count = tokens.shape[1]
        self.slots.begin_pass(self.write + self.written, min(self.cached), count)
        if self._places is None:
            self._places = on_device([self.cached, self.padding], self.device)[:, :, None]
        here = self._places[0] + depths
        hides_nothing = count == 1 and is_chain and self._is_plain
        masks = {}
        for kind in self.kinds:
            prefix = self._prefix(kind, here)
            mask = torch.cat((prefix.expand(-1, -1, count, -1), seen), dim=3)
            masks[kind] = share_mask(mask, hides_nothing)
        positions = (here - self._places[1]).clamp(max=self.limit - 1)
        by_slot = None
        if self.target.layer_inputs.hooked:
            by_slot = slot_positions(self.write + self.written, self.visible, here)
        given = PassInputs(masks, by_slot, here)
        kwargs = {"position_ids": positions}
        put_cache(kwargs, self.slots)
        inputs = pass_inputs(self.model, tokens, count, kwargs)
        put_cache(inputs, self.slots)
        inputs["attention_mask"] = mask_argument(self.target.config, given)
        if self.target.takes_positions:
            inputs["position_ids"] = here if self.target.counts_padding else positions
        if self.target.keeps_logits:
            inputs["logits_to_keep"] = count
        with self.target.layer_inputs.replaced(given):
            logits = self.model(**inputs, return_dict=True).logits
        self.written += count
        return logits

    @property
    def _is_plain(self) -> bool:
        """Whether all slots before the nodes are committed tokens of every sequence, with no window over them."""
        is_even = self.visible is None and min(self.cached) == self.write
        return is_even and all(reach.window is None and reach.chunk is None for _, reach in self.kinds.values())

    def _prefix(self, kind: str, here: torch.Tensor) -> torch.Tensor:
        """What nodes at the slots `here` (A, n) see of the slots up to the first node, additive, (A, 1, 1 or n, S)."""
        span, reach = self.kinds[kind]
        width = self.write - span.start
        known = self._prefixes.get(kind)
        if known is not None and known.shape[3] == width and reach.window is None:
            return known
        slots = torch.arange(span.start, self.write, device=self.device)
        seen = slots < self._places[0]  # (A, S)
        if self.visible is not None:
            seen = seen & self.visible[:, span.start : self.write]
        seen = seen[:, None]
        if reach.window is not None:
            seen = seen & (here[:, :, None] - slots < reach.window)
        self._prefixes[kind] = additive(seen, self.dtype)[:, None]
        return self._prefixes[kind]

    def commit(self, paths: list[list[int]]) -> None:
        """The nodes at the places `paths` now follow each sequence's tokens; the other nodes are forgotten."""
        longest = max(map(len, paths))
        in_place = min(self.cached) == self.write and all(path == list(range(len(path))) for path in paths)
        if longest and not in_place:
            padded = [path + [0] * (longest - len(path)) for path in paths]  # moves slots that stay masked
            lengths, nodes = on_device(self.cached, self.device), on_device(padded, self.device)
            self.slots.keep(self.write, lengths, nodes)
        self.cached = [length + len(path) for length, path in zip(self.cached, paths, strict=True)]
        self.begin()

    def forget_all(self) -> None:
        """No token is cached."""
        self.cached = [0] * len(self.cached)
        self.begin()

    def select(self, kept: list[int]) -> None:
        """Only the active sequences at the places `kept` continue, in that order; nodes are forgotten."""
        self.slots.select(kept, drop=True)
        self.cached = [self.cached[place] for place in kept]
        self.padding = [self.padding[place] for place in kept]
        if self.visible is not None:
            self.visible = self.visible[kept]
        self.begin()

    def close(self) -> None:
        """No hooks stay on the model."""
        for handle in self.handles:
            handle.remove()
