"""`BlockDraftModel`: a few layers that predict a whole block of tokens in one pass.

    features of "the cat" (keys and values only)  +  block: sat <mask> <mask>   -->   on, a

Does not know trees, caches or training: the attention function is an argument. Does not know the target: embedding
rows and features are arguments, and the target's head turns outputs into logits.

Shape letters: B batch, P past positions, K positions of the block, H hidden, F width of the tapped features.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from ... import checkpoint
from ...compat.models import rotary_embedding
from ...draft_layers import Attend, Eagle3DecoderLayer, RMSNorm, Rotary
from ...draft_model import DraftModel, without_unwanted
from ...generation.ops.grouped_attention import grouped_attention
from ...generation.ops.transfer import additive
from ...tree_config import TreeConfig
from .configuration import BlockDraftConfig


# Names in transformers' own assistant.
OTHER_NAMES = {"encoder.fc.weight": "fc.weight", "encoder.output_norm_enc.weight": "hidden_norm.weight"}
MASK_EMBEDDING = "mask_embedding.pt"  # vLLM replaces the mask's embedding row by it


class BlockDraftModel(DraftModel):
    """
    A block drafter: DFlash's bidirectional block or JetSpec's causal one. `from_pretrained` reads the layouts of
    z-lab, JetSpec, SpecForge and DeepSpec (DFlash drafts), and of transformers' `MuseGlimmerAssistantModel`.

    Use it as `target.generate(**inputs, assistant_model=draft)`. It has no `generate` of its own.

    Args:
        config: A [`BlockDraftConfig`]; `BlockDraftConfig.from_target(target)` makes one for a target.

    Source: DFlash (arXiv 2602.06036), JetSpec (arXiv 2606.18394).
    """

    config_class = BlockDraftConfig
    main_input_name = "inputs_embeds"
    _no_split_modules = ["Eagle3DecoderLayer"]

    def __init__(self, config: BlockDraftConfig):
        super().__init__(config)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.fc = nn.Linear(config.fused_features_size, size, bias=False)
        self.hidden_norm = RMSNorm(size, eps=eps)
        self.layers = nn.ModuleList(
            Eagle3DecoderLayer(config, i, reads_pairs=False) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(size, eps=eps)
        self.embed_tokens = nn.Embedding(config.vocab_size, size) if config.has_embed_tokens else None
        self.lm_head = nn.Linear(size, config.vocab_size, bias=False) if config.has_lm_head else None
        self.rotary_emb = rotary_embedding(config)
        self.post_init()

    @staticmethod
    def _default_tree(config: BlockDraftConfig) -> TreeConfig:
        return TreeConfig(tree_depth=config.num_predictions)

    def get_input_embeddings(self) -> nn.Module | None:
        """The draft's own embedding; `None` where the target's rows are used."""
        return self.embed_tokens

    def fuse(self, target_features: torch.Tensor) -> torch.Tensor:
        """What every layer makes keys and values of, (B, P, H), from the tapped layers' outputs (B, P, F)."""
        return self.hidden_norm(self.fc(target_features))

    def keys_and_values(
        self, target_features: torch.Tensor, rotary: Rotary
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per layer those of past positions, (B, kv heads, P, d) each; no query is ever made there."""
        fused = self.fuse(target_features)
        return [layer.self_attn.keys_and_values(fused, rotary) for layer in self.layers]

    def decode(self, embeds: torch.Tensor, rotary: Rotary, attend: Attend) -> torch.Tensor:
        """Normed states of a block (B, K, H), for the head, from its embedding rows (B, K, H)."""
        hidden = embeds
        for layer in self.layers:
            hidden = layer(None, hidden, rotary, attend)
        return self.norm(hidden)

    def predictions(self, states: torch.Tensor) -> torch.Tensor:
        """Of the states of blocks (..., K, H) those that predict a token behind the anchor, level by level."""
        return states if self.config.is_shifted else states[..., 1:, :]

    def forward(
        self,
        inputs_embeds: torch.Tensor | None = None,
        target_features: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        procedure: Callable | None = None,
        **procedure_inputs,
    ) -> torch.Tensor:
        """
        One pass over one block, without a cache.

        Args:
            inputs_embeds: Embedding rows of [anchor, mask, mask, ...], (B, K, H).
            target_features: Concatenated outputs of the tapped layers at all positions before the anchor, (B, P, F).
            position_ids: RoPE positions, (1, P + K). Default: 0..P+K-1.
            procedure: If given, return `procedure(self, **procedure_inputs)` instead, so that wrappers of a forward
                (DDP, FSDP, autocast) see one forward of a training step.

        Returns:
            Normed states of the block, (B, K, H), inputs of the target's head; see [`predictions`].

        Raises:
            ValueError: features of another width.
        """
        if procedure is not None:
            return procedure(self, **procedure_inputs)
        if procedure_inputs:
            raise TypeError(f"Unknown arguments {', '.join(map(repr, procedure_inputs))}.")
        if target_features.shape[-1] != self.config.fused_features_size:
            raise ValueError(
                f"`target_features` is {target_features.shape[-1]} wide; {self.config.num_tapped_layers} layers of "
                f"{self.config.target_hidden_size} make {self.config.fused_features_size}."
            )
        past, length = target_features.shape[1], inputs_embeds.shape[1]
        if position_ids is None:
            position_ids = torch.arange(past + length, device=inputs_embeds.device)[None]
        cos, sin = self.rotary(position_ids, inputs_embeds.dtype)
        known = self.keys_and_values(target_features, (cos[:, :, :past], sin[:, :, :past]))
        index = torch.arange(past + length, device=inputs_embeds.device)

        def attend(query, key, value, layer):
            keys, values = (torch.cat(pair, dim=2) for pair in zip(known[layer], (key, value), strict=True))
            seen = seen_in_block(self.config, layer, index[past:], index)
            return grouped_attention(query, keys, values, additive(seen, query.dtype)[None, None])

        return self.decode(inputs_embeds, (cos[:, :, past:], sin[:, :, past:]), attend)

    @classmethod
    def from_assistant(cls, assistant: PreTrainedModel) -> "BlockDraftModel":
        """A draft that shares the weights of transformers' own DFlash assistant, `MuseGlimmerAssistantModel`."""
        config = BlockDraftConfig.from_dict(assistant.config.to_dict())
        with torch.device("meta"):
            draft = cls(config)
        weights = {
            OTHER_NAMES.get(name, name): tensor for name, tensor in assistant.state_dict(keep_vars=True).items()
        }
        draft.load_state_dict(weights, assign=True)
        draft.rotary_emb = rotary_embedding(config).to(assistant.device)  # its buffers are in no state dict
        return draft.eval()

    @staticmethod
    def native_name(name: str) -> str:
        """As in [`DraftModel`]."""
        return OTHER_NAMES.get(name, name)

    @staticmethod
    def fields_from_names(tensors: dict[str, torch.Tensor], config: BlockDraftConfig) -> dict:
        """As in [`DraftModel`]."""
        stored = {"has_embed_tokens": "embed_tokens.weight", "has_lm_head": "lm_head.weight"}
        return {field: name in tensors for field, name in stored.items()}

    @classmethod
    def _read(
        cls, source: str, config: BlockDraftConfig, overrides: dict, hub: dict
    ) -> tuple[BlockDraftConfig, dict[str, torch.Tensor]]:
        if checkpoint.has_file(source, MASK_EMBEDDING, **hub):
            raise ValueError(f"{source} has `{MASK_EMBEDDING}`, a mask embedding of its own, which is not supported.")
        tensors = checkpoint.load_tensors(source, rename=cls.native_name, **hub)
        tensors = without_unwanted(tensors, overrides)
        return config.changed(cls.fields_from_names(tensors, config) | overrides), tensors


def seen_in_block(config: BlockDraftConfig, layer: int, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Which keys queries of a block see in `layer`, (..., K, S), by positions (..., K) and (..., S)."""
    queries, keys = queries[..., :, None], keys[..., None, :]
    later, window = config.sees_later(layer), config.window(layer)
    seen = torch.ones_like(keys <= queries) if later else keys <= queries
    return seen if window is None else seen & (keys > queries - window)
