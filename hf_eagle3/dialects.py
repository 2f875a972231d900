"""Checkpoint dialects: maps the `config.json` of other projects to fields of `Eagle3Config`.

Supported are SafeAILab, SpecForge/SGLang, NVIDIA's ModelOpt and AutoModel, speculators, DeepSpec, AngelSlim, TorchSpec
and EAGLE-3.1. An unsupported key that changes what a draft computes is an error; an unknown key is a warning
(`dialect_keys.py`). Does not know files, tensors' values or the model class.
"""

import re
from collections.abc import Collection

from transformers.utils import logging

from .dialect_keys import (
    EXTRA_FIELDS,
    FOREIGN,
    FOREIGN_ARCHITECTURES,
    FOREIGN_KEYS,
    FOREIGN_SPECULATORS,
    IDS_KEY,
    OTHER_NAMES,
    SHARED_FIELDS,
    UNSUPPORTED,
    meaning_of,
)


logger = logging.get_logger(__name__)

AUTOMODEL = "LlamaEagle3DraftModel"  # AutoModel's class; the rest of its file is the target's configuration
# Our classes for other kinds of drafters.
CLASSES = {
    "block": "BlockDraftModel",
    "eagle": "EagleDraftModel",
    "hydra": "HydraDraftModel",
    "medusa": "MedusaDraftModel",
}
# Names of tensors that only other kinds of drafters store.
FOREIGN_TENSORS = (
    (re.compile(r"kv_a_proj_with_mqa"), "eagle3-mla"),
    (re.compile(r"(^|\.)mask_hidden$"), "p-eagle"),
    (re.compile(r"\.pre_feedforward_layernorm\."), "eagle3-gemma4"),
    (re.compile(r"^(medusa_heads?\.)?\d+\.\d+\.(linear\.)?weight$"), "medusa"),
    (re.compile(r"^hidden_norm\.weight$"), "block"),
)


def read_config(raw: dict, source: str, overrides: dict | None = None) -> dict:
    """
    Fields of `Eagle3Config` from a `config.json` of any dialect.

    Args:
        raw: The parsed file.
        source: Its origin, for error messages.
        overrides: Fields that replace the file's values, which are then not validated.

    Raises:
        ValueError: not an EAGLE-3 draft, an unsupported kind of draft, or contradictory keys.
    """
    overrides = dict(overrides or {})
    is_speculators = "speculators_model_type" in raw or "transformer_layer_config" in raw
    layer = raw.get("transformer_layer_config") if is_speculators else raw
    kind = raw.get("speculators_model_type", "eagle3")
    if kind != "eagle3" or layer is None:
        what = f", {FOREIGN[FOREIGN_SPECULATORS[kind]]}" if kind in FOREIGN_SPECULATORS else ""
        raise ValueError(f"{source} is a speculators `{kind}` checkpoint{what}; only `eagle3` drafts are supported.")
    nested = raw.get("eagle_config") or {}
    extra = nested | {name: value for name, value in raw.items() if value is not None}
    # A caller who sets `draft_vocab_size` says that it is an EAGLE-3 draft.
    refuse_foreign(layer | raw | {k: v for k, v in overrides.items() if k == "draft_vocab_size"}, (), source)
    _refuse_unsupported(layer, extra, overrides, source)
    _warn_of_unknown_keys(layer | extra, source)

    fields = {name: layer[name] for name in SHARED_FIELDS if layer.get(name) is not None}
    if "hidden_act" not in fields and layer.get("hidden_activation"):
        fields["hidden_act"] = layer["hidden_activation"]
    _plain_rope(fields, source)
    fields |= {field: True for name, field in OTHER_NAMES.items() if extra.get(name)}
    fields |= {name: extra[name] for name in (*EXTRA_FIELDS, "dtype", "torch_dtype") if extra.get(name) is not None}
    taps = layer.get("num_aux_hidden_states", raw.get("num_aux_hidden_states"))
    if taps is not None:
        fields["num_tapped_layers"] = taps
    verifier = (raw.get("speculators_config") or {}).get("verifier") or {}
    for name in (verifier.get("name_or_path"), raw.get("target_model_name_or_path")):
        if isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name):  # not a path on the publisher's machine
            fields["target_name_or_path"] = name
    if "target_layer_ids" not in overrides and (ids := _target_layer_ids(raw, nested, source)) is not None:
        fields["target_layer_ids"] = ids
    if "sliding_window" not in overrides:
        fields["sliding_window"] = _sliding_window(layer, source)
    theta = overrides.pop("rope_theta", None)
    fields |= overrides
    if fields.get("vocab_size") is None:
        raise ValueError(f"`vocab_size` is missing from {source}.")
    if fields.get("draft_vocab_size") is None:
        fields["draft_vocab_size"] = _whole_vocabulary(raw, fields["vocab_size"], source)
    # Files of the original code have no `rope_theta`; its trainer always used 10000.
    if theta is None and not (fields.get("rope_parameters") or fields.get("rope_theta")):
        theta = 10000.0
    if theta is not None:
        fields["rope_theta"] = theta
        if fields.get("rope_parameters"):
            fields["rope_parameters"] = fields["rope_parameters"] | {"rope_theta": theta}
    return fields


def foreign_kind(config: dict, tensor_names: Collection[str] = ()) -> tuple[str, str] | None:
    """
    (kind, evidence) where a checkpoint belongs to a drafter other than an EAGLE-3 draft, else `None`.

    Args:
        config: The parsed `config.json`, may be empty; keys of a nested `eagle_config` count as its own.
        tensor_names: Names of the stored tensors as in [`checkpoint.native_name`], if known.

    Returns:
        The kind is a key of `dialect_keys.FOREIGN`, which has a text for each.
    """
    config = (config.get("eagle_config") or {}) | config
    if config.get("speculators_model_type") in FOREIGN_SPECULATORS:
        kind = config["speculators_model_type"]
        return FOREIGN_SPECULATORS[kind], f"`speculators_model_type` {kind}"
    names = [str(name) for name in config.get("architectures") or ()]
    for name in names:
        for part, kind in FOREIGN_ARCHITECTURES.items():
            if part in name.lower():
                return kind, f"`architectures` {name}"
    for key, kind in FOREIGN_KEYS.items():
        if config.get(key) not in (None, False):
            return kind, f"`{key}`"
    for pattern, kind in FOREIGN_TENSORS:
        if found := next(filter(pattern.search, tensor_names), None):
            return kind, f"the tensor `{found}`"
    # EAGLE-1's fused layer: `fc` reads [embedding ; feature], nothing is normed before the head.
    is_fused = "fc.bias" in tensor_names or ("fc.weight" in tensor_names and "norm.weight" not in tensor_names)
    if is_fused and "midlayer.hidden_norm.weight" not in tensor_names:
        return "eagle", "an `fc` but no `hidden_norm`"
    is_eagle3 = "draft_vocab_size" in config or any("eagle3" in name.lower() for name in names)
    if config.get("model_type") == "eagle" or any("eagle" in n.lower() and not is_eagle3 for n in names):
        return "eagle", f"`architectures` {', '.join(names)}" if names else "`model_type` eagle"
    return None


def refuse_foreign(config: dict, tensor_names: Collection[str], source: str) -> None:
    """
    Raises:
        ValueError: a checkpoint of another kind of drafter, by name; see [`foreign_kind`].
    """
    found = foreign_kind(config, tensor_names)
    if found is None:
        return
    kind, evidence = found
    remedy = f"load it with hf_eagle3.{CLASSES[kind]}" if kind in CLASSES else "such drafts are not supported"
    raise ValueError(f"{source} has {evidence}, so it is {FOREIGN[kind]} and no EAGLE-3 draft; {remedy}.")


def may_be_eagle1(config: dict) -> bool:
    """Whether only the tensors of a `config.json` of one layer can tell an EAGLE-1/2 draft from an ordinary model."""
    return "draft_vocab_size" not in config and config.get("num_hidden_layers") == 1


def _refuse_unsupported(layer: dict, extra: dict, overrides: dict, source: str) -> None:
    if (extra.get("parallel_draft_step") or 1) > 1:
        raise ValueError(
            f"{source}: `parallel_draft_step` is {extra['parallel_draft_step']}; a draft that predicts several "
            "positions per pass is not supported."
        )
    if extra.get("use_aux_hidden_state") is False and "target_layer_ids" not in overrides:
        raise ValueError(
            f"{source}: `use_aux_hidden_state` is false, so the draft reads the target's last hidden state after the "
            "final norm and fuses nothing; such drafts are not supported. If the file is wrong, pass the tapped "
            "layers as target_layer_ids=[...]."
        )
    rope = (layer.get("rope_parameters") or {}) | (layer.get("rope_scaling") or {})
    for name, supported in UNSUPPORTED.items():
        value = layer.get(name, extra.get(name, rope.get(name)))
        if value is not None and value not in supported and "rope_parameters" not in overrides:
            raise ValueError(
                f"{source}: `{name}` is {value}; only {supported[0]} is supported. If the draft was trained without "
                "it, remove it from config.json."
            )


def _plain_rope(fields: dict, source: str) -> None:
    """
    Replaces multimodal RoPE by the plain one of the same base: the three positions of a text token are equal, and the
    frequencies are the plain ones (AngelSlim's and SpecForge's draft code, SGLang's reader).
    """
    for name in ("rope_scaling", "rope_parameters"):
        rope = fields.get(name)
        if not rope:
            continue
        if any(isinstance(value, dict) for value in rope.values()):
            raise ValueError(
                f"{source}: `{name}` differs by kind of layer ({', '.join(rope)}); a draft has one kind. Pass the "
                "right one as rope_parameters={...}."
            )
        if "mrope_section" in rope:
            kept = {key: value for key, value in rope.items() if not key.startswith("mrope_") and key != "type"}
            fields[name] = kept | {"rope_type": "default"}
            logger.warning_once(
                f"{source} has multimodal RoPE (`mrope_section`). Text is drafted as trained; images are drafted at "
                "text positions, so that fewer tokens behind them may be accepted."
            )


def _warn_of_unknown_keys(found: dict, source: str) -> None:
    unknown = [
        name
        for name, value in found.items()
        if value not in (None, False, [], {}) and meaning_of(name)[0] == "unknown"
    ]
    if unknown:
        names = ", ".join(f"`{name}`" for name in sorted(unknown))
        logger.warning(
            f"{source} has unknown keys that may change what the draft computes: {names}. Check them if few tokens "
            "are accepted."
        )


def _whole_vocabulary(raw: dict, vocab_size: int, source: str) -> int:
    """
    `draft_vocab_size` of a file without one: the target's whole vocabulary, as in SGLang (null) and DeepSpec (absent).
    """
    architectures = raw.get("architectures") or ()
    if "draft_vocab_size" in raw or any("eagle3" in name.lower() for name in architectures):
        return vocab_size
    what = f" (`architectures`: {', '.join(architectures)})" if architectures else ""
    hint = ""
    if may_be_eagle1(raw):
        hint = "With its one layer it may be an EAGLE-1/2 draft: load it with hf_eagle3.EagleDraftModel. "
    raise ValueError(
        f"`draft_vocab_size` is missing from {source}{what}, so this is not an EAGLE-3 draft model. {hint}Load an "
        "ordinary model with AutoModelForCausalLM and use it as the target. If it is an EAGLE-3 draft that predicts "
        f"the whole vocabulary, pass draft_vocab_size={vocab_size}."
    )


def _sliding_window(layer: dict, source: str) -> int | None:
    """
    The window of the draft's attention. A file may have one that no layer uses: `layer_types` decides, or its default
    in Qwen3's configuration, from `use_sliding_window` and `max_window_layers`.
    """
    if AUTOMODEL in (layer.get("architectures") or ()):  # the target's layers are listed; the draft's attends to all
        return None
    window, count = layer.get("sliding_window"), layer.get("num_hidden_layers", 1)
    first = layer.get("max_window_layers", 28)
    uses = layer.get("use_sliding_window", False)
    kinds = layer.get("layer_types") or ["sliding_attention" if uses and i >= first else "" for i in range(count)]
    sliding = [kind == "sliding_attention" for kind in kinds]
    if window is None or not any(sliding):
        return None
    if not all(sliding):
        raise ValueError(
            f"{source}: `layer_types` {kinds} mixes full and sliding attention, which is not supported; all layers "
            "must be of one kind."
        )
    return window


def _target_layer_ids(raw: dict, nested: dict, source: str) -> list[int] | None:
    """Zero-based tapped layers, or `None`; ModelOpt writes an empty list for none."""
    found = {}
    if raw.get(IDS_KEY):
        found[f"`{IDS_KEY}` {raw[IDS_KEY]} (indices into hidden_states)"] = [i - 1 for i in raw[IDS_KEY]]  # vLLM's
    if nested.get(IDS_KEY):
        found[f"`eagle_config.{IDS_KEY}` {nested[IDS_KEY]} (layers)"] = list(nested[IDS_KEY])  # SGLang's
    if raw.get("target_layer_ids"):
        found[f"`target_layer_ids` {raw['target_layer_ids']} (layers)"] = list(raw["target_layer_ids"])  # DeepSpec's
    ids = next(iter(found.values()), None)
    if any(other != ids for other in found.values()):
        raise ValueError(
            f"{source}: {' and '.join(found)} do not name the same layers; pass the right ones as "
            "`target_layer_ids=[...]` (zero-based)."
        )
    return ids
