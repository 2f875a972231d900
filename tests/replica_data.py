"""Layouts of public repositories: keys of their `config.json` with published values, and names of their tensors.

`seen` says where a layout comes from: "config": the published config.json was read; "code": the publisher's own code
or configuration files; "card": the model card or an issue that quotes it, other keys as in the publisher's code.
`expects` holds what must come out: tapped layers after fitting to a target of `layers` layers, RoPE, flags, the head,
the embedding. `refused` holds a part of the message instead.
"""

from dataclasses import dataclass, field


IDS = "eagle_aux_hidden_state_layer_ids"
SPECFORGE = "https://github.com/sgl-project/SpecForge/tree/a6b6b0230009d15ec2a97a57384e6f53f0f96946/configs"
ANGELSLIM = "https://github.com/Tencent/AngelSlim/tree/67394ce55f6b6cfae702575fbc3c7a05c13fdd74"
MODELOPT = "https://github.com/NVIDIA/Model-Optimizer/blob/a2fbac7bad8ab446d3f8783dadb0c3366eb0ad73"
DEEPSPEC = "https://github.com/deepseek-ai/DeepSpec/tree/afdfa7c9382a3341a3e6f17756dd816da79f132c"
TORCHSPEC = "https://github.com/torchspec-project/TorchSpec/tree/6dda2bfc7b181158697245eee3f17d0e9c766750"
SPECULATORS = "https://github.com/vllm-project/speculators/tree/c05b95b303f7d4f21e8d7624e0ffa1c2d9b4d73b"
AUTOMODEL = "https://github.com/NVIDIA-NeMo/Automodel/tree/36044ad3d139363fb6c73c24af2e7c6b65ec52f6"
EAGLE = "https://github.com/SafeAILab/EAGLE/blob/cb7e0841fe0c206c6ed74a197ad5e2a1f13f5a2b/README.md"
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Replica:
    """One repository. `tensors`: how they are named (`test_replicas.py`), plus names of further ones."""

    repository: str
    seen: str
    source: str
    config: dict
    layers: int = 32
    names: str = "midlayer"
    embed: bool = False
    head: bool = True
    t2d: bool = True
    further: tuple[str, ...] = ()
    expects: dict = field(default_factory=dict)
    refused: str | None = None

    @property
    def publisher(self) -> str:
        return self.repository.split("/")[0]


def llama(**keys) -> dict:
    """What every file has."""
    common = {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_act": "silu"}
    common |= {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    common |= {"num_hidden_layers": 1, "rms_norm_eps": 1e-5, "initializer_range": 0.02, "use_cache": True}
    common |= {"tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.51.0"}
    common |= {"max_position_embeddings": 2048, "vocab_size": 128256, "draft_vocab_size": 32000}
    return {name: value for name, value in (common | keys).items() if value is not ...}


def qwen(**keys) -> dict:
    """SpecForge's and AngelSlim's files for Qwen3."""
    own = {"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645}
    own |= {"head_dim": 128, "max_position_embeddings": 40960, "max_window_layers": 36, "rms_norm_eps": 1e-6}
    own |= {"rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "use_sliding_window": False}
    return llama(**own | {"vocab_size": 151936} | keys)


def angelslim(**keys) -> dict:
    return qwen(architectures=["Eagle3LlamaForCausalLM"], target_model_type="qwen3", **keys)


def nested(ids, **keys) -> dict:
    return {"eagle_config": {IDS: ids, "use_aux_hidden_state": True, **keys}}


def modelopt(ids, **keys) -> dict:
    """Model-Optimizer's template."""
    eagle = {"use_input_layernorm_in_first_layer": True, "use_last_layernorm": True, "use_mtp_layernorm": False}
    eagle |= {"next_layer_regular": True, "parallel_draft_step": 1, "parallel_draft_heads_num_layers": 1}
    own = {"pad_token_id": 0, "pretraining_tp": 1, "mlp_bias": False, "attention_bias": False, "rope_scaling": None}
    eagle_config = nested(ids, **eagle)["eagle_config"] | keys.pop("eagle_config", {})
    return llama(**own | {"rope_theta": 500000.0, "head_dim": 128} | keys, eagle_config=eagle_config)


def speculators(verifier: str, layer: dict, kind: str = "eagle3", **keys) -> dict:
    proposal = {"accept_tolerance": 0.0, "proposal_type": "greedy", "speculative_tokens": 3, "verifier_accept_k": 1}
    section = {"algorithm": kind, "default_proposal_method": "greedy", "proposal_methods": [proposal]}
    section["verifier"] = {"architectures": ["Qwen3ForCausalLM"], "name_or_path": verifier}
    layer = {k: v for k, v in layer.items() if k not in ("architectures", "draft_vocab_size", "torch_dtype")}
    own = {"architectures": ["Eagle3Speculator"], "draft_vocab_size": 32000, "has_no_defaults_at_init": False}
    own |= {"speculators_config": section, "speculators_model_type": kind, "speculators_version": "0.5.0.dev5"}
    return own | {"target_hidden_size": None, "transformer_layer_config": layer, "tie_word_embeddings": False} | keys


def deepspec(ids, **keys) -> dict:
    """The target's file with DeepSpec's keys."""
    own = {"architectures": ["Qwen3Eagle3Model"], "model_type": "qwen3", "draft_vocab_size": ..., "dtype": "bfloat16"}
    own |= {"layer_types": ["full_attention"], "num_target_layers": 36, "target_layer_ids": ids, "ttt_length": 7}
    own |= {"step_loss_decay": 0.8, "draft_num_hidden_layers": 1, "target_model_name_or_path": "Qwen/Qwen3-8B"}
    return qwen(**own | {"torch_dtype": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}} | keys)


def mla(**keys) -> dict:
    own = {"architectures": ["Eagle3DeepseekV2ForCausalLM"], "model_type": "kimi_k2", "kv_lora_rank": 512}
    own |= {"q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    return llama(**own | {"rope_theta": 50000.0, "vocab_size": 163840, "draft_vocab_size": 163840} | keys)


def eagle1(**keys) -> dict:
    return llama(architectures=["LlamaForCausalLM"], draft_vocab_size=..., vocab_size=32000, **keys)


def medusa(target: str, heads: int, layers: int, **keys) -> dict:
    return {"base_model_name_or_path": target, "medusa_num_heads": heads, "medusa_num_layers": layers} | keys


def block(**keys) -> dict:
    """z-lab's DFlash."""
    own = {"architectures": ["DFlashDraftModel"], "model_type": "qwen3", "block_size": 16, "num_target_layers": 36}
    own |= {"dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]}}
    return qwen(
        **{"draft_vocab_size": ..., "num_hidden_layers": 5, "layer_types": ["full_attention"] * 5} | own | keys
    )


def p_eagle(**keys) -> dict:
    """vLLM reads `ptd_token_id` of drafts that its option `parallel_drafting` serves."""
    return llama(**{"num_hidden_layers": 4, "ptd_token_id": 201087, "vocab_size": 201088} | keys)


YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 64.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn"}  # fmt: skip
LLAMA3 = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 4096,
          "rope_type": "llama3"}  # fmt: skip
MROPE = {"mrope_section": [16, 24, 24], "rope_type": "mrope", "type": "mrope"}
EAGLE1_TENSORS = ("fc.weight", "fc.bias", "layers.0.self_attn.q_proj.weight", "embed_tokens.weight")
MLA_TENSORS = ("midlayer.self_attn.kv_a_proj_with_mqa.weight", "fc.weight")
BLOCK_TENSORS = ("fc.weight", "hidden_norm.weight", "norm.weight", "layers.0.self_attn.q_norm.weight")
MEDUSA_TENSORS = ("0.0.linear.weight", "0.0.linear.bias", "0.1.weight")

OF_SAFEAILAB = tuple(
    Replica(name, seen, EAGLE, llama(architectures=["LlamaForCausalLM"], torch_dtype="float16", **keys), layers,
            expects={"taps": taps, "theta": 10000.0})
    for name, seen, layers, taps, keys in (
        ("yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", "code", 32, [1, 15, 28], {"bos_token_id": 128000}),
        ("yuhuili/EAGLE3-DeepSeek-R1-Distill-LLaMA-8B", "code", 32, [1, 15, 28], {"eos_token_id": 128001}),
        ("yuhuili/EAGLE3-LLaMA3.3-Instruct-70B", "code", 80, [1, 39, 76], {"hidden_size": 8192}),
        ("yuhuili/EAGLE3-Vicuna1.3-13B", "card", 40, [1, 19, 36],
         {"num_hidden_layers": 40, "vocab_size": 32000, "draft_vocab_size": 32000, "pad_token_id": 0}),
    )
)  # fmt: skip

OF_SPECFORGE = (
    Replica("AQ-MedAI/Kimi-K25-eagle3", "config", f"{HUB}/AQ-MedAI/Kimi-K25-eagle3/blob/main/config.json",
            qwen(dtype="bfloat16", torch_dtype=..., hidden_size=7168, num_attention_heads=64, num_key_value_heads=64,
                 mlp_bias=False, pretraining_tp=1, vocab_size=163840, **nested([2, 30, 58])),
            61, expects={"taps": [2, 30, 58], "theta": 1e6}),
    Replica("AQ-MedAI/Kimi-K2-Instruct-eagle3", "config",
            f"{HUB}/AQ-MedAI/Kimi-K2-Instruct-eagle3/blob/main/config.json",
            qwen(dtype="bfloat16", torch_dtype=..., num_key_value_heads=32, mlp_bias=False, **nested([2, 30, 58])),
            61, expects={"taps": [2, 30, 58], "theta": 1e6}),
    Replica("AQ-MedAI/Ling-Flash-2.0-eagle3", "code", f"{SPECFORGE}/ling-flash-2.0-eagle3.json",
            llama(bos_token_id=163584, eos_token_id=163585, pad_token_id=0, max_position_embeddings=32768,
                  vocab_size=157184), 32, expects={"taps": [1, 15, 28], "theta": 10000.0}),
    Replica("zjxia/step-3.5-flash-eagle3-SpecForge-draft", "config",
            f"{HUB}/zjxia/step-3.5-flash-eagle3-SpecForge-draft/blob/main/config.json",
            llama(attention_bias=False, attention_dropout=0.0, dtype="bfloat16", torch_dtype=..., head_dim=64,
                  mlp_bias=False, pad_token_id=2, pretraining_tp=1, rope_scaling=None, rope_theta=10000.0,
                  vocab_size=128896, **nested([4, 20, 40])), 45, expects={"taps": [4, 20, 40], "theta": 10000.0}),
    Replica("linglingdan/eagle3_for_MiniCPM4", "config",
            f"{HUB}/linglingdan/eagle3_for_MiniCPM4/blob/main/config.json",
            llama(attention_bias=False, initializer_range=0.1, rope_scaling=None, rope_theta=10000.0, vocab_size=73448,
                  draft_vocab_size=15000, use_sliding_window=False),
            32, expects={"taps": [1, 15, 28], "theta": 10000.0}),
    Replica("lmsys/EAGLE3-gpt-oss-120b-bf16", "config",
            f"{HUB}/lmsys/EAGLE3-gpt-oss-120b-bf16/commit/173026f3a86426572f4f50b6e429107bd1402696",
            llama(attention_bias=False, attention_dropout=0.0, bos_token_id=1, eos_token_id=200002, head_dim=128,
                  mlp_bias=False, pad_token_id=199999, pretraining_tp=1, rope_scaling=None, rope_theta=150000,
                  vocab_size=201088, eagle_config={IDS: [1, 17, 33]}),
            36, expects={"taps": [1, 17, 33], "theta": 150000.0}),
    Replica("lmsys/Qwen3-235B-A22B-EAGLE3", "code", f"{SPECFORGE}/qwen3-235B-A22B-eagle3.json",
            qwen(max_window_layers=..., **nested([1, 46, 90])), 94, expects={"taps": [1, 46, 90], "theta": 1e6}),
    Replica("lmsys/SGLang-EAGLE3-Llama-3.1-8B-Instruct-SpecForge", "code", f"{SPECFORGE}/llama3-8B-eagle3.json",
            llama(bos_token_id=128000, eos_token_id=128001, pad_token_id=0),
            32, embed=True, expects={"taps": [1, 15, 28], "theta": 10000.0}),
    Replica("lmsys/SGLang-EAGLE3-Llama-3.3-70B-Instruct-SpecForge", "code", f"{SPECFORGE}/llama3-70B-ealge3.json",
            llama(eos_token_id=[128001, 128008, 128009], head_dim=128, rope_scaling=LLAMA3, rope_theta=500000.0),
            80, embed=True, expects={"taps": [1, 39, 76], "theta": 500000.0, "rope": "llama3"}),
    Replica("lmsys/SGLang-EAGLE3-Llama-4-Scout-17B-16E-Instruct-SpecForge", "code",
            f"{SPECFORGE}/llama4-scout-17B-16E-eagle3.json", llama(vocab_size=202048, pad_token_id=0),
            48, expects={"taps": [1, 23, 44], "theta": 10000.0}),
    Replica("lmsys/SGLang-EAGLE3-Qwen3-Coder-30B-A3B-Instruct-SpecForge", "code",
            f"{SPECFORGE}/qwen3-coder-30B-A3B-instruct-eagle3.json", qwen(max_position_embeddings=2048),
            48, expects={"taps": [1, 23, 44], "theta": 1e6}),
    Replica("lmsys/SGLang-EAGLE3-Qwen3-Coder-480B-A35B-Instruct-SpecForge-EigenAI", "code",
            f"{SPECFORGE}/qwen3-coder-480B-A35B-instruct-eagle3.json", qwen(num_attention_heads=96),
            62, expects={"taps": [1, 30, 58], "theta": 1e6}),
    Replica("lmsys/SGLang-EAGLE3-Qwen3-Next-80B-A3B-Instruct-FP8-SpecForge", "code",
            f"{SPECFORGE}/qwen3-next-80b-a3b-eagle3.json",
            qwen(decoder_sparse_step=1, head_dim=256, rope_theta=10000000, max_window_layers=...),
            48, expects={"taps": [1, 23, 44], "theta": 1e7}),
    Replica("JinnP/SGLang-EAGLE3-Qwen3-Coder-30B-A3B-Instruct", "card",
            f"{HUB}/JinnP/SGLang-EAGLE3-Qwen3-Coder-30B-A3B-Instruct", qwen(max_position_embeddings=2048),
            48, expects={"taps": [1, 23, 44], "theta": 1e6}),
    Replica("baseten/q-r-e", "config", f"{HUB}/baseten/q-r-e/commit/bc616e3c94b7be2d75bf9ab7b250ac552fe34c08",
            qwen(max_window_layers=28, mlp_bias=False, pretraining_tp=1, rope_scaling=MROPE, sliding_window=32768,
                 target_model_type="qwen2_5_vl", num_attention_heads=28, num_key_value_heads=4),
            28, expects={"taps": [1, 13, 24], "theta": 1e6}),
    Replica("Dogacel/specdrift-gpt-oss-120b-eagle3", "card", f"{HUB}/Dogacel/specdrift-gpt-oss-120b-eagle3",
            llama(norm_before_fc=True, norm_output=True, vocab_size=201088, rope_theta=150000, head_dim=64),
            36, expects={"taps": [1, 17, 32], "theta": 150000.0, "flags": ["norm_before_fc", "norm_output"]}),
)  # fmt: skip

OF_ANGELSLIM = tuple(
    Replica(f"AngelSlim/{name}_eagle3", "code", f"{ANGELSLIM}/angelslim/compressor/speculative/train/configs/{file}",
            angelslim(**keys), layers, embed=embed, expects={"taps": taps, "theta": 1e6})
    for name, file, layers, taps, embed, keys in (
        ("Qwen3-1.7B", "qwen3-1.7b-eagle3.json", 28, [1, 13, 24], True, {"tie_word_embeddings": True}),
        ("Qwen3-4B", "qwen3-4b-eagle3.json", 36, [1, 17, 32], True, {"tie_word_embeddings": True}),
        ("Qwen3-8B", "qwen3-8b-eagle3.json", 36, [1, 17, 32], True, {}),
        ("Qwen3-14B", "qwen3-14b-eagle3.json", 40, [1, 19, 36], True, {"num_attention_heads": 40}),
        ("Qwen3-32B", "qwen3-32b-eagle3.json", 64, [1, 31, 60], True, {"num_attention_heads": 64}),
        ("Qwen3-a3B", "qwen3-30b-a3b-eagle3.json", 48, [1, 23, 44], True,
         {"output_router_logits": False, "router_aux_loss_coef": 0.001, "decoder_sparse_step": 1}),
    )
)  # fmt: skip

V3 = "https://github.com/sgl-project/sglang/pull/32334"
OF_NVIDIA = (
    Replica("nvidia/gpt-oss-120b-Eagle3-v3", "card", V3,
            modelopt([24, 30, 36], vocab_size=201088, draft_vocab_size=201088, eagle_config={"norm_before_fc": True}),
            36, "layers.0", t2d=False, expects={"taps": [23, 29, 35], "theta": 500000.0, "flags": ["norm_before_fc"]}),
    Replica("nvidia/gpt-oss-120b-Eagle3-long-context", "card", V3, modelopt([1, 17, 32], vocab_size=201088),
            36, "layers.0", t2d=False, expects={"taps": [1, 17, 32], "theta": 500000.0}),
    Replica("nvidia/gpt-oss-120b-Eagle3-short-context", "card", V3,
            modelopt([], eagle_config={"use_aux_hidden_state": False}), 36, "layers.0",
            refused="`use_aux_hidden_state` is false"),
    Replica("nvidia/Llama-4-Maverick-17B-128E-Eagle3", "card", f"{HUB}/nm-testing/Llama4-Maverick-Eagle3-Speculators",
            modelopt([1, 23, 44], vocab_size=202048, draft_vocab_size=202048), 48, "layers.0",
            expects={"taps": [1, 23, 44], "theta": 500000.0}),
    Replica("nvidia/Kimi-K2.6-Eagle3", "code", f"{MODELOPT}/modelopt/torch/export/plugins/hf_spec_configs.py",
            modelopt([], vocab_size=163840, draft_vocab_size=163840), 61, "layers.0", head=False,
            expects={"taps": [1, 29, 57], "theta": 500000.0}),
    Replica("nvidia/Qwen3-235B-A22B-Eagle3", "code", f"{MODELOPT}/modelopt/torch/export/plugins/hf_spec_export.py",
            modelopt([], vocab_size=151936, rope_theta=1000000.0), 94, "layers.0", t2d=False,
            expects={"taps": [1, 46, 90], "theta": 1e6}),
)  # fmt: skip

RED_HAT_LAYER = qwen(
    max_window_layers=..., sliding_window=..., use_sliding_window=..., mlp_bias=False, pretraining_tp=1
)
OF_RED_HAT = (
    Replica("RedHatAI/Llama-3.1-8B-Instruct-speculator.eagle3", "config",
            f"{HUB}/RedHatAI/Llama-3.1-8B-Instruct-speculator.eagle3/commit/5b6cee4e4955edb3c90f2a39d1d804fbee5ce0ae",
            speculators("/proving-grounds/meta-llama/Llama-3.1-8B-Instruct", llama(rope_theta=500000.0, head_dim=128),
                        auto_map={"": "eagle3.Eagle3SpeculatorConfig"}, norm_before_residual=True),
            32, "layers.0", embed=True,
            expects={"taps": [1, 15, 28], "theta": 500000.0, "flags": ["norm_before_residual"], "made_for": None}),
    Replica("inference-optimization/Mistral3_speculator_dummy", "config",
            f"{HUB}/inference-optimization/Mistral3_speculator_dummy/blob/main/config.json",
            speculators("mistralai/Mistral-Large-3-675B-Instruct-2512-NVFP4", llama(rope_theta=10000.0, head_dim=192),
                        architectures=["Eagle3DraftModel"], auto_map={"": "config.Eagle3SpeculatorConfig"},
                        base_model_ep_plan=None, dtype="float32", embed_requires_grad=False, norm_before_fc=False,
                        norm_before_residual=True, **{IDS: None}),
            61, "layers.0", embed=True,
            expects={"taps": [1, 29, 57], "theta": 10000.0, "flags": ["norm_before_residual"],
                     "made_for": "mistralai/Mistral-Large-3-675B-Instruct-2512-NVFP4"}),
    *(Replica(f"RedHatAI/{target}-speculator.eagle3", "code", f"{SPECULATORS}/src/speculators/models/eagle3/config.py",
              speculators(f"Qwen/{target}", RED_HAT_LAYER, norm_before_residual=True, **keys), layers, "layers.0",
              embed=True,
              expects={"theta": 1e6, "flags": ["norm_before_residual"], "made_for": f"Qwen/{target}"} | out)
      for target, layers, keys, out in (
          ("Qwen3-8B", 36, {}, {"taps": [1, 17, 32]}),
          ("Qwen3-14B", 40, {IDS: None}, {"taps": [1, 19, 36]}),
          ("Qwen3-32B", 64, {IDS: [2, 32, 61]}, {"taps": [1, 31, 60]}))),
    Replica("RedHatAI/Qwen3-8B-speculator.peagle", "code", f"{SPECULATORS}/src/speculators/models/peagle/config.py",
            speculators("Qwen/Qwen3-8B", RED_HAT_LAYER, "peagle", mask_token_id=151643), 36, "layers.0",
            further=("mask_hidden",), refused=r"speculators `peagle` checkpoint, a parallel drafter \(P-EAGLE\)"),
    Replica("RedHatAI/Qwen3-8B-speculator.dflash", "code", f"{SPECULATORS}/src/speculators/models/dflash/config.py",
            speculators("Qwen/Qwen3-8B", RED_HAT_LAYER, "dflash", block_size=8, aux_hidden_state_layer_ids=[1, 9]), 36,
            "other", further=BLOCK_TENSORS, refused="speculators `dflash` checkpoint, a block drafter"),
)  # fmt: skip

OF_OTHERS = (
    *(Replica(f"deepseek-ai/eagle3_{name}_ttt7", "code", f"{DEEPSPEC}/deepspec/modeling/eagle3/qwen3/config.py",
              deepspec(ids), layers, "layers.0 qk", embed=True,
              expects={"taps": ids, "theta": 1e6, "flags": ["use_qk_norm"], "made_for": "Qwen/Qwen3-8B"})
      for name, layers, ids in (("qwen3_4b", 36, [1, 9, 17, 25, 33]), ("qwen3_8b", 36, [1, 9, 17, 25, 33]),
                                ("qwen3_14b", 40, [1, 10, 19, 28, 37]))),
    Replica("deepseek-ai/eagle3_gemma4_12b_ttt7", "code", f"{DEEPSPEC}/deepspec/modeling/eagle3/gemma4/config.py",
            deepspec([5, 17, 29, 41, 46], architectures=["Gemma4Eagle3Model"], model_type="gemma4_text"), 48,
            "layers.0 qk", further=("layers.0.pre_feedforward_layernorm.weight",),
            refused="is an EAGLE-3 draft with Gemma 4's layer"),
    Replica("deepseek-ai/dflash_qwen3_8b_block7", "code", f"{DEEPSPEC}/config/dflash/dflash_qwen3_8b.py",
            block(block_size=7), 36, "other", further=BLOCK_TENSORS, refused="is a block drafter"),
    Replica("lightseekorg/kimi-k2.5-eagle3", "code", f"{TORCHSPEC}/configs/draft_models/kimi_k25_eagle3.json",
            qwen(rope_scaling=YARN, rope_theta=50000.0, vocab_size=163840, draft_vocab_size=163840,
                 num_key_value_heads=32), 61, "layers.0", embed=True,
            expects={"taps": [1, 29, 57], "theta": 50000.0, "rope": "yarn"}),
    Replica("lightseekorg/kimi-k2.6-eagle3-mla", "code", f"{TORCHSPEC}/configs/draft_models/kimi_k25_eagle3_mla.json",
            mla(rope_scaling=YARN, **nested([1, 29, 57], use_last_layernorm=True)), 61, "other", further=MLA_TENSORS,
            refused=r"is an EAGLE-3 draft with latent attention \(MLA\)"),
    Replica("k-l-lambda/Kimi-K2.5-Eagle3", "config", f"{HUB}/k-l-lambda/Kimi-K2.5-Eagle3/blob/main/config.json",
            mla(rope_scaling=YARN, first_k_dense_replace=1, moe_layer_freq=1, **nested([2, 30, 58])), 61, "other",
            further=MLA_TENSORS, refused=r"is an EAGLE-3 draft with latent attention \(MLA\)"),
    *(Replica(f"amazon/{name}", "card", f"{HUB}/amazon/{name}", p_eagle(), layers, "layers.0",
              further=("mask_hidden",), refused=r"is a parallel drafter \(P-EAGLE\)")
      for name, layers in (("GPT-OSS-20B-P-EAGLE", 24), ("gpt-oss-20b-p-eagle-long-context", 24),
                           ("gpt-oss-120b-p-eagle", 36))),
    Replica("khazic/peagle-qwen3-8b", "code", f"{AUTOMODEL}/nemo_automodel/recipes/llm/train_eagle3.py",
            qwen(architectures=["LlamaEagle3DraftModel"], parallel_drafting=True, num_depths=8, mask_token_id=151643,
                 down_sample_ratio=0.8, attn_implementation="eager"), 36, "model.layers.0",
            further=("model.mask_hidden",), refused=r"is a parallel drafter \(P-EAGLE\)"),
    *(Replica(name, "code", source, block(**keys), 36, "other", further=BLOCK_TENSORS, refused="is a block drafter")
      for name, source, keys in (
          ("z-lab/Qwen3-8B-DFlash-b16", "https://github.com/z-lab/dflash/blob/main/dflash/model.py", {}),
          ("z-lab/Qwen3.5-4B-DFlash", "https://github.com/z-lab/dflash/blob/main/dflash/model.py", {}),
          ("JetSpec/jetspec-qwen3-8b", "https://github.com/hao-ai-lab/JetSpec/blob/main/jetspec/models/draft_head.py",
           {"dflash_config": {"mask_token_id": 151669, "causal_head": True}}))),
    *(Replica(name, "config", f"{HUB}/{name}/blob/main/config.json", eagle1(**keys), 32, "other",
              further=EAGLE1_TENSORS, refused="is an EAGLE-1/2 draft")
      for name, keys in (
          ("yuhuili/EAGLE-llama2-chat-7B", {"pretraining_tp": 1, "rope_scaling": None}),
          ("yuhuili/EAGLE-llama2-chat-13B", {"pretraining_tp": 1, "hidden_size": 5120}),
          ("yuhuili/EAGLE-Vicuna-7B-v1.3", {"pad_token_id": 0, "num_key_value_heads": ...}),
          ("yuhuili/EAGLE-Vicuna-13B-v1.3", {"pad_token_id": 0, "num_key_value_heads": ...}))),
    Replica("danielhanchen/EAGLE-llama2-chat-7B", "config",
            f"{HUB}/danielhanchen/EAGLE-llama2-chat-7B/blob/main/config.json",
            {"model_type": "eagle", "model": eagle1()}, 32, "other", further=EAGLE1_TENSORS,
            refused="is an EAGLE-1/2 draft"),
    *(Replica(name, "config", f"{HUB}/{name}/blob/main/config.json", config, 32, "other", further=MEDUSA_TENSORS,
              refused="is a set of Medusa heads")
      for name, config in (
          ("FasterDecoding/medusa-vicuna-7b-v1.3", medusa("lmsys/vicuna-7b-v1.3", 2, 1, model_type="llama")),
          ("FasterDecoding/medusa-vicuna-13b-v1.3", medusa("lmsys/vicuna-13b-v1.3", 2, 1)),
          ("Narsil/mistral-medusa2", medusa("mistralai/Mistral-7B-Instruct-v0.2", 3, 1)),
          ("Narsil/mistral-medusa", medusa("mistralai/Mistral-7B-Instruct-v0.2", 2, 0)),
          ("28Smiles/Mistral-7B-Instruct-v0.2-GPTQ-medusa", medusa("TheBloke/Mistral-7B-Instruct-v0.2-GPTQ", 3, 1)))),
)  # fmt: skip

REPLICAS = (*OF_SAFEAILAB, *OF_SPECFORGE, *OF_ANGELSLIM, *OF_NVIDIA, *OF_RED_HAT, *OF_OTHERS)
