"""`Eagle3Config`: the sizes of a draft model and what it reads from its target.

Writes the plain `config.json` that SGLang, vLLM and the original EAGLE code read; other dialects are read by
`dialects.py`. Knows of the target only the numbers in its configuration.
"""

import copy
import functools
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from .compat.models import commit_of, known_activations, known_rope_types, optional_field
from .dialects import read_config


ARCHITECTURE = "LlamaForCausalLMEagle3"
# Upper bounds far beyond any real model, against broken or hostile files.
LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "target_hidden_size": 2**20,
    "intermediate_size": 2**24,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**14,
    "num_hidden_layers": 2**10,
    "num_tapped_layers": 2**10,
    "max_position_embeddings": 2**31,
}
NUM_TAPPED_LAYERS = 3  # low, middle, high: EAGLE-3, section 3.1
# Flags of later checkpoints (EAGLE-3.1, speculators). Engines test for their presence: written only if set.
OPTIONAL_FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "use_qk_norm", "embed_trained")
# Written to `transformers_weights`, which only transformers reads: the invalid file name stops AutoModel. Files say
# `llama` for the engines, so a draft of the whole vocabulary would otherwise load as a Llama with random layers.
NOT_A_MODEL = "none for transformers' own classes: this is an EAGLE-3 draft, load it with hf_eagle3.Eagle3DraftModel"
# Fields of every transformers configuration that no reader of a draft needs.
UNUSED_FIELDS = ("_name_or_path", "id2label", "label2id")


@contextmanager
def reading(source: str, what: str) -> Iterator[None]:
    """Whatever shows in the block that `source` is not `what`, such as "a draft configuration", is a ValueError."""
    try:
        yield
    except (StrictDataclassError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{source} is not {what}: {' '.join(str(error).split())}") from error


def num_decoder_layers(config: PreTrainedConfig) -> int:
    """Number of layers that can be tapped. Longcat counts each layer twice in `num_hidden_layers`, for its cache."""
    return optional_field(config, "num_layers") or config.num_hidden_layers


def default_target_layer_ids(num_target_layers: int) -> list[int]:
    """
    Zero-based layers whose outputs a checkpoint without ids reads: `hidden_states` [2, n//2, n-3].

    Source: the original code's `modeling_llama_kv.py` and both serving engines, which hard-code them.
    """
    return [1, num_target_layers // 2 - 1, num_target_layers - 4]


def spread_target_layer_ids(num_target_layers: int, num_tapped_layers: int = NUM_TAPPED_LAYERS) -> list[int]:
    """
    Distinct layers to tap for a target of any depth: the default ones if they are distinct, else evenly spaced ones.

    The last layer is never chosen, because `hidden_states[n]` is taken after the final norm. Targets with fewer than
    four layers get fewer taps.
    """
    if num_target_layers < 2:
        raise ValueError(
            f"`target_config` has num_hidden_layers={num_target_layers}; a draft model needs a target of at least 2 "
            "layers, since the last layer is never tapped."
        )
    default = default_target_layer_ids(num_target_layers)
    if num_tapped_layers == NUM_TAPPED_LAYERS and 0 <= default[0] < default[1] < default[2]:
        return default
    taps, last = min(num_tapped_layers, num_target_layers - 1), num_target_layers - 2
    return [last] if taps == 1 else [int(i * last / (taps - 1) + 0.5) for i in range(taps)]


@strict
class Eagle3Config(PreTrainedConfig):
    """
    Configuration of an [`Eagle3DraftModel`].

    Args:
        vocab_size: Vocabulary of the target (V).
        draft_vocab_size: Vocabulary that the draft predicts (D). Equal to `vocab_size` means no mapping.
        hidden_size: Width of the draft (H).
        target_hidden_size: Width of the target. `None` means `hidden_size`.
        num_hidden_layers: Decoder layers of the draft; the first reads 2H, further ones are plain.
        target_layer_ids: Zero-based target layers whose *output* is read (`hidden_states[i + 1]`). `None` means the
            convention [2, n//2, n-3] of `hidden_states`, resolved against the target on first use.
        num_tapped_layers: How many layers are read; taken from `target_layer_ids` when given.
        norm_before_residual: The residual is the normed feature (speculators' default) instead of the raw one.
        norm_before_fc: One RMSNorm over the concatenated features before `fc`.
        fc_norm: One RMSNorm per tapped layer before `fc` (EAGLE-3.1).
        norm_output: The state that is fed back is the normed one (EAGLE-3.1).
        use_qk_norm: RMSNorm on queries and keys (Qwen3-shaped drafts).
        embed_trained: The checkpoint's own `embed_tokens` was trained and is used instead of the target's.
        has_embed_tokens: The checkpoint has `embed_tokens.weight`.
        has_lm_head: The checkpoint has `lm_head.weight`; otherwise the target's rows are used.
        sliding_window: Number of latest positions that a query attends to, its own included (speculators trains with
            one by default). `None`: all.
        draft_window: As in [`TreeConfig`], whose field takes precedence. Training ignores it, and so do engines.
        target_name_or_path, target_revision: Hub id and commit of the target the draft was trained for, if known.
        chat_template_kwargs: Extra arguments of the target's chat template in training; the model card lists them.
        rope_parameters: As in transformers. Drafts trained with the original code use theta 10000 regardless of their
            target; pass an override to `from_pretrained` if a file says otherwise.
        max_position_embeddings: A hint for caches, not a limit.

    Raises:
        ValueError: invalid or inconsistent sizes.

    Source: EAGLE-3 (arXiv 2503.01840), section 3; field names as in the original repository and vLLM.
    """

    model_type = "eagle3"
    default_theta = 10000.0
    reads_head_input = False  # instead of tapped layers; EAGLE, Medusa and Hydra do

    vocab_size: int = 32000
    draft_vocab_size: int | None = None
    hidden_size: int = 4096
    target_hidden_size: int | None = None
    intermediate_size: int = 11008
    num_hidden_layers: int = 1
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: dict | None = None
    attention_bias: bool = False
    attention_dropout: int | float | None = 0.0
    mlp_bias: bool = False

    target_layer_ids: list[int] | None = None
    num_tapped_layers: int = NUM_TAPPED_LAYERS
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    use_qk_norm: bool = False
    embed_trained: bool = False
    has_embed_tokens: bool = False
    has_lm_head: bool = True
    sliding_window: int | None = None
    draft_window: int | None = None
    target_name_or_path: str | None = None
    target_revision: str | None = None
    chat_template_kwargs: dict | None = None

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.draft_vocab_size is None:
            self.draft_vocab_size = self.vocab_size
        if self.target_hidden_size is None:
            self.target_hidden_size = self.hidden_size
        if self.target_layer_ids is not None:
            self.num_tapped_layers = len(self.target_layer_ids)
        super().__post_init__(**kwargs)
        self._check_fields_together()

    def _check_fields_together(self) -> None:
        """
        Checks across fields. Not a `@strict` validator, which would wrap the error in one that is no ValueError.
        """
        check_common_fields(self)
        if not 0 < self.draft_vocab_size <= self.vocab_size:
            raise ValueError(
                f"`draft_vocab_size` is {self.draft_vocab_size}; it must be between 1 and `vocab_size` "
                f"({self.vocab_size})."
            )
        if self.norm_before_fc and self.fc_norm:
            raise ValueError("`norm_before_fc` and `fc_norm` are both set; a checkpoint has at most one of them.")

    @property
    def fused_features_size(self) -> int:
        """Width of `target_features`, the concatenated outputs of the tapped layers."""
        return self.num_tapped_layers * self.target_hidden_size

    @property
    def has_vocabulary_mapping(self) -> bool:
        """Whether draft ids differ from target ids (D < V)."""
        return self.draft_vocab_size != self.vocab_size

    @classmethod
    def from_target(cls, target: PreTrainedConfig | PreTrainedModel, **overrides) -> "Eagle3Config":
        """
        A draft configuration for `target`, with its sizes, RoPE and special ids, and distinct tapped layers.

        Args:
            target: The target model or its configuration.
            overrides: Any field of this class, e.g. `draft_vocab_size=32000` or `intermediate_size=...`.

        Returns:
            A configuration whose `target_layer_ids` are always set.
        """
        config = target.config if isinstance(target, PreTrainedModel) else target
        text = config.get_text_config(decoder=True)
        values = text.to_dict()
        width = text.hidden_size
        heads = _first_int(values, "num_attention_heads") or max(1, width // 64)  # recurrent targets have no heads
        rope = values.get("rope_parameters") or {}
        if not isinstance(rope.get("rope_theta", 0), (int, float)):  # nested by layer type: use full attention's
            rope = {}
        rope = rope.get("full_attention", rope) or {}  # empty for targets without RoPE
        fields = {
            "vocab_size": text.vocab_size,
            "hidden_size": width,
            "intermediate_size": _first_int(values, "intermediate_size", "ffn_dim", "n_inner") or 4 * width,
            "num_attention_heads": heads,
            "num_key_value_heads": _first_int(values, "num_key_value_heads") or heads,
            "head_dim": _first_int(values, "head_dim") or width // heads,
            "rms_norm_eps": values.get("rms_norm_eps") or 1e-6,
            "max_position_embeddings": _first_int(values, "max_position_embeddings", "n_positions") or 2048,
            "rope_parameters": {k: v for k, v in rope.items() if v is not None}
            or {"rope_type": "default", "rope_theta": 10000.0},
            "target_layer_ids": spread_target_layer_ids(
                num_decoder_layers(text), overrides.get("num_tapped_layers", NUM_TAPPED_LAYERS)
            ),
        }
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            fields[name] = values.get(name)
        fields["target_name_or_path"], fields["target_revision"] = hub_identity(config)
        if "partial_rotary_factor" in fields["rope_parameters"]:  # the draft rotates all dimensions of a head
            fields["rope_parameters"].pop("partial_rotary_factor")
        fields.update(overrides)
        if "target_layer_ids" in overrides:
            fields.pop("num_tapped_layers", None)
        if "hidden_size" in overrides and overrides["hidden_size"] != width:
            fields.setdefault("target_hidden_size", width)
            if "head_dim" not in overrides:
                fields["head_dim"] = fields["hidden_size"] // fields["num_attention_heads"]
        return cls(**fields)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """As in transformers, but with our `model_type`: draft files say `llama` or nothing, which would warn."""
        raw, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return raw | {"model_type": cls.model_type}, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> "Eagle3Config":
        """
        A configuration from a parsed `config.json` of any dialect; fields passed as `kwargs` override it.
        """
        source = config_dict.get("_name_or_path") or "the dictionary"
        overrides = {name: kwargs.pop(name) for name in own_fields() & kwargs.keys()}
        with reading(source, "a draft configuration"):
            return super().from_dict(read_config(config_dict, source, overrides), **kwargs)

    def changed(self, fields: dict) -> "Eagle3Config":
        """A validated copy with `fields` replaced."""
        out = copy.deepcopy(self)
        fields = dict(fields)
        if "rope_theta" in fields:
            out.rope_parameters = out.rope_parameters | {"rope_theta": fields.pop("rope_theta")}
        for name, value in fields.items():
            setattr(out, name, value)
        if "target_layer_ids" in fields and out.target_layer_ids is not None:
            out.num_tapped_layers = len(out.target_layer_ids)
        out._check_fields_together()
        return out

    def to_dict(self) -> dict:
        """The plain dialect (formats of SafeAILab, SpecForge, SGLang, vLLM): what `save_pretrained` writes."""
        out = super().to_dict()
        for name in ("num_tapped_layers", "target_layer_ids", "has_embed_tokens", "has_lm_head", *OPTIONAL_FLAGS):
            out.pop(name, None)
        out["architectures"] = [ARCHITECTURE]
        out["model_type"] = "llama"
        out["use_cache"] = True  # a Trainer disables it during training
        rope = dict(self.rope_parameters)
        out["rope_parameters"] = rope
        out["rope_theta"] = rope["rope_theta"]  # engines read it at top level
        if rope.get("rope_type", "default") != "default":
            out["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
        if self.target_hidden_size == self.hidden_size:
            out.pop("target_hidden_size")
        if self.sliding_window is not None:
            out["layer_types"] = ["sliding_attention"] * self.num_hidden_layers
        if self.num_tapped_layers != NUM_TAPPED_LAYERS:
            out["num_aux_hidden_states"] = self.num_tapped_layers
        if self.target_layer_ids is not None:
            # vLLM reads indices into `hidden_states` from the top level, SGLang layer indices from `eagle_config`.
            out["eagle_aux_hidden_state_layer_ids"] = [i + 1 for i in self.target_layer_ids]
            out["eagle_config"] = {
                "eagle_aux_hidden_state_layer_ids": list(self.target_layer_ids),
                "use_aux_hidden_state": True,
            }
        out.update({name: True for name in OPTIONAL_FLAGS if vars(self)[name]})
        out["transformers_weights"] = NOT_A_MODEL
        if not self.has_lm_head and self.has_vocabulary_mapping:
            out["has_lm_head"] = False  # so that readers do not take it for a missing tensor
        return out

    def to_diff_dict(self) -> dict:
        """
        All fields a reader may need, not only those that differ from our defaults, since other readers have others.
        """
        return needed_fields(self.to_dict())


def needed_fields(values: dict) -> dict:
    """Those of a configuration's `values` that are set and that a reader of drafts may need."""
    base = PreTrainedConfig().to_dict()
    return {
        key: value
        for key, value in values.items()
        if value is not None and not (key in base and value == base[key]) and key not in UNUSED_FIELDS
    }


def check_common_fields(config: PreTrainedConfig) -> None:
    """
    Raises ValueError for sizes, taps and numbers of a draft's configuration, of any kind, that cannot be: they would
    otherwise fail with a bare KeyError, or silently give NaN or no rotation.
    """
    for name, most in LARGEST.items():
        value = vars(config).get(name, 1)
        if not 0 < value <= most:
            raise ValueError(f"`{name}` is {value}; it must be between 1 and {most}.")
    if config.num_attention_heads % config.num_key_value_heads != 0:
        raise ValueError(
            f"`num_attention_heads` ({config.num_attention_heads}) must be a multiple of `num_key_value_heads` "
            f"({config.num_key_value_heads})."
        )
    ids = config.target_layer_ids
    if ids is not None and (len(set(ids)) != len(ids) or min(ids, default=-1) < 0):
        raise ValueError(
            f"`target_layer_ids` is {ids}; pass at least one layer, without repeats, counted from 0 (layer i's "
            "output is `hidden_states[i + 1]`)."
        )
    for name in ("sliding_window", "draft_window"):
        if (window := vars(config).get(name)) is not None and window < 1:
            raise ValueError(f"`{name}` is {window}; pass at least 1, or None for no window.")
    rope = config.rope_parameters
    for name, value, known in (
        ("hidden_act", config.hidden_act, known_activations()),
        ("rope_parameters['rope_type']", rope.get("rope_type", "default"), known_rope_types()),
    ):
        if known and value not in known:
            raise ValueError(f"`{name}` is {value!r}; transformers supports {', '.join(known)}.")
    for name, value in (("rope_theta", rope["rope_theta"]), ("rms_norm_eps", config.rms_norm_eps)):
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` is {value}; pass a positive number, e.g. the target's.")


@functools.cache
def own_fields(config_class: type[PreTrainedConfig] = Eagle3Config) -> frozenset[str]:
    """Fields that `from_pretrained` accepts as overrides of a configuration, and `rope_theta`, a part of one."""
    names = {f.name for f in fields(config_class)} - {f.name for f in fields(PreTrainedConfig)}
    return frozenset(names - {"dtype", "torch_dtype"} | {"rope_theta"})


def hub_identity(config: PreTrainedConfig) -> tuple[str | None, str | None]:
    """(Hub id, commit) that a configuration was loaded from; (None, None) for local paths, which stay private."""
    name = config.name_or_path
    if not name or Path(name).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return None, None
    return name, commit_of(config)


def _first_int(values: dict, *names: str) -> int | None:
    return next((values[name] for name in names if isinstance(values.get(name), int)), None)
