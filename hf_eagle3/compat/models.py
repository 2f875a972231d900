"""What models say about themselves, attention functions and rotary embeddings."""

from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .points import COMMANDS, is_missing, uses


LlamaRotaryEmbedding = uses(
    "transformers.models.llama.modeling_llama", "LlamaRotaryEmbedding", "the draft's rotary embedding"
)
ACT2FN = uses("transformers.activations", "ACT2FN", "the draft's activation function")
ROPE_INIT_FUNCTIONS = uses(
    "transformers.modeling_rope_utils", "ROPE_INIT_FUNCTIONS", "`config.json` is checked", scope=COMMANDS
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
    Keeps the precision of its frequencies when the model around it is converted, e.g. by `draft.to(torch.bfloat16)`:
    rounded ones turn by wrong angles at positions in the thousands. (transformers fills in what loading leaves empty
    by "RotaryEmbedding" in the class's name.)
    """

    def _apply(self, fn, recurse: bool = True):
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in dict(self.named_buffers()).items():
            if buffer.dtype != before[name].dtype:
                setattr(self, name, before[name].to(buffer.device))
        return self


class _NoRotaryEmbedding(nn.Module):
    """Stands for a class that is gone, so that a draft can still be loaded (and `generate` run without it)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()

    def forward(self, *args, **kwargs):
        """Raises: there is nothing to compute with."""
        LlamaRotaryEmbedding()


def rotary_embedding(config: PreTrainedConfig) -> nn.Module:
    """
    Called with (a tensor of some dtype and device, positions (B, L)), gives cos and sin (B, L, d), with every kind of
    scaling that transformers knows. No parameters.
    """
    return (_NoRotaryEmbedding if is_missing(LlamaRotaryEmbedding) else _ExactRotaryEmbedding)(config)


def activation(name: str) -> nn.Module:
    """The activation function that model configurations call `name`."""
    return nn.SiLU() if is_missing(ACT2FN) else ACT2FN[name]


def known_activations() -> tuple[str, ...]:
    """What `activation` takes; empty: not known."""
    return () if is_missing(ACT2FN) else tuple(ACT2FN)


def known_rope_types() -> tuple[str, ...]:
    """The `rope_type`s that `rotary_embedding` computes; empty: not known."""
    return () if is_missing(ROPE_INIT_FUNCTIONS) else ("default", *ROPE_INIT_FUNCTIONS)


def optional_field(config: PreTrainedConfig, name: str) -> Any:
    """A field that only some architectures' configurations have, under its own or a mapped name; else `None`."""
    return getattr(config, name, None)


def commit_of(config: PreTrainedConfig) -> str | None:
    """The Hub commit that a configuration was loaded from."""
    return optional_field(config, "_commit_hash")


def attention_name(config: PreTrainedConfig) -> str:
    """The attention implementation that a model runs."""
    return config._attn_implementation


def set_attention_name(config: PreTrainedConfig, name: str) -> None:
    """Name an attention implementation without loading it."""
    config._attn_implementation = name


def registered_attention(name: str) -> Any:
    """The function behind an attention implementation."""
    return AttentionInterface()[name]


def can_use_sdpa(model: PreTrainedModel) -> bool:
    """Whether a model's attention is a function that sdpa could replace."""
    return model._supports_sdpa and model._supports_attention_backend


def is_placed(model: PreTrainedModel) -> bool:
    """Whether a model must stay on its devices: dispatched by a device map, or quantised."""
    return bool(getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False))


def is_stateful(model: PreTrainedModel) -> bool:
    """Whether transformers refuses to draft for a model, because it cannot go back to an earlier state."""
    return model._is_stateful


def auto_class_of(config: PreTrainedConfig, classes: tuple) -> Any:
    """The first of some auto classes that knows a model of this configuration; `None` without one."""
    return next((auto for auto in classes if type(config) in auto._model_mapping), None)
