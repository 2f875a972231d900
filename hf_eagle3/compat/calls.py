"""What `generate` prepares for a decoding method, and what a model's forward takes and returns.

5.24 renamed the cache to `cache` in arguments, model kwargs and outputs; before, it is `past_key_values`, or
`cache_params` in Mamba-like models. Does not know drafts.
"""

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import Cache, CompileConfig, GenerationConfig, PreTrainedModel

from .points import COMMANDS, uses


MIXIN = "transformers.GenerationMixin"
uses(MIXIN, "_prefill", "reading the prompt", parameters=("input_ids", "generation_config", "model_kwargs"))
uses(
    MIXIN,
    "_sample",
    "decoding without a draft",
    parameters=("logits_processor", "stopping_criteria", "generation_config", "streamer"),
)
uses(
    MIXIN,
    "_update_model_kwargs_for_generation",
    "inputs of the next pass",
    parameters=("outputs", "model_kwargs", "is_encoder_decoder", "num_new_tokens"),
)
_prepares_inputs = uses(
    MIXIN,
    "prepare_inputs_for_generation",
    "inputs of a pass",
    parameters=("next_sequence_length", "is_first_iteration"),
)
uses(MIXIN, "_supports_default_dynamic_cache", "which cache a model starts with")
uses(MIXIN, "_valid_auto_compile_criteria", "static shapes", parameters=("model_kwargs", "generation_config"))
uses("transformers.PreTrainedModel", "get_compiled_call", "static shapes", parameters=("compile_config",))
uses(
    "transformers.CompileConfig",
    "_compile_all_devices",
    "`benchmarks.simulated`",
    scope=COMMANDS,
    holder=CompileConfig,
)
uses(MIXIN, "_optimize_model_for_decode", "experts while decoding", since="5.10")

CACHE_NAMES = ("cache", "past_key_values", "cache_params")


def _names_of_cache(function) -> list[str]:
    taken = inspect.signature(function).parameters
    return [name for name in CACHE_NAMES if name in taken]


# The cache's name among the arguments of `generate` and the fields of its output.
CACHE = (_names_of_cache(_prepares_inputs) or ["past_key_values"])[0]


def cache_argument(function) -> str | None:
    """The cache argument of a model's `forward`, or `None`."""
    return next(iter(_names_of_cache(function)), None)


_KEYS = ("cache",) if CACHE == "cache" else ("past_key_values", "cache_params")


def _cache_key(model_kwargs: dict) -> str:
    return next((name for name in _KEYS if name in model_kwargs), CACHE)


def cache_of(model_kwargs: dict) -> Cache | None:
    """The cache in `generate`'s model kwargs or in a model's outputs."""
    return model_kwargs.get(_cache_key(model_kwargs))


def put_cache(model_kwargs: dict, cache: Cache) -> None:
    """Set what `cache_of` reads."""
    model_kwargs[_cache_key(model_kwargs)] = cache


# Arguments that carry the sequence itself, its cache or positions.
BOOKKEEPING = (
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    "cache_position",
    "logits_to_keep",
    *CACHE_NAMES,
)


def prefill(model: PreTrainedModel, input_ids: torch.Tensor, config: GenerationConfig, model_kwargs: dict):
    """Run the prompt and return the model's outputs."""
    return model._prefill(input_ids, config, model_kwargs)


def sample(model: PreTrainedModel, input_ids: torch.Tensor, prepared: dict, model_kwargs: dict):
    """Continue as plain `generate`; `prepared` holds processors, criteria, configuration and streamer."""
    return model._sample(input_ids, **prepared, **model_kwargs)


def updated_kwargs(model: PreTrainedModel, outputs, model_kwargs: dict, num_new_tokens: int = 1) -> dict:
    """The model kwargs after a pass that returned `outputs`."""
    return model._update_model_kwargs_for_generation(
        outputs, dict(model_kwargs), is_encoder_decoder=False, num_new_tokens=num_new_tokens
    )


def pass_inputs(model: PreTrainedModel, ids: torch.Tensor, num_tokens: int, model_kwargs: dict) -> dict:
    """Arguments of a forward over the last `num_tokens` of `ids`, after prefill."""
    return model.prepare_inputs_for_generation(
        ids, next_sequence_length=num_tokens, is_first_iteration=False, **model_kwargs
    )


def pad_token_id(config: GenerationConfig) -> int:
    """The token that fills finished sequences: the padding token, else the first EOS token, else 0."""
    if config.pad_token_id is not None:
        return int(config.pad_token_id)
    ends = config.eos_token_id if isinstance(config.eos_token_id, (list, tuple)) else [config.eos_token_id]
    return int(next((end for end in ends if end is not None), 0))


def makes_dynamic_cache(model: PreTrainedModel) -> bool:
    """Whether `generate` creates a `DynamicCache` for the model."""
    return model._supports_default_dynamic_cache()


def would_compile(model: PreTrainedModel, cache: Cache, config: GenerationConfig) -> bool:
    """Whether plain `generate` would compile its steps with this cache."""
    return model._valid_auto_compile_criteria({CACHE: cache}, config)


def compiled_call(model: PreTrainedModel, config: GenerationConfig) -> Any:
    """The model's forward, compiled as plain `generate` compiles it."""
    return model.get_compiled_call(config.compile_config)


def compile_on_every_device(config: CompileConfig) -> None:
    """Make plain `generate` compile its steps on CPUs too, which it skips by default."""
    config._compile_all_devices = True


def optimised_for_decoding(model: PreTrainedModel) -> AbstractContextManager:
    """Inside the block, experts run as in plain `generate`'s single steps; a no-op before 5.10."""
    return getattr(model, "_optimize_model_for_decode", nullcontext)()
