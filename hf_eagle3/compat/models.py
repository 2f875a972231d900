"""Attributes of models and configurations, attention functions, rotary embeddings. Does not know drafts or trees."""

from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .points import COMMANDS, is_missing, uses


LlamaRotaryEmbedding = uses(
    "transformers.models.llama.modeling_llama", "LlamaRotaryEmbedding", "the draft's rotary embedding"
)
ACT2FN = uses("transformers.activations", "ACT2FN", "the draft's activation function")
ROPE_INIT_FUNCTIONS = uses(
    "transformers.modeling_rope_utils", "ROPE_INIT_FUNCTIONS", "checking `config.json`", scope=COMMANDS
)
AttentionInterface = uses("transformers", "AttentionInterface", "attention of verification passes")
sdpa_attention_forward = uses(
    "transformers.integrations.sdpa_attention", "sdpa_attention_forward", "attention of verification passes"
)
MODEL = "transformers.PreTrainedModel"
uses(MODEL, "_supports_sdpa", "attention of verification passes", is_word=True)  # model classes set it
uses(MODEL, "_supports_attention_backend", "attention of verification passes")
uses(MODEL, "_is_stateful", "the tree mode 'host_chain'")
uses(
    "transformers.PreTrainedConfig",
    "_attn_implementation",
    "attention of verification passes",
    holder=PreTrainedConfig,
)
uses("transformers.AutoModelForCausalLM", "_model_mapping", "`inspect` of a target", scope=COMMANDS)


class _ExactRotaryEmbedding(LlamaRotaryEmbedding):
    """
    Keeps its frequencies in full precision when the model is converted, e.g. by `draft.to(torch.bfloat16)`: rounded
    ones rotate by wrong angles at positions in the thousands. ("RotaryEmbedding" must stay in the class name: by it
    transformers finds the buffers to initialise after loading.)
    """

    def _apply(self, fn, recurse: bool = True):
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in dict(self.named_buffers()).items():
            if buffer.dtype != before[name].dtype:
                setattr(self, name, before[name].to(buffer.device))
        return self


class _NoRotaryEmbedding(nn.Module):
    """Replaces a missing class, so that a draft still loads and `generate` can run without it."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()

    def forward(self, *args, **kwargs):
        """Raises `MissingPoint`."""
        LlamaRotaryEmbedding()


def rotary_embedding(config: PreTrainedConfig) -> nn.Module:
    """
    A module that maps (a tensor of the wanted dtype and device, positions (B, L)) to cos and sin (B, L, d), with every
    RoPE scaling that transformers has. No parameters.
    """
    return (_NoRotaryEmbedding if is_missing(LlamaRotaryEmbedding) else _ExactRotaryEmbedding)(config)


def activation(name: str) -> nn.Module:
    """The activation function called `name` in configurations."""
    return nn.SiLU() if is_missing(ACT2FN) else ACT2FN[name]


def known_activations() -> tuple[str, ...]:
    """Names that `activation` accepts; empty if unknown."""
    return () if is_missing(ACT2FN) else tuple(ACT2FN)


def known_rope_types() -> tuple[str, ...]:
    """The `rope_type`s that `rotary_embedding` supports; empty if unknown."""
    return () if is_missing(ROPE_INIT_FUNCTIONS) else ("default", *ROPE_INIT_FUNCTIONS)


def optional_field(config: PreTrainedConfig, name: str) -> Any:
    """A field that only some architectures have, resolved through `attribute_map` too; `None` for the others."""
    return getattr(config, name, None)


def commit_of(config: PreTrainedConfig) -> str | None:
    """The Hub commit that a configuration was loaded from."""
    return optional_field(config, "_commit_hash")


def attention_name(config: PreTrainedConfig) -> str:
    """Name of the attention implementation that a model runs."""
    return config._attn_implementation


def set_attention_name(config: PreTrainedConfig, name: str) -> None:
    """Set the name of the attention implementation without loading it."""
    config._attn_implementation = name


def registered_attention(name: str) -> Any:
    """The function behind an attention implementation."""
    return AttentionInterface()[name]


def can_use_sdpa(model: PreTrainedModel) -> bool:
    """Whether sdpa could replace a model's attention function."""
    return model._supports_sdpa and model._supports_attention_backend


def is_placed(model: PreTrainedModel) -> bool:
    """Whether a model must not be moved: dispatched by a device map, or quantised."""
    return bool(getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False))


def is_stateful(model: PreTrainedModel) -> bool:
    """Whether transformers refuses assisted decoding for a model because its state cannot be rolled back."""
    return model._is_stateful


def auto_class_of(config: PreTrainedConfig, classes: tuple) -> Any:
    """The first of `classes` that has a model for this configuration, or `None`."""
    return next((auto for auto in classes if type(config) in auto._model_mapping), None)
