"""Where a target keeps its decoder layers, embedding rows and head, however it was loaded.

Whole, quantised, offloaded, sharded or compiled; inside a vision-language model or alone. Does not know drafts, nor
single architectures.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from ..compat.models import can_use_sdpa
from ..configuration_eagle3 import num_decoder_layers


# What a head does to its logits after the matrix product, by the name of the configuration's field.
HEAD_FACTORS, HEAD_DIVISORS = ("logit_scale", "lm_head_multiplier"), ("logits_scaling",)
HEAD_SOFT_CAP = "final_logit_softcapping"
UNIT_VECTORS = 256  # at once, through a head whose rows cannot be read


def unwrap_peft(model):
    """The model inside a PEFT wrapper (adapters stay active: they live in its layers), or `model` itself."""
    if isinstance(model, nn.Module) and not isinstance(model, PreTrainedModel) and hasattr(model, "get_base_model"):
        return model.get_base_model()
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside what PEFT, `torch.compile` and data parallelism wrap around it."""
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
    """The decoder layers in order: the outermost list of as many modules as there are layers. `None` without one."""
    text = target.config.get_text_config(decoder=True)
    parts = [getattr(target.config, name, None) for name in target.config.sub_configs]
    others = {part.model_type for part in parts if part is not None} - {text.model_type}
    for root in (target.get_decoder(), target):  # what `get_decoder` finds may be a part of the head
        for module in _modules_but(others, root):
            if isinstance(module, nn.ModuleList) and len(module) == num_decoder_layers(text):
                return module
    return None


def decoder_of(target: PreTrainedModel, layers: nn.ModuleList | None) -> nn.Module:
    """The module that runs `layers`: what `get_decoder` finds, unless that is a part of the head."""
    decoder = target.get_decoder()
    return decoder if any(module is layers for module in decoder.modules()) else target


def _modules_but(model_types: set[str], root: nn.Module) -> Iterator[nn.Module]:
    """`root.modules()` without those of `model_types`: a vision tower may have as many layers as the decoder."""
    yield root
    for child in root.children():
        config = getattr(child, "config", None)
        if not (isinstance(config, PreTrainedConfig) and config.model_type in model_types):
            yield from _modules_but(model_types, child)


def one_stream(hidden: torch.Tensor, config) -> torch.Tensor:
    """
    (B, L, H) of a layer's output. Layers with several residual streams give them all: Gemma 3n (streams, B, L, H), of
    which one is the layer's own, hyper-connections (B, L, streams, H) or (B, L, streams x H), of which the mean is
    taken.
    """
    if hidden.dim() == 3 and hidden.shape[-1] == config.hidden_size:
        return hidden
    active = getattr(config, "altup_active_idx", None)
    if active is not None and hidden.dim() == 4:
        return hidden[active]
    streams = hidden.unflatten(-1, (-1, config.hidden_size)).flatten(2, -2)  # (B, L, streams, H)
    return streams.mean(dim=2) if streams.shape[2] > 1 else hidden


def batch_axis(hidden: torch.Tensor, config) -> int:
    """The axis of sequences in a layer's output: Gemma 3n has its streams before them."""
    return 1 if hidden.dim() == 4 and getattr(config, "altup_active_idx", None) is not None else 0


def sdpa_stands_in(model: PreTrainedModel) -> bool:
    """
    Whether sdpa gives what another attention would. Some have sinks or soft-caps, which it has not; some are classes
    of their own, chosen when the model is built (Falcon), not functions of the host's interface.
    """
    decoder = model.get_decoder()
    decoder = decoder if isinstance(decoder, PreTrainedModel) else model
    return can_use_sdpa(decoder) and not getattr(decoder.config, "attn_logit_softcapping", None)


def is_compiled(model: PreTrainedModel) -> bool:
    """Whether `torch.compile` runs the model or a part of it, or will: what is compiled ignores hooks added later."""
    return any(
        module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable")
        for module in model.modules()
    )


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether several processes run the model together, pass by pass."""
    shared = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())  # DTensors
    return shared or (model.tp_size or 1) > 1


def int8_outliers(model: PreTrainedModel) -> float:
    """
    The threshold from which LLM.int8() leaves a feature out of its integers, 0 without: one token of a pass above it
    decides for all of them.
    """
    config = getattr(model.config, "quantization_config", None)
    return config.llm_int8_threshold if isinstance(config, BitsAndBytesConfig) and config.load_in_8bit else 0.0


def adapts_rows(model: PreTrainedModel) -> bool:
    """Whether PEFT gives each row an adapter of its own (`adapter_names`), so that none may leave the batch."""
    return any(
        isinstance(hook, partial) and "adapter_names" in hook.keywords
        for module in model.modules()
        for hook in module._forward_pre_hooks.values()
    )


def embedding_weight(model: PreTrainedModel) -> torch.Tensor:
    """
    The embedding's weight (V, H); of an offloaded embedding, a copy on the CPU; of a sharded one, all of it.

    Raises:
        ValueError: its rows cannot be read: quantised, or offloaded by other means than accelerate's.
    """
    embedding = model.get_input_embeddings()
    weight = embedding.weight
    if weight.is_meta:
        weights = getattr(getattr(embedding, "_hf_hook", None), "weights_map", None)
        if weights is None:
            raise ValueError("The target's embedding has no data (device meta); load it to a device to use a draft.")
        weight = weights["weight"]
    if hasattr(weight, "full_tensor"):  # a DTensor, whose class not every torch has
        weight = weight.full_tensor()
    if not weight.is_floating_point():
        raise ValueError(
            f"The target's embedding is quantised ({type(embedding).__name__}, {weight.dtype}) and a draft reads its "
            "rows; leave it out of the quantisation."
        )
    return weight


@torch.no_grad()
def head_rows(model: PreTrainedModel, size: int, ids: torch.Tensor | None) -> torch.Tensor:
    """
    Rows of the output head for `ids` (D,), or all, (D, H) with H = `size`. Where the head holds them in another way
    (quantised, offloaded, sharded), they are what it makes of unit vectors.
    """
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    is_plain = isinstance(weight, torch.Tensor) and type(weight.data) is torch.Tensor and not weight.is_meta
    if is_plain and weight.is_floating_point() and weight.shape[1] == size:
        return weight if ids is None else weight[ids.to(weight.device)]
    device = None if model.device.type == "meta" else model.device
    units = torch.eye(size, dtype=model.dtype, device=device)
    zero = head(torch.zeros_like(units[:1]))
    parts = [head(part) - zero for part in units.split(UNIT_VECTORS)]
    return torch.cat([part if ids is None else part[:, ids.to(part.device)] for part in parts]).T


def head_options(config) -> dict[str, float]:
    """What the head of a target does to its logits beyond the matrix product, by the configuration's field names."""
    names = (*HEAD_FACTORS, *HEAD_DIVISORS, HEAD_SOFT_CAP)
    return {name: value for name in names if (value := getattr(config, name, None))}


def shaped_logits(logits: torch.Tensor, options: dict[str, float]) -> torch.Tensor:
    """Logits as the model gives them, from the bare product and `head_options`."""
    for name in HEAD_FACTORS:
        logits = logits * options.get(name, 1)
    for name in HEAD_DIVISORS:
        logits = logits / options.get(name, 1)
    cap = options.get(HEAD_SOFT_CAP)
    return logits if cap is None else torch.tanh(logits / cap) * cap
