"""Keys of a draft's `config.json`: which are read, which have no effect and why, which name another kind of drafter.

`meaning_of(key)` answers for any key; only keys that it does not know are warned of. Does not read files.
"""

import functools

from transformers import GenerationConfig, LlamaConfig, PreTrainedConfig, Qwen3Config


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
    "draft_window",
    "target_name_or_path",
    "target_revision",
    "chat_template_kwargs",
)
OTHER_NAMES = {"embed_requires_grad": "embed_trained", "use_aux_norm": "fc_norm"}  # speculators; older SGLang
IDS_KEY = "eagle_aux_hidden_state_layer_ids"
# Read by `dialects.py` for something other than a field of the same name.
READ_OTHERWISE = (
    IDS_KEY,
    "architectures",
    "eagle_config",
    "hidden_activation",  # Gemma's name of `hidden_act`
    "layer_types",
    "max_window_layers",
    "model_type",
    "num_aux_hidden_states",
    "num_hidden_layers",
    "parallel_draft_step",
    "sliding_window",
    "speculators_config",
    "speculators_model_type",
    "target_layer_ids",
    "target_model_name_or_path",  # DeepSpec
    "transformer_layer_config",
    "use_aux_hidden_state",
    "use_sliding_window",
)

# Other kinds of drafters, by the name that `dialects.foreign_kind` returns.
FOREIGN = {
    "eagle": "an EAGLE-1/2 draft",
    "medusa": "a set of Medusa heads",
    "hydra": "a set of Hydra heads",
    "block": "a block drafter (DFlash, JetSpec)",
    "p-eagle": "a parallel drafter (P-EAGLE)",
    "pard": "a parallel drafter (PARD)",
    "mtp": "a set of multi-token-prediction layers",
    "mlp": "an MLP speculator",
    "eagle3-mla": "an EAGLE-3 draft with latent attention (MLA)",
    "eagle3-gemma4": "an EAGLE-3 draft with Gemma 4's layer (extra norms, keys used as values, scaled embedding)",
}
# Keys that only such files have, with any value but null and false.
FOREIGN_KEYS = {
    "dflash_config": "block",
    "dspark_target_layer_ids": "block",
    "block_size": "block",
    "ptd_token_id": "p-eagle",
    "parallel_drafting": "p-eagle",
    "pard_token": "pard",
    "medusa_num_heads": "medusa",
    "hydra_num_heads": "hydra",
    "kv_lora_rank": "eagle3-mla",
}
# Parts of a lower-case name in `architectures`; the first that matches decides.
FOREIGN_ARCHITECTURES = {
    "peagle": "p-eagle",
    "dflash": "block",
    "dflare": "block",
    "dspark": "block",
    "jetspec": "block",
    "domino": "block",
    "medusa": "medusa",
    "hydra": "hydra",
    "eagle3deepseek": "eagle3-mla",
    "gemma4eagle3": "eagle3-gemma4",
}
# `speculators_model_type`
FOREIGN_SPECULATORS = {
    "eagle": "eagle",
    "peagle": "p-eagle",
    "dflash": "block",
    "dspark": "block",
    "mtp": "mtp",
    "mlp": "mlp",
}

TENSORS_DECIDE = "the tensors determine it"
IN_TRAINING = "an option of the training run"
OF_TARGET = "describes the target, whose configuration was copied"
OF_TEXT = "names tokens; the target's own are used"
OF_PARALLEL = "belongs to parallel drafting, which other keys declare"
OF_LATENT = "belongs to latent attention, which `kv_lora_rank` declares"
# Keys without effect on what a draft computes here, by reason.
REASONS = {
    TENSORS_DECIDE: (
        *("draft_num_hidden_layers", "next_layer_regular", "parallel_draft_heads_num_layers"),
        *("use_input_layernorm_in_first_layer", "use_last_layernorm", "use_mtp_layernorm"),
    ),
    "a draft's head is stored, or said to be the target's; it is never the embedding": ("tie_word_embeddings",),
    IN_TRAINING: (
        *("attn_implementation", "down_sample_ratio", "down_sample_ratio_min", "has_no_defaults_at_init"),
        *("output_router_logits", "router_aux_loss_coef", "step_loss_decay", "ttt_length", "aux_loss_alpha"),
        *("seq_aux", "attention_dropout_prob"),
    ),
    OF_TARGET: (
        *("attention_head_dim", "cla_share_factor", "class_num", "decoder_sparse_step", "dense_list", "modal_type"),
        *("add_classification_head", "mask_init_id", "norm_type", "num_target_layers", "org_vocab_size", "pool_type"),
        *("target_model_type", "target_text_model_type", "use_cla", "use_mrope", "use_rotary_pos_emb"),
        # Expert layers and attention of targets whose whole configuration AutoModel and DeepSpec copy.
        *("attn_logit_softcapping", "enable_moe_block", "experts_per_token", "final_logit_softcapping"),
        *("mlp_only_layers", "moe_intermediate_size", "norm_topk_prob", "num_experts", "num_experts_per_tok"),
        *("num_local_experts", "original_max_position_embeddings", "query_pre_attn_scalar", "swiglu_limit"),
        *("initial_context_length", "router_jitter_noise", "first_k_dense_replace", "moe_layer_freq"),
        *("ep_size", "n_group", "n_routed_experts", "n_shared_experts", "num_nextn_predict_layers"),
        *("routed_scaling_factor", "scoring_func", "topk_group", "topk_method"),
        *("attention_k_eq_v", "embd_pdrop", "expert_intermediate_size", "global_head_dim", "resid_pdrop"),
        *("hidden_size_per_layer_input", "num_global_key_value_heads", "num_kv_shared_layers", "top_k_experts"),
        *("use_bidirectional_attention", "use_double_wide_mlp", "vocab_size_per_layer_input"),
    ),
    OF_TEXT: (
        *("eod_token_id", "im_end_id", "im_newline_id", "im_start_id", "image_end_token_id"),
        *("image_newline_token_id", "image_start_token_id", "image_token_id", "pad_id", "text_end_id"),
        *("text_start_id", "video_token_id", "vision_end_token_id", "vision_start_token_id", "vision_token_id"),
    ),
    OF_PARALLEL: ("mask_token_id", "num_depths", "dspark_noise_token_id"),
    OF_LATENT: ("q_lora_rank", "qk_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    "says who wrote the file": ("_name_or_path", "speculators_version", "transformers_weights", "auto_map"),
    "how transformers places a model on devices": ("base_model_ep_plan", "base_model_pp_plan", "base_model_tp_plan"),
    "a default that transformers 4 wrote into every file": (
        *("add_cross_attention", "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward"),
        *("cross_attention_hidden_size", "decoder_start_token_id", "finetuning_task", "forced_bos_token_id"),
        *("forced_eos_token_id", "is_decoder", "prefix", "pretraining_tp", "pruned_heads", "sep_token_id"),
        *("task_specific_params", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class"),
        *("torchscript", "use_bfloat16", "use_cache"),
    ),
}
IGNORED = {key: reason for reason, keys in REASONS.items() for key in keys}
# Keys that change what a draft computes and are not supported, with the only values that are.
UNSUPPORTED = {"partial_rotary_factor": (1, 1.0), "is_causal": (True,)}
OF_EVERY_CONFIG = "a field of every transformers configuration"


@functools.cache
def _fields_of_every_config() -> frozenset[str]:
    configs = (PreTrainedConfig(), LlamaConfig(), Qwen3Config(), GenerationConfig())
    return frozenset(name for config in configs for name in config.to_dict())


def meaning_of(key: str) -> tuple[str, str]:
    """
    ("read" | "refused" | "ignored" | "unknown", why) for a key of a `config.json` or of its `eagle_config`. "refused"
    holds for the values that `dialects.read_config` rejects, "unknown" keys are warned of.
    """
    if key in (*SHARED_FIELDS, *EXTRA_FIELDS, *OTHER_NAMES, *READ_OTHERWISE):
        return "read", "its value is used"
    if key in FOREIGN_KEYS:
        return "refused", f"only {FOREIGN[FOREIGN_KEYS[key]]} has it"
    if key in UNSUPPORTED:
        return "refused", f"only {UNSUPPORTED[key][0]} is supported"
    if key in IGNORED:
        return "ignored", IGNORED[key]
    if key in _fields_of_every_config():
        return "ignored", OF_EVERY_CONFIG
    return "unknown", "may change what the draft computes"
