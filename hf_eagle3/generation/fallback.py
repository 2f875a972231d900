"""Calls that no draft may touch run plain decoding, with a warning.

RoPE of type longrope or dynamic follows the longest sequence of a pass. Where it changes within a call, no pass over
several steps, or over sequences at different lengths, has plain generate's frequencies. A few architectures differ
with padding on the left, or past a length where they choose among equal keys.
"""

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..compat.caches import cached_columns
from ..compat.calls import cache_of, put_cache, sample
from ..target.layer_inputs import length_dependent_rope
from ..target.mode import KEY_LIMIT, UNPADDED_ONLY, decoding_mode
from .compiled.shapes import plain_static_cache
from .outputs import GenerateEagle3Output
from .stats import SpeculationStats, new_stats, publish


logger = logging.get_logger(__name__)


def crosses_rope_threshold(
    model: PreTrainedModel, input_ids: torch.Tensor, max_length: int, model_kwargs: dict
) -> bool:
    """Whether RoPE frequencies may change within a call that may reach `max_length` tokens."""
    rope = length_dependent_rope(model.config.get_text_config(decoder=True))
    if rope is None:
        return False
    threshold, changes_once = rope
    lengths = torch.tensor([input_ids.shape[1] + cached_columns(cache_of(model_kwargs), 0)])
    if model_kwargs.get("position_ids") is not None:
        lengths = model_kwargs["position_ids"][..., -1] + 1
    reach = int(lengths.max()) + max_length - input_ids.shape[1]
    return reach > threshold and not (changes_once and int(lengths.min()) > threshold)


def why_plain(
    model: PreTrainedModel, input_ids: torch.Tensor, max_length: int, model_kwargs: dict
) -> tuple[str, str] | None:
    """(why a call must run without a draft, what would help); `None`: it need not."""
    if crosses_rope_threshold(model, input_ids, max_length, model_kwargs):
        return "RoPE frequencies may change within the call", "Lower `max_new_tokens` to stay below that length."
    config, mask = model.config.get_text_config(decoder=True), model_kwargs.get("attention_mask")
    is_unsteady = config.model_type in UNPADDED_ONLY and mask is not None and not mask.all()
    if is_unsteady and decoding_mode(model, cache_of(model_kwargs)).kind != "refused":
        return "padding on the left changes what this model attends to", "Give prompts of one length."
    limit = vars(config).get(KEY_LIMIT)
    if limit is not None and max_length + cached_columns(cache_of(model_kwargs), 0) > limit:
        # Equal tokens have equal gates in the first layer.
        return f"beyond `{KEY_LIMIT}` keys are chosen among ties", "Lower `max_new_tokens` to stay below that length."
    return None


def plain_decode(
    model: PreTrainedModel, input_ids: torch.Tensor, prepared: dict, model_kwargs: dict, reason: str, remedy: str
) -> GenerateEagle3Output | torch.Tensor:
    """Transformers' own `_sample`; the stats have the mode "plain"."""
    logger.warning_once(f"{type(model).__name__} runs without speculation: {reason}. {remedy}")
    stats = new_stats()
    stats.mode, stats.reason = "plain", reason
    if (cache := plain_static_cache(model, prepared["generation_config"], input_ids, model_kwargs)) is not None:
        put_cache(model_kwargs, cache)
    return with_stats(sample(model, input_ids, prepared, model_kwargs), stats)


def with_stats(out, stats: SpeculationStats) -> GenerateEagle3Output | torch.Tensor:
    """What plain `generate` returned, with the stats of a call that drafted nothing."""
    publish(stats)
    return out if isinstance(out, torch.Tensor) else GenerateEagle3Output(**out, speculation=stats)
