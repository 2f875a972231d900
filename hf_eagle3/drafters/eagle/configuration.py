"""`EagleDraftConfig`: the sizes of a feature-predicting draft, read and written as in the original EAGLE repository.

Knows of the target only the numbers in its configuration.

Source: EAGLE (arXiv 2401.15077); file layout of SafeAILab/EAGLE (git 2174a79, `eagle/model/cnets1.py`).
"""

from huggingface_hub.dataclasses import strict

from ...configuration_eagle3 import Eagle3Config, own_fields, reading
from ...dialect_keys import SHARED_FIELDS
from ...dialects import foreign_kind


ARCHITECTURE = "EagleLlamaForCausalLM"  # vLLM's name
NOT_A_MODEL = "none for transformers' own classes: this is an EAGLE draft, load it with hf_eagle3.EagleDraftModel"
# Of EAGLE-3's file, without meaning here.
NOT_WRITTEN = (
    *("draft_vocab_size", "eagle_aux_hidden_state_layer_ids", "eagle_config", "fc_bias", "num_aux_hidden_states"),
    "num_tapped_layers",
)
OTHER_FIELDS = ("num_hidden_layers", "target_name_or_path", "target_revision", "chat_template_kwargs")


def is_eagle(raw: dict) -> bool:
    """Whether a parsed `config.json` says that it is an EAGLE-1/2 draft; most published ones do not."""
    found = foreign_kind(raw)
    return found is not None and found[0] == "eagle" and "speculators_model_type" not in raw


@strict
class EagleDraftConfig(Eagle3Config):
    """
    Configuration of an [`EagleDraftModel`]; fields as in [`Eagle3Config`], of which taps and norms have no meaning.

    Args:
        fc_bias: Whether the layer over [embedding ; feature] has a bias. The original code's default.
    """

    model_type = "eagle"
    reads_head_input = True

    has_lm_head: bool = False
    fc_bias: bool = True

    def __post_init__(self, **kwargs):
        self.target_layer_ids, self.num_tapped_layers = None, 1
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> "EagleDraftConfig":
        """
        A configuration from a parsed `config.json` of EAGLE's, EAGLE-2's or HASS's repository, or vLLM's, which nests
        it; fields passed as `kwargs` override it.
        """
        source = config_dict.get("_name_or_path") or "the dictionary"
        overrides = {name: kwargs.pop(name) for name in own_fields(cls) & kwargs.keys()}
        raw = config_dict | (config_dict.get("model") or {})
        if found := _other_kind(raw):
            raise ValueError(f"{source} has {found}, so it is no EAGLE-1/2 draft.")
        fields = {name: raw[name] for name in (*SHARED_FIELDS, *OTHER_FIELDS) if raw.get(name) is not None}
        if not (fields.get("rope_parameters") or fields.get("rope_theta")):
            fields["rope_theta"] = cls.default_theta  # as in the original code
        if (theta := overrides.pop("rope_theta", None)) is not None:
            rope = fields.get("rope_parameters")
            fields |= {"rope_theta": theta} | ({"rope_parameters": rope | {"rope_theta": theta}} if rope else {})
        fields |= {"fc_bias": raw.get("bias", True)} | overrides
        if fields.get("vocab_size") is None:
            raise ValueError(f"`vocab_size` is missing from {source}.")
        with reading(source, "a draft configuration"):
            return super(Eagle3Config, cls).from_dict(fields, **kwargs)

    def to_dict(self) -> dict:
        """The original repository's layout, with vLLM's architecture."""
        out = {name: value for name, value in super().to_dict().items() if name not in NOT_WRITTEN}
        own = {"architectures": [ARCHITECTURE], "bias": self.fc_bias, "transformers_weights": NOT_A_MODEL}
        return out | own


def _other_kind(raw: dict) -> str | None:
    """What shows that a file belongs to another kind of drafter; `None`: nothing does."""
    if raw.get("draft_vocab_size") is not None:
        return "`draft_vocab_size`"
    if raw.get("speculators_model_type"):
        return f"`speculators_model_type` {raw['speculators_model_type']}"
    found = foreign_kind(raw)
    return found[1] if found is not None and found[0] != "eagle" else None
