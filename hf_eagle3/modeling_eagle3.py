"""`Eagle3DraftModel`: feature fusion, one decoder layer, draft head.

Does not know trees, caches or training: the attention function is an argument (`attend`), so that drafting, training
and a causal pass share the same layers. Does not know the target: embedding rows and features are arguments.

Shape letters: B batch, L sequence, H hidden, V target vocabulary, D draft vocabulary, F width of the tapped features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput

from . import checkpoint, vocabulary
from .compat.models import rotary_embedding
from .configuration_eagle3 import Eagle3Config
from .dialects import may_be_eagle1, refuse_foreign
from .draft_layers import Attend, Eagle3DecoderLayer, RMSNorm, Rotary, causal_attend
from .draft_model import DraftModel, without_unwanted


@dataclass
class Eagle3DraftOutput(ModelOutput):
    """
    Output of [`Eagle3DraftModel`].

    Args:
        logits (`torch.FloatTensor` of shape `(B, L, D)`): Logits over the draft vocabulary. Index i predicts x_{i+2}.
        draft_hidden_states (`torch.FloatTensor` of shape `(B, L, H)`): The draft's own states a, fed back in place of
            features that the target has not computed yet.
    """

    logits: torch.FloatTensor | None = None
    draft_hidden_states: torch.FloatTensor | None = None


class Eagle3DraftModel(DraftModel):
    """
    The EAGLE-3 draft model: proposes tokens for a target model from its tapped hidden states (usually three layers).

    Use it as `target.generate(**inputs, assistant_model=draft)`. It has no `generate` of its own. `from_pretrained`
    reads the dialects of SafeAILab, SpecForge/SGLang, ModelOpt, speculators, DeepSpec and EAGLE-3.1.

    Args:
        config: An [`Eagle3Config`]; `Eagle3Config.from_target(target)` makes one for a target.

    Source: EAGLE-3 (arXiv 2503.01840), section 3; residual and feedback as in the original repository's `cnets.py`,
    which does not have the 2H -> H projection of the paper's figure.
    """

    config_class = Eagle3Config
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True  # training recomputes the steps of a batch
    _no_split_modules = ["Eagle3DecoderLayer"]

    def __init__(self, config: Eagle3Config):
        super().__init__(config)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.fc = nn.Linear(config.fused_features_size, size, bias=False)
        self.input_norm = RMSNorm(config.fused_features_size, eps=eps) if config.norm_before_fc else None
        self.fc_norm = (
            nn.ModuleList(RMSNorm(config.target_hidden_size, eps=eps) for _ in range(config.num_tapped_layers))
            if config.fc_norm
            else None
        )
        # Named as in the original checkpoints: `midlayer` is layer 0, so further ones start at "1".
        self.midlayer = Eagle3DecoderLayer(config, 0)
        self.layers = nn.ModuleDict(
            {str(i): Eagle3DecoderLayer(config, i) for i in range(1, config.num_hidden_layers)}
        )
        self.norm = RMSNorm(size, eps=eps)
        self.lm_head = nn.Linear(size, config.draft_vocab_size, bias=False) if config.has_lm_head else None
        self.embed_tokens = nn.Embedding(config.vocab_size, size) if config.has_embed_tokens else None
        self.rotary_emb = rotary_embedding(config)
        if config.has_vocabulary_mapping:
            # Default until a vocabulary is chosen: the first D target ids.
            self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.long))
            self.register_buffer("t2d", torch.arange(config.vocab_size) < config.draft_vocab_size)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module | None:
        """The draft's own embedding; `None` where the target's rows are used."""
        return self.embed_tokens

    @property
    def target_token_ids(self) -> torch.Tensor | None:
        """Target id of every draft id, (D,) int64; `None` where the draft predicts the whole vocabulary."""
        return vocabulary.target_ids(self.d2t) if self.config.has_vocabulary_mapping else None

    def fuse(self, target_features: torch.Tensor) -> torch.Tensor:
        """Fused features g (B, L, H) from the concatenated outputs of the tapped layers (B, L, F)."""
        if self.input_norm is not None:
            target_features = self.input_norm(target_features)
        if self.fc_norm is not None:
            # One norm per tapped layer, each over that layer's H_target features.
            parts = target_features.split(self.config.target_hidden_size, dim=-1)
            target_features = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        return self.fc(target_features)

    def decode(
        self,
        embeds: torch.Tensor,
        hidden: torch.Tensor,
        rotary: Rotary,
        attend: Attend,
        places: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        (states to feed back, normed states for the head), both (B, L, H), from embedding rows and h, both (B, L, H).

        With `places` (B, n), only the states there, (B, n, H): for the others the last layer computes keys and values
        only, and `attend` gets n queries. `rotary` must then have batch size B.
        """
        # Only the last layer may skip queries: the layers before it feed its keys at all L positions.
        *others, last = (self.midlayer, *self.layers.values())
        for layer in others:
            hidden = layer(embeds, hidden, rotary, attend)
        hidden = last(embeds, hidden, rotary, attend, places)
        normed = self.norm(hidden)
        # The head always reads normed states; what is fed back depends on the checkpoint's training.
        return (normed if self.config.norm_output else hidden), normed

    def forward(
        self,
        inputs_embeds: torch.Tensor | None = None,
        target_features: torch.Tensor | None = None,
        draft_hidden_states: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        attend: Attend | None = None,
        rotary: Rotary | None = None,
        return_dict: bool = True,
        procedure: Callable | None = None,
        **procedure_inputs,
    ) -> Eagle3DraftOutput | tuple[torch.Tensor, torch.Tensor]:
        """
        One pass of the draft. Index i pairs the token x_{i+1} with the feature of position i and predicts x_{i+2}.

        Args:
            inputs_embeds: The target's embedding rows of x_1..x_L, raw, (B, L, H).
            target_features: Concatenated outputs of the tapped layers at positions 0..L-1, (B, L, F).
            draft_hidden_states: Alternative to features: the draft's own states, (B, L, H), which skip `fc`.
            input_ids: Alternative to `inputs_embeds` for drafts with `embed_tokens`: x_1..x_L, (B, L).
            attention_mask: 0 at padding, (B, L). Used by the default attention only.
            position_ids: RoPE positions, (B, L) or (1, L). Default: 0..L-1.
            attend: Attention of the pass. Default: causal.
            rotary: cos and sin from `rotary`, to share them between passes.
            return_dict: Whether to return an [`Eagle3DraftOutput`].
            procedure: If given, return `procedure(self, **procedure_inputs)` instead of running a pass. Training
                unrolls the draft in it, so that wrappers of a forward (DDP, FSDP, autocast) see one forward.

        Raises:
            ValueError: not exactly one of features and hidden states, or of embeddings and ids; or a wrong width.
        """
        if procedure is not None:
            return procedure(self, **procedure_inputs)
        if procedure_inputs:
            raise TypeError(f"Unknown arguments {', '.join(map(repr, procedure_inputs))}.")
        if (target_features is None) == (draft_hidden_states is None):
            raise ValueError("Pass exactly one of `target_features` and `draft_hidden_states`.")
        if (inputs_embeds is None) == (input_ids is None):
            raise ValueError("Pass exactly one of `inputs_embeds` (the target's embedding rows) and `input_ids`.")
        if inputs_embeds is None:
            if self.embed_tokens is None:
                raise ValueError(
                    "This draft has no `embed_tokens` of its own; pass `inputs_embeds`, the target's embedding rows."
                )
            inputs_embeds = self.embed_tokens(input_ids)
        if target_features is not None:
            if target_features.shape[-1] != self.config.fused_features_size:
                raise ValueError(
                    f"`target_features` is {target_features.shape[-1]} wide; {self.config.num_tapped_layers} "
                    f"layers of {self.config.target_hidden_size} make {self.config.fused_features_size}."
                )
            draft_hidden_states = self.fuse(target_features)
        if rotary is None:
            if position_ids is None:
                position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None]
            rotary = self.rotary(position_ids, inputs_embeds.dtype)
        fed_back, normed = self.decode(
            inputs_embeds,
            draft_hidden_states,
            rotary,
            attend if attend is not None else causal_attend(attention_mask, self.config.sliding_window),
        )
        if self.lm_head is None:
            raise ValueError(
                "This draft has no `lm_head` of its own (it uses the target's rows); only `target.generate` can "
                "run it."
            )
        logits = self.lm_head(normed)
        return Eagle3DraftOutput(logits, fed_back) if return_dict else (logits, fed_back)

    @classmethod
    def _read_config(cls, source: str, overrides: dict, hub: dict) -> Eagle3Config:
        raw = checkpoint.load_config(source, **hub)
        if may_be_eagle1(raw) and "draft_vocab_size" not in overrides:
            refuse_foreign(raw, checkpoint.load_tensors(source, **hub), source)
        return Eagle3Config.from_dict(raw, **overrides)

    @classmethod
    def _read(cls, source: str, config: Eagle3Config, overrides: dict, hub: dict) -> tuple[Eagle3Config, dict]:
        tensors = checkpoint.load_tensors(source, **hub)
        refuse_foreign({}, tensors, source)
        tensors = without_unwanted(tensors, overrides)
        config = config.changed(checkpoint.fields_from_names(tensors, config) | overrides)
        mapping = vocabulary.complete_mapping(
            tensors.pop("d2t", None), tensors.pop("t2d", None), config.draft_vocab_size, config.vocab_size, source
        )
        if mapping is not None:
            tensors["d2t"], tensors["t2d"] = mapping
        return config, tensors
