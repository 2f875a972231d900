"""Tiny random instances of every decoder-only architecture of the host's causal-LM mapping.

One recipe makes any configuration small; what an architecture needs beyond it stands in a table. The recipe reads the
kinds of layers (sliding, chunked, linear, MoE, ...) from the full-size configuration and lets each of them occur.
"""

import dataclasses

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


VOCAB, WINDOW, LAYERS = 24, 8, 4
# What every name that a configuration may have is set to; names whose default is `None` mean an unused option, except
# those of SHAPES.
SIZES = {
    24: "vocab_size unpadded_vocab_size vocab_size_per_layer_input",
    32: "hidden_size n_embd d_model dim_model emb_dim embedding_size",
    48: "intermediate_size moe_intermediate_size ffn_dim dff dim_ff n_inner shared_expert_intermediate_size "
    "moe_shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size ffn_hidden_size "
    "intermediate_size_mlp dense_intermediate_size shared_experts_intermediate_size prefix_dense_intermediate_size "
    "d_inner decoder_ffn_dim encoder_ffn_dim feed_forward_size",
    4: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks depth "
    "num_attention_heads n_head n_heads num_heads attention_heads swa_num_attention_heads decoder_attention_heads "
    "encoder_attention_heads num_experts n_routed_experts num_local_experts moe_num_experts moe_num_primary_experts "
    "rotary_dim index_topk index_topk_blocks index_block_size time_step_rank conv_kernel",
    2: "num_key_value_heads num_kv_heads n_kv_heads swa_num_key_value_heads num_experts_per_tok moe_k moe_topk "
    "moe_top_k top_k_experts linear_num_key_heads linear_num_value_heads linear_num_heads",
    8: "head_dim swa_head_dim sliding_window sliding_window_size attention_chunk_size attention_window_size "
    "window_size local_attention qk_nope_head_dim qk_rope_head_dim v_head_dim kv_channels dim_head "
    "linear_key_head_dim linear_value_head_dim linear_head_dim mamba_d_head mamba_head_dim mamba_headdim "
    "mamba_d_state state_size ssm_state_size mamba_n_heads mamba_num_heads n_mamba_heads chunk_size "
    "mamba_chunk_size d_rel hidden_size_per_layer_input laurel_rank block_size gated_norm_rank "
    "router_hidden_size mamba_d_ssm",
    16: "index_n_heads kv_lora_rank q_lora_rank o_lora_rank index_head_dim attention_head_dim qk_head_dim",
    1: "n_group topk_group num_expert_group topk_groups n_shared_experts num_shared_experts moe_num_shared_experts "
    "first_k_dense_replace num_dense_layers bos_token_id o_groups mamba_n_groups n_groups mamba_ngroups",
    0: "pad_token_id num_mtp_layers num_nextn_predict_layers mlp_only_layers",
    512: "max_position_embeddings n_positions n_ctx max_seq_len context_length n_ctx",
}
ALWAYS = ("head_dim", "num_key_value_heads", "num_experts_per_tok")  # even where the default is `None`
TINY = {name: size for size, names in SIZES.items() for name in names.split()}
SLIDING = ["sliding_attention", "full_attention"] * 2
LINEAR = ["linear_attention", "full_attention"] * 2
CONV = ["conv", "full_attention"] * 2
MAMBA_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8}
# What makes an architecture small, or lets all its parts occur, beyond the recipe.
EXTRA: dict[str, dict] = {
    "bamba": MAMBA_HEADS | {"attn_layer_indices": [1, 3]},
    "big_bird": {"attention_type": "original_full"},
    "cohere2_moe": {"mlp_layer_types": ["dense", "sparse"] * 2},
    "cohere_compass_text": {
        "layer_types": SLIDING,
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": None},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {
        "num_hidden_layers": 6,
        "layer_types": [
            "sliding_attention",
            "heavily_compressed_attention",
            "compressed_sparse_attention",
        ]
        * 2,
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    },
    "dots1": {"layer_types": SLIDING, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "falcon_h1": MAMBA_HEADS | {"mamba_d_ssm": 64},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.5] * 2 + [0.0] * 4,
    },
    "gemma4_text": {"global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": MAMBA_HEADS | {"layer_types": LINEAR},
    "jamba": {"attn_layer_period": 4, "attn_layer_offset": 2},
    "laguna": {"layer_types": SLIDING},
    "lfm2": {"layer_types": CONV},
    "lfm2_moe": {"layer_types": CONV},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "mellum": {"layer_types": SLIDING},
    "minimax_m3_vl_text": {
        "index_n_heads": 2,
        "layer_types": ["minimax_m3_sparse", "full_attention"] * 2,
        "mlp_layer_types": ["dense", "sparse"] * 2,
    },
    "mpt": {"use_cache": True},
    "qwen4_exp_text": {
        "eos_token_id": 2,
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
        "ple_layer_ids": [1, 3],
        "ple_embed_dim": 8,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 64,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 2,
    },
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (16, 32), "attn_layers": ["local", "lsh"] * 2},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "roc_bert": {
        "pronunciation_vocab_size": VOCAB,
        "shape_vocab_size": VOCAB,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "xlstm": {"chunk_size": 64, "hidden_size": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention"] * 2 + ["hybrid", "linear_attention"] * 2, "num_hidden_layers": 6},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2 + ["linear_attention"],
        "num_hidden_layers": 5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "use_mem_rope": True,
        "n_mamba_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}
EXTRA["gemma4_unified_text"] = EXTRA["gemma4_text"]
for _outer, _inner in {
    "dots3_note": "dots3_note_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "qwen4_exp": "qwen4_exp_text",
}.items():
    EXTRA[_outer] = {"text_config": EXTRA[_inner]}
EXTRA["dots3_note"] |= {
    "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32},
    "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
}

NOT_DECODER_ONLY = {
    name: "the decoder of an encoder-decoder"
    for name in (
        "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet trocr whisper "
        "musicgen musicgen_melody moshi"
    ).split()
} | {
    "git": "captions images",
    "xlm": "an encoder: the host does not build it as a decoder",
    "gemma4_assistant": "a draft itself: reads the keys and values of a Gemma 4",
    "gemma4_unified_assistant": "a draft itself: reads the keys and values of a Gemma 4",
}


def all_names():
    return [n for n in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if n not in NOT_DECODER_ONLY]


def tiny_config(config_class: type[PreTrainedConfig], **changes) -> PreTrainedConfig:
    """A small configuration in which every kind of layer of the full-size one occurs."""
    full = config_class()
    values = {}
    num_layers = changes.get("num_hidden_layers", LAYERS)
    for field in dataclasses.fields(config_class):
        try:
            value = getattr(full, field.name, None)
        except RuntimeError:  # differs by layer
            value = 0
        if field.name in TINY and (type(value) is int or field.name in ALWAYS):
            values[field.name] = TINY[field.name]
        elif isinstance(value, (list, tuple)) and value and all(isinstance(kind, str) for kind in value):
            kinds = list(dict.fromkeys(value))
            values[field.name] = [kinds[i % len(kinds)] for i in range(num_layers)]
    for name in getattr(config_class, "sub_configs", {}):
        if getattr(full, name, None) is not None:
            values[name] = tiny_config(type(getattr(full, name)), **changes.pop(name, {}))
    if values.get("kv_lora_rank"):  # latent attention has as many key heads as heads
        values["num_key_value_heads"] = values["num_attention_heads"]
    if "is_decoder" in {f.name for f in dataclasses.fields(config_class)}:
        values["is_decoder"] = True
    return config_class(**values | changes)


def tiny_model(name: str, seed: int = 0, scale: float = 0.15) -> PreTrainedModel:
    """A tiny model of the architecture `name`, in which context and positions matter."""
    model_type = name.split("[")[0]
    config = tiny_config(CONFIG_MAPPING[model_type], **EXTRA.get(name, {}))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() > 1 and "A_log" not in key:
                nn.init.normal_(parameter, std=scale)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model
