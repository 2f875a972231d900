"""Configurations of Medusa and Hydra heads: how many there are, and how many blocks each has.

Published files say little more and are not always right (Vicuna's Medusa names two of its five heads): what tensors
show is taken from them when a checkpoint is read.

Source: Medusa (arXiv 2401.10774) and FasterDecoding/Medusa (git 11af0aa); Hydra (arXiv 2402.05109) and zankner/Hydra
(7f39cbd); vLLM's layout of Medusa heads (01dbb08, `models/medusa.py`).
"""

import copy

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, PreTrainedModel

from ...configuration_eagle3 import LARGEST, hub_identity, needed_fields, own_fields, reading
from ...dialects import foreign_kind


LIMITS = {"vocab_size": LARGEST["vocab_size"], "hidden_size": LARGEST["hidden_size"], "num_heads": 64}
OTHER_FIELDS = ("vocab_size", "hidden_size", "target_name_or_path", "target_revision", "chat_template_kwargs", "dtype")


def is_medusa(raw: dict) -> bool:
    """Whether a parsed `config.json` is that of Medusa heads."""
    return "medusa" in (raw.get("model_type"), (foreign_kind(raw) or ("",))[0])


def is_hydra(raw: dict) -> bool:
    """Whether a parsed `config.json` is that of Hydra heads."""
    return "hydra" in (raw.get("model_type"), (foreign_kind(raw) or ("",))[0])


@strict
class MedusaDraftConfig(PreTrainedConfig):
    """
    Configuration of a [`MedusaDraftModel`].

    Args:
        num_heads: Heads; head k predicts the token of level k. Medusa, section 2.3.1: five are enough.
        num_layers: Residual blocks of a head.
        hidden_size, vocab_size: Of the target; `None` until the tensors are read.
        fc_bias: Whether residual blocks have a bias, as in the original code; vLLM's files may have none.
        target_name_or_path, target_revision, chat_template_kwargs: As in [`Eagle3Config`].

    Raises:
        ValueError: invalid sizes.
    """

    model_type = "medusa"
    reads_head_input = True
    # What is asked of the configuration of a draft that taps layers.
    target_layer_ids = None
    has_embed_tokens = False

    num_heads: int = 5
    num_layers: int = 1
    hidden_size: int | None = None
    vocab_size: int | None = None
    fc_bias: bool = True
    target_name_or_path: str | None = None
    target_revision: str | None = None
    chat_template_kwargs: dict | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Raises ValueError for sizes that cannot be."""
        for name, most in LIMITS.items():
            value = vars(self)[name]
            if value is not None and not 0 < value <= most:
                raise ValueError(f"`{name}` is {value}; it must be between 1 and {most}.")
        least = 1 if self.model_type == "hydra" else 0
        if not least <= self.num_layers <= LIMITS["num_heads"]:
            raise ValueError(f"`num_layers` is {self.num_layers}; it must be between {least} and 64.")

    @property
    def target_hidden_size(self) -> int:
        """Width of what the heads read, the target's."""
        return self.hidden_size

    @classmethod
    def from_target(cls, target: PreTrainedConfig | PreTrainedModel, **overrides) -> "MedusaDraftConfig":
        """A configuration for `target`, with its sizes; `overrides` are fields of this class."""
        config = target.config if isinstance(target, PreTrainedModel) else target
        text = config.get_text_config(decoder=True)
        name, revision = hub_identity(config)
        fields = {"hidden_size": text.hidden_size, "vocab_size": text.vocab_size}
        return cls(**fields | {"target_name_or_path": name, "target_revision": revision} | overrides)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """As in transformers, but with our `model_type`: files say `llama` or nothing, which would warn."""
        raw, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return raw | {"model_type": cls.model_type}, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> "MedusaDraftConfig":
        """A configuration from a parsed `config.json` of any layout; fields passed as `kwargs` override it."""
        source = config_dict.get("_name_or_path") or "the dictionary"
        overrides = {name: kwargs.pop(name) for name in own_fields(cls) & kwargs.keys()}
        fields = {name: config_dict[name] for name in OTHER_FIELDS if config_dict.get(name) is not None}
        fields |= cls._read_fields(config_dict, source) | overrides
        with reading(source, f"a {cls.model_type} configuration"):
            return super().from_dict(fields, **kwargs)

    @classmethod
    def _read_fields(cls, raw: dict, source: str) -> dict:
        if not is_medusa(raw):
            raise ValueError(
                f"{source} has no `medusa_num_heads` and names no Medusa, so it is no set of Medusa heads."
            )
        if (raw.get("truncated_vocab_size") or raw.get("vocab_size")) != raw.get("vocab_size"):
            raise ValueError(
                f"{source}: `truncated_vocab_size` is {raw['truncated_vocab_size']}; heads over a part of the "
                "vocabulary are not supported."
            )
        vllm = {"num_heads": raw.get("num_heads"), "num_layers": raw.get("num_hidden_layers")}
        own = {"num_heads": raw.get("medusa_num_heads"), "num_layers": raw.get("medusa_num_layers")}
        found = {name: own[name] if own[name] is not None else vllm[name] for name in own}
        return {name: value for name, value in found.items() if value is not None} | _target_name(raw)

    def changed(self, fields: dict) -> "MedusaDraftConfig":
        """A validated copy with `fields` replaced."""
        out = copy.deepcopy(self)
        for name, value in fields.items():
            setattr(out, name, value)
        out.check()
        return out

    def to_dict(self) -> dict:
        """The original code's keys, and the sizes, which its files lack."""
        out = super().to_dict()
        kind = self.model_type
        own = {f"{kind}_num_heads": out.pop("num_heads"), f"{kind}_num_layers": out.pop("num_layers")}
        own |= {"base_model_name_or_path": self.target_name_or_path, "architectures": [f"{kind.title()}DraftModel"]}
        out.pop("fc_bias")
        return out | own | {"model_type": kind}

    def to_diff_dict(self) -> dict:
        """All fields a reader may need."""
        return needed_fields(self.to_dict()) | {"model_type": self.model_type}


@strict
class HydraDraftConfig(MedusaDraftConfig):
    """
    Configuration of a [`HydraDraftModel`]; fields as in [`MedusaDraftConfig`].

    Args:
        num_heads: Hydra, section 5: four.
    """

    model_type = "hydra"

    num_heads: int = 4

    @classmethod
    def _read_fields(cls, raw: dict, source: str) -> dict:
        if not is_hydra(raw):
            raise ValueError(f"{source} has no `hydra_num_heads` and names no Hydra, so it is no set of Hydra heads.")
        for name, only in (("hydra_head_arch", "mlp"), ("grounded_heads", True), ("hidden_state_offset", 0)):
            if raw.get(name, only) != only:
                raise ValueError(
                    f"{source}: `{name}` is {raw[name]!r}; only {only!r} is supported, the sequentially dependent MLP "
                    "heads over the target's last hidden state."
                )
        names = {"num_heads": "hydra_num_heads", "num_layers": "hydra_num_layers"}
        return {field: raw[name] for field, name in names.items() if raw.get(name) is not None} | _target_name(raw)


def _target_name(raw: dict) -> dict:
    name = raw.get("base_model_name_or_path")
    return {"target_name_or_path": name} if isinstance(name, str) else {}
