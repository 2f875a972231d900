"""Tiny seeded targets and drafts. Weights are scaled up so that masks and positions matter: with the default
initialisation the next token depends on the current one only, and a test passes with a wrong mask."""

import inspect

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GenerationMixin,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3NextConfig,
)

import hf_eagle3
from hf_eagle3.vocabulary import mapping_from_target_ids


# What `generate` calls a cache, as an argument and in its output: since transformers 5.24 `cache`.
CACHE = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else "past_key_values"
)
VOCAB = 24
WINDOW = 8
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


def _config(name: str) -> PreTrainedConfig:
    if name == "llama":
        return LlamaConfig(**SIZES)
    if name == "qwen3":
        return Qwen3Config(**SIZES)
    if name == "gemma3":
        kinds = ["sliding_attention", "full_attention"] * 2
        return Gemma3TextConfig(**SIZES, sliding_window=WINDOW, layer_types=kinds, query_pre_attn_scalar=8)
    if name == "mistral":
        return MistralConfig(**SIZES, sliding_window=WINDOW)
    if name == "mixtral":
        return MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    if name == "gpt2":
        return GPT2Config(
            vocab_size=VOCAB,
            n_embd=32,
            n_layer=4,
            n_head=4,
            n_positions=96,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    if name == "qwen3_next":
        return Qwen3NextConfig(
            **SIZES,
            layer_types=["linear_attention", "full_attention"] * 2,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
        )
    raise ValueError(name)


TREE_TARGETS = ("llama", "qwen3", "gemma3", "mistral", "gpt2", "mixtral")
CHAIN_TARGETS = ("qwen3_next",)


def tiny_target(name: str = "llama", seed: int = 0, scale: float = 6.0, **changes) -> PreTrainedModel:
    config = _config(name)
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


@torch.no_grad()
def common_tokens(target: PreTrainedModel, count: int) -> torch.Tensor:
    """The tokens that `target` writes most, ascending."""
    texts = [
        target.generate(**left_padded([9, 5, 12, 7]), max_new_tokens=60, do_sample=do_sample)[:, 12:]
        for do_sample in (False, True)
    ]
    return torch.cat(texts).flatten().bincount(minlength=VOCAB).topk(count).indices.sort().values


def tiny_draft(target: PreTrainedModel, seed: int = 1, draft_vocab_size: int = 6, tokens=None, **changes):
    """A random draft over `tokens`, the target's commonest ones: accepted often enough to exercise every path."""
    torch.manual_seed(seed)
    fields = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
    config = hf_eagle3.Eagle3Config.from_target(target, draft_vocab_size=draft_vocab_size, **fields | changes)
    draft = hf_eagle3.Eagle3DraftModel(config).eval()
    if draft_vocab_size < VOCAB:
        offsets, mask = mapping_from_target_ids(
            common_tokens(target, draft_vocab_size) if tokens is None else tokens, VOCAB
        )
        draft.d2t.copy_(offsets)
        draft.t2d.copy_(mask)
    return draft.with_tree("static", num_draft_tokens=40, tree_depth=4, tree_top_k=6)


def tiny_heads(kind, target: PreTrainedModel, **fields):
    """Random Medusa or Hydra heads near the target's own head: accepted now and then."""
    torch.manual_seed(3)
    draft = kind(kind.config_class.from_target(target, **fields)).eval()
    draft.start_from(target.get_output_embeddings().weight)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return draft


def tiny_eagle(target: PreTrainedModel, seed: int = 1, **changes):
    """A random EAGLE draft whose weights are scaled up, so that positions and masks matter."""
    torch.manual_seed(seed)
    fields = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
    draft = hf_eagle3.EagleDraftModel(hf_eagle3.EagleDraftConfig.from_target(target, **fields | changes)).eval()
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.mul_(6) if parameter.dim() > 1 else None
    return draft


def left_padded(lengths: list[int], seed: int = 0, vocab_size: int = VOCAB) -> dict[str, torch.Tensor]:
    """Random prompts of `lengths` tokens, padded on the left with 0."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(3, vocab_size, (len(lengths), width), generator=generator)
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}
