"""`BlockDraftConfig`: the sizes of a block drafter and what it reads from its target.

Writes the `config.json` that z-lab's, JetSpec's and SpecForge's code reads, or DeepSpec's where the draft is of that
kind; how theirs are read is in `dialects.py`. Knows of the target only the numbers in its configuration.

Source: DFlash (arXiv 2602.06036), JetSpec (arXiv 2606.18394).
"""

import copy

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, PreTrainedModel

from ...configuration_eagle3 import (
    Eagle3Config,
    check_common_fields,
    needed_fields,
    num_decoder_layers,
    own_fields,
    reading,
    spread_target_layer_ids,
)
from .dialects import DEEPSPEC_ARCHITECTURE, default_target_layer_ids, read_block_config


SLIDING, FULL = "sliding_attention", "full_attention"
LARGEST_BLOCK = 1024
LEAST_TAPS = 3  # of a new draft: a single tapped layer, their rule for one draft layer, predicts little
# What a new draft takes over from its target, by the same reading as an EAGLE-3 draft's.
FROM_TARGET = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
    "rope_parameters",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "target_name_or_path",
    "target_revision",
)


@strict
class BlockDraftConfig(PreTrainedConfig):
    """
    Configuration of a [`BlockDraftModel`].

    Args:
        block_size: Positions of a block, the anchor (the last committed token) included.
        mask_token_id: Target id whose embedding row stands at the positions to be predicted.
        is_causal: Whether a position of the block sees only those before it (JetSpec) or all (DFlash). `None`: only
            those before it in layers with a sliding window, all in the others (vLLM's rule for files that name none).
        is_shifted: Whether the output at position i predicts the token at i + 1 (DeepSpec), instead of that at i.
        vocab_size: Vocabulary of the target (V).
        hidden_size: Width of the draft (H). With another `target_hidden_size` the draft needs its own embedding.
        num_hidden_layers: Layers, all alike, with norms on queries and keys as in Qwen3.
        num_target_layers: Layers of the target, if known.
        target_layer_ids: Zero-based target layers whose *output* is read (`hidden_states[i + 1]`).
        layer_types: "full_attention" or "sliding_attention" per layer. Default: all full.
        sliding_window: Positions that a sliding layer sees, the query's own included.
        has_embed_tokens, has_lm_head: The checkpoint stores them: DeepSpec's copies of the target's.
        target_name_or_path, target_revision, chat_template_kwargs: As in [`Eagle3Config`].

    Raises:
        ValueError: invalid or inconsistent sizes.
    """

    model_type = "block_draft"
    default_theta = 10000.0
    # What the layers of EAGLE-3 ask: these never have it otherwise.
    use_qk_norm = True
    norm_before_residual = mlp_bias = embed_trained = False
    reads_head_input = False

    vocab_size: int = 32000
    hidden_size: int = 4096
    target_hidden_size: int | None = None
    intermediate_size: int = 11008
    num_hidden_layers: int = 5
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False
    rope_parameters: dict | None = None
    attention_bias: bool = False
    attention_dropout: int | float | None = 0.0

    block_size: int = 16
    mask_token_id: int = 0
    is_causal: bool | None = False
    is_shifted: bool = False
    num_target_layers: int | None = None
    target_layer_ids: list[int] | None = None
    layer_types: list[str] | None = None
    sliding_window: int | None = None
    has_embed_tokens: bool = False
    has_lm_head: bool = False
    target_name_or_path: str | None = None
    target_revision: str | None = None
    chat_template_kwargs: dict | None = None

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.target_hidden_size is None:
            self.target_hidden_size = self.hidden_size
        if self.layer_types is None:
            self.layer_types = [FULL] * self.num_hidden_layers
        if self.target_layer_ids is None and self.num_target_layers is not None:
            self.target_layer_ids = default_target_layer_ids(self.num_target_layers, self.num_hidden_layers)
        super().__post_init__(**kwargs)
        self._check_fields_together()

    def _check_fields_together(self) -> None:
        check_common_fields(self)
        if not self.target_layer_ids:
            raise ValueError(
                "`target_layer_ids` is missing; pass the tapped layers, or `num_target_layers` for theirs."
            )
        if not 2 - self.is_shifted <= self.block_size <= LARGEST_BLOCK:
            raise ValueError(f"`block_size` is {self.block_size}; it must be between 2 and {LARGEST_BLOCK}.")
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(
                f"`mask_token_id` is {self.mask_token_id}; it must be one of the target's {self.vocab_size} tokens."
            )
        unknown = [kind for kind in self.layer_types if kind not in (FULL, SLIDING)]
        if unknown or len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"`layer_types` is {self.layer_types}; name {FULL!r} or {SLIDING!r} for each of "
                f"{self.num_hidden_layers} layers."
            )
        if SLIDING in self.layer_types and self.sliding_window is None:
            raise ValueError("`layer_types` has sliding layers and `sliding_window` is missing; pass the window.")

    @property
    def num_tapped_layers(self) -> int:
        """How many of the target's layers are read."""
        return len(self.target_layer_ids)

    @property
    def fused_features_size(self) -> int:
        """Width of `target_features`, the concatenated outputs of the tapped layers."""
        return self.num_tapped_layers * self.target_hidden_size

    @property
    def num_predictions(self) -> int:
        """Tokens that one pass predicts: the most levels of a tree."""
        return self.block_size if self.is_shifted else self.block_size - 1

    @property
    def is_deepspec(self) -> bool:
        """Whether it is written in DeepSpec's layout: with copies of the target's embedding and head."""
        return self.is_shifted and self.has_embed_tokens and self.has_lm_head and self.is_causal is False

    def sees_later(self, layer: int) -> bool:
        """Whether positions of a block see later ones in `layer`."""
        return not (self.layer_types[layer] == SLIDING if self.is_causal is None else self.is_causal)

    def window(self, layer: int) -> int | None:
        """Positions that `layer` sees; `None`: all."""
        return self.sliding_window if self.layer_types[layer] == SLIDING else None

    @classmethod
    def from_target(cls, target: PreTrainedConfig | PreTrainedModel, **overrides) -> "BlockDraftConfig":
        """
        A configuration for `target`, with its sizes, RoPE and special ids.

        Args:
            target: The target model or its configuration.
            overrides: Any field of this class; `mask_token_id` should be a token that no text contains.
        """
        config = target.config if isinstance(target, PreTrainedModel) else target
        depth = num_decoder_layers(config.get_text_config(decoder=True))
        known = vars(Eagle3Config.from_target(target))
        fields = {name: known[name] for name in FROM_TARGET} | {"num_target_layers": depth}
        taps = max(LEAST_TAPS, overrides.get("num_hidden_layers", cls.num_hidden_layers))
        ids = default_target_layer_ids(depth, taps)
        # Shallow targets have fewer layers than taps; the last one is never tapped.
        fields["target_layer_ids"] = ids if sorted(set(ids)) == ids else spread_target_layer_ids(depth, taps)
        return cls(**fields | overrides)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """As in transformers, but with our `model_type`: files say `qwen3`, which would warn."""
        raw, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return raw | {"model_type": cls.model_type}, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> "BlockDraftConfig":
        """A configuration from a parsed `config.json` of any layout; fields passed as `kwargs` override it."""
        source = config_dict.get("_name_or_path") or "the dictionary"
        overrides = {name: kwargs.pop(name) for name in own_fields(cls) & kwargs.keys()}
        with reading(source, "a block drafter's configuration"):
            return super().from_dict(read_block_config(config_dict, source, overrides), **kwargs)

    def changed(self, fields: dict) -> "BlockDraftConfig":
        """A validated copy with `fields` replaced."""
        out = copy.deepcopy(self)
        fields = dict(fields)
        if "rope_theta" in fields:
            out.rope_parameters = out.rope_parameters | {"rope_theta": fields.pop("rope_theta")}
        for name, value in fields.items():
            setattr(out, name, value)
        out._check_fields_together()
        return out

    def to_dict(self) -> dict:
        """z-lab's layout, with JetSpec's and vLLM's causal flags; DeepSpec's for drafts of that kind."""
        out = super().to_dict()
        for name in (
            "is_causal",
            "is_shifted",
            "has_embed_tokens",
            "has_lm_head",
            "mask_token_id",
            "target_layer_ids",
        ):
            out.pop(name)
        rope = dict(self.rope_parameters)
        out |= {"model_type": "qwen3", "use_cache": True, "rope_parameters": rope, "rope_theta": rope["rope_theta"]}
        if rope.get("rope_type", "default") != "default":
            out["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
        if self.target_hidden_size == self.hidden_size:
            out.pop("target_hidden_size")
        out["use_sliding_window"] = SLIDING in self.layer_types
        if not out["use_sliding_window"]:
            out.pop("sliding_window")
        own = {"mask_token_id": self.mask_token_id, "target_layer_ids": list(self.target_layer_ids)}
        if self.is_deepspec:
            # Their evaluation and vLLM's reader ask for the fields of heads that the draft does not have.
            out |= own | {"architectures": [DEEPSPEC_ARCHITECTURE], "markov_rank": 0, "enable_confidence_head": False}
            return out | {"num_anchors": 512}
        if self.is_causal is not None:  # JetSpec's, vLLM's and SGLang's names
            own |= {"causal_head": self.is_causal, "causal": self.is_causal}
            out["is_causal"] = self.is_causal
        if self.is_shifted:
            own["draft_shift"] = True
        return out | {"architectures": ["DFlashDraftModel"], "dflash_config": own}

    def to_diff_dict(self) -> dict:
        """All fields a reader may need, since other readers have other defaults."""
        return needed_fields(self.to_dict()) | {"model_type": "qwen3"}
