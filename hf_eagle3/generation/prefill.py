"""The prompt: what a call of `generate` is going to do, and the target's pass over its prompt.

Shape letters: B sequences of the batch, P tokens of the prompt, F features.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)

from ..compat.caches import cached_columns, is_unused, is_user_provided
from ..compat.calls import cache_of, prefill, put_cache, updated_kwargs
from ..compat.outputs import BaseStreamer
from ..errors import CallRefused
from ..target.mode import own_cache
from ..target.target import Target
from .compiled.shapes import static_shapes
from .draft.interface import DrafterKind, drafter_kind
from .settings import Settings, settle
from .stats import PhaseTimer, SpeculationStats, new_stats


@dataclass
class Request:
    """
    A call as `generate` prepared it.

    Args:
        model, draft: The target, and the assistant.
        input_ids: Prompt, (B, P), left padded.
        model_kwargs: What forward passes are given.
    """

    model: PreTrainedModel
    draft: Any
    input_ids: torch.Tensor
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    generation_config: GenerationConfig
    streamer: BaseStreamer | None
    model_kwargs: dict


class Preparation:
    """
    What is decided before the prompt is read.

    Raises:
        ValueError: draft and target do not fit, the target allows no speculation, or options do not go together.
    """

    def __init__(self, request: Request):
        model, config, kwargs = request.model, request.generation_config, request.model_kwargs
        if request.input_ids.shape[1] == 0 and kwargs.get("inputs_embeds") is None:
            raise ValueError("`input_ids` is empty; give a prompt of at least one token.")
        self.request, self.started = request, time.perf_counter()
        self.kind: DrafterKind = drafter_kind(request.draft)
        self.target = Target(model, self.kind.features(request.draft))
        static = static_shapes(model, config, request.input_ids, kwargs)
        self.cache: Cache | None = prepared_cache(model, kwargs)
        self.settings: Settings = settle(
            self.target,
            self.kind.sizes(request.draft),
            self.cache,
            config,
            static,
            self.kind.device(request.draft, model),
            self.kind.identity(request.draft),
            self.kind.traits(request.draft),
        )
        self.returns_cache = bool(config.return_dict_in_generate)
        self.returns_cache |= is_user_provided(self.cache) if static is None else static.is_callers
        self.stats: SpeculationStats = new_stats()
        self.stats.mode = "chain" if self.settings.sizes.is_chain else "tree"
        self.stats.reason = self.settings.mode.reason
        self.timer = PhaseTimer(self.stats.phase_seconds, self.stats.synchronize)
        if not self.target.uses_hooks:
            kwargs["output_hidden_states"] = True
            config.prefill_chunk_size = None  # the outputs would show the last chunk only


@dataclass
class PromptPass:
    """
    What the target's pass over the prompt left.

    Attributes:
        outputs: The model's; `None` once they are used.
        features: Of the tokens that ran, (B, m, F).
        cache: Holds the prompt.
        num_cached: Tokens that it held before.
        length: Slots that it holds.
    """

    outputs: Any = field(repr=False)
    features: torch.Tensor
    cache: Cache
    num_cached: int
    length: int


def read_prompt(prepared: Preparation) -> PromptPass:
    """The prompt through transformers' own prefill: its masks, chunks, cached prefixes, embeddings and images."""
    request, target = prepared.request, prepared.target
    kwargs, model = request.model_kwargs, request.model
    before = cached_columns(prepared.cache, 0)
    with prepared.timer.phase("prefill"), target.capturing():
        outputs = prefill(model, request.input_ids, request.generation_config, kwargs | target.prefill_options)
    features = target.features(outputs)
    if prepared.settings.static is not None:
        target.read_outputs()
        kwargs["output_hidden_states"] = True
    cache = cache_of(outputs) if cache_of(outputs) is not None else prepared.cache
    if model.training and is_unused(cache):
        raise CallRefused(
            f"{type(model).__name__} keeps no cache in this state (training with gradient checkpointing); "
            "call `eval()` before `generate`."
        )
    put_cache(kwargs, cache)
    kwargs |= prefill_extras(model, outputs, kwargs)
    length = before + features.shape[1] if target.layer_ids else request.input_ids.shape[1]
    return PromptPass(outputs, features, cache, before, cached_columns(cache, length))


def prepared_cache(model: PreTrainedModel, model_kwargs: dict) -> Cache | None:
    """The cache that `generate` prepared; where it leaves that to the model, an empty one of the model's own class."""
    if cache_of(model_kwargs) is None and (cache := own_cache(model)) is not None:
        put_cache(model_kwargs, cache)
    return cache_of(model_kwargs)


def prefill_extras(model: PreTrainedModel, outputs, model_kwargs: dict) -> dict:
    """What the prompt's pass hands to later ones beside the cache, by name: an image's states in the first Idefics."""
    updated = updated_kwargs(model, outputs, model_kwargs)
    return {name: value for name, value in updated.items() if name not in model_kwargs}
