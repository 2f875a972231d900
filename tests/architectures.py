"""Tiny random instances of every decoder-only architecture of the host's causal-LM mapping, and of their variants.

One recipe makes any configuration small; what an architecture needs beyond it stands in a table. The recipe reads the
kinds of layers (sliding, chunked, linear, MoE, ...) from the full-size configuration and lets each of them occur.
Weights are drawn anew, large enough for context and positions to matter. An entry that a newer transformers adds gets
the recipe alone.
"""

import dataclasses

import torch
from models import VOCAB, WINDOW
from packaging.version import Version
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers import __version__ as version
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


NEWER = Version(version) >= Version("5.17")  # than the floor, where some layers have other names
LAYERS = 4
# What a configuration's fields are set to, where their default is a number. `None` means that a part is unused.
SIZES = {
    "vocab_size unpadded_vocab_size vocab_size_per_layer_input": VOCAB,
    "sliding_window sliding_window_size attention_window_size window_size local_attention "
    "attention_chunk_size": WINDOW,
    "num_hidden_layers n_layer n_layers num_layers num_blocks depth": LAYERS,
    "n_group topk_group n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace "
    "num_dense_layers bos_token_id o_groups mamba_n_groups n_groups mamba_ngroups": 1,
    "num_key_value_heads num_kv_heads swa_num_key_value_heads num_experts_per_tok moe_k moe_topk moe_top_k "
    "linear_num_key_heads linear_num_value_heads linear_num_heads": 2,
    "num_attention_heads n_head n_heads num_heads attention_heads swa_num_attention_heads num_experts "
    "n_routed_experts num_local_experts moe_num_experts rotary_dim index_topk index_topk_blocks index_block_size "
    "time_step_rank conv_kernel": 4,
    "head_dim swa_head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim kv_channels dim_head linear_key_head_dim "
    "linear_value_head_dim linear_head_dim mamba_d_head mamba_head_dim mamba_d_state state_size ssm_state_size "
    "mamba_n_heads mamba_num_heads n_mamba_heads chunk_size mamba_chunk_size d_rel hidden_size_per_layer_input "
    "laurel_rank block_size gated_norm_rank router_hidden_size": 8,
    # Indexers sum ReLUs over their heads: with few, scores of many keys tie at 0, and top-k is anyone's choice.
    "index_n_heads kv_lora_rank q_lora_rank o_lora_rank index_head_dim attention_head_dim qk_head_dim": 16,
    "hidden_size n_embd d_model embedding_size": 32,
    "intermediate_size moe_intermediate_size ffn_dim dff dim_ff shared_expert_intermediate_size "
    "moe_shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size ffn_hidden_size "
    "intermediate_size_mlp dense_intermediate_size shared_experts_intermediate_size d_inner feed_forward_size": 48,
    "mamba_d_ssm": 64,
    "max_position_embeddings n_positions n_ctx max_seq_len context_length": 512,
    "pad_token_id num_mtp_layers num_nextn_predict_layers": 0,
}
TINY = {name: size for names, size in SIZES.items() for name in names.split()}
ALWAYS = ("head_dim", "num_key_value_heads", "num_experts_per_tok")  # even where the default is `None`
SLIDING = ["sliding_attention", "full_attention"] * 2
LINEAR = ["linear_attention", "full_attention"] * 2
CONV = ["conv", "full_attention"] * 2
# What makes an architecture small, or lets all its parts occur, beyond the recipe.
EXTRA: dict[str, dict] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "big_bird": {"attention_type": "original_full"},
    "cohere2_moe": {"mlp_layer_types": ["dense", "sparse"] * 2},
    "cohere_compass_text": {
        "layer_types": SLIDING,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
            "full_attention": None,
        },
    },
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention"] * 2,
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
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "intermediate_size": 48,
        "activation_sparsity_pattern": [0.5] * 2 + [0.0] * 4,
    },
    "gemma4_text": {"global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": LINEAR if NEWER else ["mamba", "attention"] * 2},
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
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 16},
    "roc_bert": {
        "pronunciation_vocab_size": VOCAB,
        "shape_vocab_size": VOCAB,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "xlstm": {"chunk_size": 64, "hidden_size": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention"] * 2 + ["hybrid", "linear_attention"] * 2,
        "num_hidden_layers": 6,
        "use_mamba_kernels": False,
    },
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


def _rope(rope_type: str, **fields) -> dict:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 1e4, **fields}}


_LONG = {"short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0]}
# The same architectures with other options, under a name that tells which.
VARIANTS: dict[str, dict] = {
    "dots1[windows of one kind]": {"layer_types": ["sliding_attention"] * 4},
    "dory[last_loop]": {"recurrent_kv_cache_mode": "last_loop"},
    "falcon[alibi]": {"alibi": True},
    "falcon[heads of their own]": {"multi_query": False, "parallel_attn": False, "num_kv_heads": 4},
    "falcon[new decoder]": {"new_decoder_architecture": True},
    "gemma2[softcap]": {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0, "attn_implementation": "eager"},
    "gemma4_text[moe, shared keys]": {
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_kv_shared_layers": 2,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
    },
    "gemma4_text[keys are values]": {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
    "gpt_bigcode[heads of their own]": {"multi_query": False},
    "granitemoehybrid[rope]": {"position_embedding_type": "rope"},
    "hrm_text[causal]": {"prefix_lm": False},
    "laguna[heads by layer]": {"num_attention_heads_per_layer": [4, 2, 4, 2]},
    "llama4_text[one chunk]": {"attention_chunk_size": 128},
    "llama[dynamic]": _rope("dynamic", factor=2.0),
    "llama[linear]": _rope("linear", factor=2.0),
    "llama[llama3]": _rope(
        "llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
    ),
    "llama[longrope]": _rope("longrope", **_LONG, factor=2.0, original_max_position_embeddings=256),
    "llama[longrope, beyond]": _rope("longrope", **_LONG, factor=64.0, original_max_position_embeddings=8),
    "llama[yarn]": _rope("yarn", factor=4.0, original_max_position_embeddings=16),
    "mistral[full]": {"sliding_window": None},
    "phi3[longrope]": _rope("longrope", **_LONG, factor=2.0, original_max_position_embeddings=256),
    "phi3[longrope, beyond]": _rope("longrope", **_LONG, factor=64.0, original_max_position_embeddings=8),
    "phi3[sliding]": {"sliding_window": WINDOW},
    "qwen2[sliding]": {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": SLIDING},
    "qwen3[sliding]": {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": SLIDING},
    "rembert[narrow embedding]": {"input_embedding_size": 16},
    "starcoder2[sliding]": {"sliding_window": WINDOW},
    "zaya[sliding]": {"layer_types": ["hybrid", "hybrid_sliding"] * 2, "sliding_window": WINDOW},
}

DECODER = "the decoder of an encoder-decoder"
DRAFT = "a draft itself: reads the keys and values of a Gemma 4"
NOT_DECODER_ONLY = {
    "bart": DECODER,
    "bigbird_pegasus": DECODER,
    "blenderbot": DECODER,
    "blenderbot-small": DECODER,
    "gemma4_assistant": DRAFT,
    "gemma4_unified_assistant": DRAFT,
    "git": "captions images",
    "marian": DECODER,
    "mbart": DECODER,
    "moshi": DECODER,
    "musicgen": DECODER,
    "musicgen_melody": DECODER,
    "mvp": DECODER,
    "pegasus": DECODER,
    "plbart": DECODER,
    "prophetnet": DECODER,
    "trocr": DECODER,
    "whisper": DECODER,
    "xlm": "an encoder: transformers does not build it as a decoder",
}
NOT_TINY = {
    "blt": "plain generate fails: its configuration has no `num_hidden_layers`",
    "gemma3n": "its image tower needs timm; `gemma3n_text` is its language model",
}
if not NEWER:
    NOT_TINY["falcon_h1"] = "plain generate fails: its configuration names no layers with states"


def architecture_names() -> list[str]:
    """Everything to be tested with the installed transformers, alphabetically."""
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - NOT_DECODER_ONLY.keys() - NOT_TINY.keys()
    return sorted(known | {name for name in VARIANTS if name.split("[")[0] in known})


def tiny_config(config_class: type[PreTrainedConfig], **changes) -> PreTrainedConfig:
    """A small configuration in which every kind of layer of the full-size one occurs."""
    full = config_class()
    fields = [field.name for field in dataclasses.fields(config_class)]
    num_layers = changes.get("num_hidden_layers", LAYERS)
    values = {"is_decoder": True} if "is_decoder" in fields else {}
    for name in fields:
        try:
            value = getattr(full, name, None)
        except RuntimeError:  # differs by layer
            value = 0
        if name in TINY and (type(value) is int or name in ALWAYS):
            values[name] = TINY[name]
        elif isinstance(value, (list, tuple)) and value and all(isinstance(kind, str) for kind in value):
            kinds = list(dict.fromkeys(value))
            values[name] = [kinds[i % len(kinds)] for i in range(num_layers)]
    for name in getattr(config_class, "sub_configs", {}):
        if getattr(full, name, None) is not None:
            values[name] = tiny_config(type(getattr(full, name)), **changes.pop(name, {}))
    if values.get("kv_lora_rank"):  # latent attention has as many key heads as heads
        values["num_key_value_heads"] = values["num_attention_heads"]
    return config_class(**values | changes)


def tiny_model(name: str, seed: int = 0, scale: float = 0.15, **changes) -> PreTrainedModel:
    """A tiny model of the architecture or variant `name`; matrices have the standard deviation `scale`."""
    changes = EXTRA.get(name.split("[")[0], {}) | VARIANTS.get(name, {}) | changes
    attention = changes.pop("attn_implementation", None)
    config = tiny_config(CONFIG_MAPPING[name.split("[")[0]], **changes)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() > 1 and "A_log" not in key:
                nn.init.normal_(parameter, std=scale)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model
