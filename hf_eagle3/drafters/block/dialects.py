"""What the keys of a block drafter's `config.json` mean: z-lab's, JetSpec's, SpecForge's, DeepSpec's, transformers'.

A key that changes what a draft computes and is not understood is an error. Does not know tensors or the model class.

Source: z-lab/dflash (git 44947fb), hao-ai-lab/JetSpec (2c7b3fa), deepseek-ai/DeepSpec (afdfa7c), SpecForge (a6b6b023),
vLLM 0.32.0's `qwen3_dflash.py`, transformers 5.24's `muse_glimmer_assistant`.
"""

from typing import Any

from ...dialect_keys import SHARED_FIELDS
from ...dialects import foreign_kind


DEEPSPEC_ARCHITECTURE = "Qwen3DSparkModel"
MUSE = "muse_glimmer_assistant"
# Read from either place; the nested one wins, as in vLLM.
NESTED_FIELDS = ("mask_token_id", "target_layer_ids", "target_hidden_size")
OTHER_FIELDS = ("num_hidden_layers", "block_size", "num_target_layers", "target_name_or_path", "target_revision")
KNOWN_NESTED = (*NESTED_FIELDS, "causal_head", "causal", "draft_shift", "use_aux_hidden_state", "block_size")


def default_target_layer_ids(num_target_layers: int, num_layers: int) -> list[int]:
    """Layers that a file without ids taps, one per draft layer: evenly spaced from 1 to n - 3; for one, the middle."""
    if num_layers == 1:
        return [num_target_layers // 2]
    return [round(1 + i * (num_target_layers - 4) / (num_layers - 1)) for i in range(num_layers)]


def is_block_draft(raw: dict) -> bool:
    """Whether a parsed `config.json` is one of a block drafter, perhaps of a kind that is refused."""
    found = foreign_kind(raw)
    is_block = found is not None and found[0] == "block" and "speculators_model_type" not in raw
    return is_block or raw.get("model_type") == MUSE


def read_block_config(raw: dict, source: str, overrides: dict[str, Any]) -> dict:
    """
    Fields of `BlockDraftConfig` from a `config.json` of any layout.

    Args:
        raw: The parsed file.
        source: Its origin, for error messages.
        overrides: Fields that replace the file's values.

    Raises:
        ValueError: not a block drafter, or one that computes something else.
    """
    if not is_block_draft(raw):
        raise ValueError(
            f"{source} has neither `dflash_config` nor `block_size`, so it is no block drafter. Load an EAGLE-3 draft "
            "with hf_eagle3.Eagle3DraftModel."
        )
    nested, architecture = raw.get("dflash_config") or {}, _architecture(raw)
    _refuse_other_kinds(raw, nested, architecture, source)
    fields = {name: raw[name] for name in (*SHARED_FIELDS, *OTHER_FIELDS, "chat_template_kwargs") if name in raw}
    fields |= {name: raw[name] for name in NESTED_FIELDS if name in raw}
    fields |= {name: nested[name] for name in (*NESTED_FIELDS, "block_size") if name in nested}
    fields = {name: value for name, value in fields.items() if value is not None and name != "mlp_bias"}
    fields |= _attention(raw, nested, source)
    fields["is_shifted"] = architecture == DEEPSPEC_ARCHITECTURE or bool(nested.get("draft_shift"))
    if raw.get("model_type") == MUSE:  # names no vocabulary; its tokens are the last of the target's
        fields["vocab_size"] = 1 + max(value for name, value in raw.items() if name.endswith("token_id") and value)
    theta = overrides.pop("rope_theta", None)
    fields |= overrides
    if theta is not None:
        fields |= {
            "rope_theta": theta,
            "rope_parameters": (fields.get("rope_parameters") or {}) | {"rope_theta": theta},
        }
    for name in ("vocab_size", "block_size", "mask_token_id"):
        if fields.get(name) is None:
            raise ValueError(f"`{name}` is missing from {source}; pass it to `from_pretrained`.")
    return fields


def _architecture(raw: dict) -> str:
    return next(iter(raw.get("architectures") or ()), "")


def _attention(raw: dict, nested: dict, source: str) -> dict:
    """Fields of what a position sees."""
    count = raw.get("num_hidden_layers") or 0
    first = raw.get("max_window_layers") or 0
    sliding = bool(raw.get("use_sliding_window"))
    kinds = raw.get("layer_types") or [
        "sliding_attention" if sliding and i >= first else "full_attention" for i in range(count)
    ]
    fields = {"layer_types": list(kinds), "is_causal": None}
    if "sliding_attention" in kinds:
        fields["sliding_window"] = raw.get("sliding_window")
    flags = {bool(found[name]) for found, name in _causal_flags(raw, nested) if found.get(name) is not None}
    if len(flags) > 1:
        raise ValueError(
            f"{source}: `causal_head`, `causal` and `is_causal` disagree; pass is_causal=True or False to "
            "`from_pretrained`."
        )
    if flags:
        fields["is_causal"] = flags.pop()
    elif "sliding_attention" not in kinds or raw.get("model_type") == MUSE:
        fields["is_causal"] = False
    if raw.get("model_type") == MUSE and fields.get("sliding_window"):
        fields["sliding_window"] += 1  # transformers' bidirectional window is a distance, the own position not counted
    return fields


def _causal_flags(raw: dict, nested: dict) -> tuple[tuple[dict, str], ...]:
    return (raw, "is_causal"), (nested, "causal"), (nested, "causal_head")


def _refuse_other_kinds(raw: dict, nested: dict, architecture: str, source: str) -> None:
    remedy = "which is not supported; use a DFlash or JetSpec draft."
    if architecture.startswith("DFlash2") or ("DSpark" in architecture and architecture != DEEPSPEC_ARCHITECTURE):
        raise ValueError(f"{source} is a {architecture}, {remedy}")
    if raw.get("markov_rank") or raw.get("enable_confidence_head") or nested.get("projector_type"):
        raise ValueError(
            f"{source} has a Markov, confidence or projector head (`markov_rank` {raw.get('markov_rank')}, "
            f"`enable_confidence_head` {raw.get('enable_confidence_head')}, `projector_type` "
            f"{nested.get('projector_type')}), {remedy}"
        )
    if nested.get("use_aux_hidden_state") is False:
        raise ValueError(f"{source}: `use_aux_hidden_state` is false: the draft fuses no features, {remedy}")
    unknown = [name for name, value in nested.items() if name not in KNOWN_NESTED and value]
    if unknown:
        raise ValueError(
            f"{source}: `dflash_config` has {', '.join(sorted(unknown))}, unknown here, and may change what the draft "
            "computes; remove what has no effect."
        )
