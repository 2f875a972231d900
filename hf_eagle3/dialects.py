"""Checkpoint dialects: maps the `config.json` of other projects to fields of `Eagle3Config`.

Supported are SafeAILab, SpecForge/SGLang, NVIDIA ModelOpt, speculators, DeepSpec and EAGLE-3.1. An unsupported key
that changes what a draft computes is an error; an unknown key is a warning. Does not know files, tensors or the model
class.
"""

import functools

from transformers import GenerationConfig, LlamaConfig, PreTrainedConfig, Qwen3Config
from transformers.utils import logging


logger = logging.get_logger(__name__)

SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "attention_bias",
    "attention_dropout",
    "mlp_bias",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "dtype",
    "torch_dtype",
    "quantization_config",
)
# ModelOpt and SGLang store some of them in `eagle_config`.
EXTRA_FIELDS = (
    "draft_vocab_size",
    "target_hidden_size",
    "norm_before_residual",
    "norm_before_fc",
    "fc_norm",
    "norm_output",
    "use_qk_norm",
    "embed_trained",
    "has_lm_head",
    "target_name_or_path",
    "target_revision",
    "chat_template_kwargs",
)
OTHER_NAMES = {"embed_requires_grad": "embed_trained", "use_aux_norm": "fc_norm"}  # speculators; older SGLang
IDS_KEY = "eagle_aux_hidden_state_layer_ids"
# Keys that identify another kind of drafter.
OTHER_KINDS = {
    "dflash_config": "a block drafter (DFlash, JetSpec)",
    "ptd_token_id": "a parallel drafter (P-EAGLE)",
    "pard_token": "a parallel drafter (PARD)",
    "medusa_num_heads": "a set of Medusa heads",
    "hydra_num_heads": "a set of Hydra heads",
}
# Read elsewhere, determined by the tensors, or without effect on what a draft computes.
OTHER_KNOWN_KEYS = (
    "eagle_config",
    "layer_types",
    "max_window_layers",
    "num_aux_hidden_states",
    "sliding_window",
    "speculators_config",
    "speculators_model_type",
    "speculators_version",
    "target_layer_ids",
    "transformer_layer_config",
    "use_aux_hidden_state",
    "use_sliding_window",
    "next_layer_regular",
    "num_target_layers",
    "parallel_draft_heads_num_layers",
    "parallel_draft_step",
    "step_loss_decay",
    "target_model_type",
    "transformers_weights",
    "ttt_length",
    "use_input_layernorm_in_first_layer",
    "use_last_layernorm",
    "use_mtp_layernorm",
    # Defaults that transformers 4 wrote into every file.
    *("add_cross_attention", "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward"),
    *("cross_attention_hidden_size", "decoder_start_token_id", "finetuning_task", "forced_bos_token_id"),
    *("forced_eos_token_id", "is_decoder", "prefix", "pretraining_tp", "pruned_heads", "sep_token_id"),
    *("task_specific_params", "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class"),
    *("torchscript", "use_bfloat16", "use_cache"),
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
        raise ValueError(f"{source} is a speculators `{kind}` checkpoint; only `eagle3` drafts are supported.")
    nested = raw.get("eagle_config") or {}
    extra = nested | {name: value for name, value in raw.items() if value is not None}
    _refuse_other_kinds(extra, overrides, source)
    _warn_of_unknown_keys(layer | extra, source)

    fields = {name: layer[name] for name in SHARED_FIELDS if layer.get(name) is not None}
    fields |= {field: True for name, field in OTHER_NAMES.items() if extra.get(name)}
    fields |= {name: extra[name] for name in (*EXTRA_FIELDS, "dtype", "torch_dtype") if extra.get(name) is not None}
    taps = layer.get("num_aux_hidden_states", raw.get("num_aux_hidden_states"))
    if taps is not None:
        fields["num_tapped_layers"] = taps
    verifier = (raw.get("speculators_config") or {}).get("verifier") or {}
    if verifier.get("name_or_path"):
        fields["target_name_or_path"] = verifier["name_or_path"]
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


def _refuse_other_kinds(extra: dict, overrides: dict, source: str) -> None:
    for name, kind in OTHER_KINDS.items():
        if extra.get(name) is not None:
            remedy = "load it with hf_eagle3.BlockDraftModel" if name == "dflash_config" else "which is not supported"
            raise ValueError(f"{source} has `{name}`, so it is {kind} and no EAGLE-3 draft; {remedy}.")
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


def _warn_of_unknown_keys(found: dict, source: str) -> None:
    unknown = [
        name for name, value in found.items() if name not in known_keys() and value not in (None, False, [], {})
    ]
    if unknown:
        names = ", ".join(f"`{name}`" for name in sorted(unknown))
        logger.warning(
            f"{source} has unknown keys that may change what the draft computes: {names}. Check them if few tokens "
            "are accepted."
        )


@functools.cache
def known_keys() -> frozenset[str]:
    """Keys of a `config.json` that are read or known to have no effect."""
    configs = (PreTrainedConfig(), LlamaConfig(), Qwen3Config(), GenerationConfig())
    kept = {name for config in configs for name in config.to_dict()}
    return frozenset({*kept, *SHARED_FIELDS, *EXTRA_FIELDS, *OTHER_NAMES, IDS_KEY, *OTHER_KNOWN_KEYS, "_name_or_path"})


def _whole_vocabulary(raw: dict, vocab_size: int, source: str) -> int:
    """
    `draft_vocab_size` of a file without one: the target's whole vocabulary, as in SGLang (null) and DeepSpec (absent).
    """
    architectures = raw.get("architectures") or ()
    if "draft_vocab_size" in raw or any("eagle3" in name.lower() for name in architectures):
        return vocab_size
    what = f" (`architectures`: {', '.join(architectures)})" if architectures else ""
    if any("eagle" in name.lower() for name in architectures) or raw.get("model_type") == "eagle":
        hint = "It declares an EAGLE-1 or EAGLE-2 draft, which is not supported."
    elif raw.get("num_hidden_layers") == 1:
        hint = "With its one layer it may be an EAGLE-1 or EAGLE-2 draft, which is not supported."
    else:
        hint = "Load an ordinary model with AutoModelForCausalLM and use it as the target."
    raise ValueError(
        f"`draft_vocab_size` is missing from {source}{what}, so this is not an EAGLE-3 draft model. {hint} If it is "
        f"an EAGLE-3 draft that predicts the whole vocabulary, pass draft_vocab_size={vocab_size}."
    )


def _sliding_window(layer: dict, source: str) -> int | None:
    """
    The window of the draft's attention. A file may have one that no layer uses: `layer_types` decides, or its default
    in Qwen3's configuration, from `use_sliding_window` and `max_window_layers`.
    """
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
