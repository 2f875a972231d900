"""Locates a target's decoder layers, embedding and head, however it was loaded.

Plain, quantised, offloaded, sharded or compiled; on its own or inside a vision-language model. Does not know drafts or
individual architectures.

Shape letters: B batch, L sequence, H hidden, V target vocabulary, D draft vocabulary.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from ..compat.models import can_use_sdpa, optional_field
from ..configuration_eagle3 import num_decoder_layers


# Configuration fields of what a head does to its logits after the projection.
HEAD_FACTORS, HEAD_DIVISORS = ("logit_scale", "lm_head_multiplier"), ("logits_scaling",)
HEAD_SOFT_CAP = "final_logit_softcapping"
UNIT_VECTORS = 256  # per pass through a head whose weight cannot be read


def unwrap_peft(model):
    """The model inside a PEFT wrapper, or `model` itself. Adapters stay active, as they live in its layers."""
    if isinstance(model, nn.Module) and not isinstance(model, PreTrainedModel) and hasattr(model, "get_base_model"):
        return model.get_base_model()
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without the wrappers of PEFT, `torch.compile` and data parallelism."""
    while True:
        inner = unwrap_peft(model)
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            inner = model._orig_mod
        if inner is model:
            return model
        model = inner


def decoder_layers(target: PreTrainedModel) -> nn.ModuleList | None:
    """The decoder layers: the outermost `ModuleList` with as many modules as there are layers, or `None`."""
    text = target.config.get_text_config(decoder=True)
    parts = [optional_field(target.config, name) for name in target.config.sub_configs]
    others = {part.model_type for part in parts if part is not None} - {text.model_type}
    for root in (target.get_decoder(), target):  # `get_decoder` may return a part of the head
        for module in _modules_without(others, root):
            if isinstance(module, nn.ModuleList) and len(module) == num_decoder_layers(text):
                return module
    return None


def decoder_of(target: PreTrainedModel, layers: nn.ModuleList | None) -> nn.Module:
    """The module that runs `layers`: `get_decoder()`, unless that is a part of the head."""
    decoder = target.get_decoder()
    return decoder if any(module is layers for module in decoder.modules()) else target


def _modules_without(model_types: set[str], root: nn.Module) -> Iterator[nn.Module]:
    """`root.modules()` without models of `model_types`: a vision tower may have as many layers as the decoder."""
    yield root
    for child in root.children():
        config = vars(child).get("config")
        if not (isinstance(config, PreTrainedConfig) and config.model_type in model_types):
            yield from _modules_without(model_types, child)


def one_stream(hidden: torch.Tensor, config) -> torch.Tensor:
    """
    A layer's output as (B, L, H). Layers with several residual streams return all of them: Gemma 3n
    (streams, B, L, H), of which the active one is taken, hyper-connections (B, L, streams, H) or (B, L, streams * H),
    which are averaged.
    """
    if hidden.dim() == 3 and hidden.shape[-1] == config.hidden_size:
        return hidden
    active = optional_field(config, "altup_active_idx")
    if active is not None and hidden.dim() == 4:
        return hidden[active]
    streams = hidden.unflatten(-1, (-1, config.hidden_size)).flatten(2, -2)  # (B, L, streams, H)
    return streams.mean(dim=2) if streams.shape[2] > 1 else hidden


def batch_axis(hidden: torch.Tensor, config) -> int:
    """The batch axis of a layer's output: Gemma 3n has the streams before it."""
    return 1 if hidden.dim() == 4 and optional_field(config, "altup_active_idx") is not None else 0


def sdpa_stands_in(model: PreTrainedModel) -> bool:
    """
    Whether sdpa computes what the model's attention does. It has no sinks or soft caps, and it cannot replace
    attention that is a class chosen when the model is built (Falcon), not a function of transformers' interface.
    """
    decoder = model.get_decoder()
    decoder = decoder if isinstance(decoder, PreTrainedModel) else model
    return can_use_sdpa(decoder) and not optional_field(decoder.config, "attn_logit_softcapping")


def is_compiled(model: PreTrainedModel) -> bool:
    """Whether the model or a part of it is compiled: compiled code ignores hooks added later."""
    return any(
        module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable")
        for module in model.modules()
    )


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether several processes run each forward of the model together."""
    return any(map(_is_sharded_tensor, model.parameters())) or (model.tp_size or 1) > 1


def _is_sharded_tensor(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor, whose class not every build of torch has


def int8_outliers(model: PreTrainedModel) -> float:
    """
    LLM.int8()'s outlier threshold, 0 without. A feature that exceeds it in one token is kept out of int8 for all
    tokens of the pass, so that results depend on the other tokens.
    """
    config = optional_field(model.config, "quantization_config")
    return config.llm_int8_threshold if isinstance(config, BitsAndBytesConfig) and config.load_in_8bit else 0.0


def adapts_rows(model: PreTrainedModel) -> bool:
    """Whether PEFT applies one adapter per sequence (`adapter_names`), so that no sequence may leave the batch."""
    return any(
        isinstance(hook, partial) and "adapter_names" in hook.keywords
        for module in model.modules()
        for hook in module._forward_pre_hooks.values()
    )


def embedding_weight(model: PreTrainedModel) -> torch.Tensor:
    """
    The embedding's weight (V, H): for an offloaded embedding accelerate's CPU copy, for a sharded one the full tensor.

    Raises:
        ValueError: the weight is quantised, or offloaded by something other than accelerate.
    """
    embedding = model.get_input_embeddings()
    weight = embedding.weight
    if weight.is_meta:
        hook = vars(embedding).get("_hf_hook")  # accelerate's
        weights = None if hook is None else vars(hook).get("weights_map")
        if weights is None:
            raise ValueError(
                "The target's embedding has no data (device meta); load the target to a device to use a draft."
            )
        weight = weights["weight"]
    if _is_sharded_tensor(weight):
        weight = weight.full_tensor()
    if not weight.is_floating_point():
        raise ValueError(
            f"The target's embedding is quantised ({type(embedding).__name__}, {weight.dtype}), and a draft reads its "
            "rows; exclude it from quantisation."
        )
    return weight


@torch.no_grad()
def head_rows(model: PreTrainedModel, size: int, ids: torch.Tensor | None) -> torch.Tensor:
    """
    Rows of the output head for `ids` (D,), or all rows, (D, H) with H = `size`. Where the weight cannot be read
    (quantised, offloaded, sharded), the head is applied to unit vectors.
    """
    head = model.get_output_embeddings()
    weight = dict(head.named_parameters(recurse=False)).get("weight")  # a LoRA layer's `weight` is its base layer's
    is_plain = isinstance(weight, torch.Tensor) and type(weight.data) is torch.Tensor and not weight.is_meta
    if is_plain and weight.is_floating_point() and weight.shape[1] == size:
        return weight if ids is None else weight[ids.to(weight.device)]
    device = None if model.device.type == "meta" else model.device
    units = torch.eye(size, dtype=model.dtype, device=device)
    zero = head(torch.zeros_like(units[:1]))  # the bias, if there is one
    parts = [head(part) - zero for part in units.split(UNIT_VECTORS)]
    return torch.cat([part if ids is None else part[:, ids.to(part.device)] for part in parts]).T


def head_options(config) -> dict[str, float]:
    """Scales and soft cap that a target's head applies to its logits, by configuration field."""
    names = (*HEAD_FACTORS, *HEAD_DIVISORS, HEAD_SOFT_CAP)
    return {name: value for name in names if (value := optional_field(config, name))}


def shaped_logits(logits: torch.Tensor, options: dict[str, float]) -> torch.Tensor:
    """The model's logits from the bare projection and `head_options`."""
    for name in HEAD_FACTORS:
        logits = logits * options.get(name, 1)
    for name in HEAD_DIVISORS:
        logits = logits / options.get(name, 1)
    cap = options.get(HEAD_SOFT_CAP)
    return logits if cap is None else torch.tanh(logits / cap) * cap
