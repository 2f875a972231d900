"""Calls that no draft may touch run the host's own decoding, and say so.

RoPE of type longrope or dynamic follows the longest sequence of a pass. Where it changes within a call, no pass over
several steps, or over rows at different lengths, has plain generate's frequencies.
"""

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from ..target import length_dependent_rope
from .outputs import GenerateEagle3Output
from .stats import new_stats, publish
from .target_pass import cache_name, cached_columns


logger = logging.get_logger(__name__)


def crosses_rope_threshold(
    model: PreTrainedModel, input_ids: torch.Tensor, max_length: int, model_kwargs: dict
) -> bool:
    """Whether RoPE frequencies may change within a call that may reach `max_length` tokens."""
    rope = length_dependent_rope(model.config.get_text_config(decoder=True))
    if rope is None:
        return False
    threshold, changes_once = rope
    lengths = torch.tensor([input_ids.shape[1] + cached_columns(model_kwargs.get(cache_name(model_kwargs)), 0)])
    if model_kwargs.get("position_ids") is not None:
        lengths = model_kwargs["position_ids"][..., -1] + 1
    reach = int(lengths.max()) + max_length - input_ids.shape[1]
    return reach > threshold and not (changes_once and int(lengths.min()) > threshold)


def plain_decode(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    streamer: BaseStreamer | None,
    model_kwargs: dict,
) -> GenerateEagle3Output | torch.Tensor:
    """The host's `_sample`; its stats say "plain"."""
    logger.warning_once(
        f"RoPE of {type(model).__name__} changes at a length that this call may cross; it runs without speculation. "
        "Lower `max_new_tokens` to stay below."
    )
    stats = new_stats()
    stats.mode, stats.reason = "plain", "RoPE frequencies may change within the call"
    out = model._sample(
        input_ids,
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
        generation_config=generation_config,
        streamer=streamer,
        **model_kwargs,
    )
    publish(stats)
    return out if isinstance(out, torch.Tensor) else GenerateEagle3Output(**out, speculation=stats)
