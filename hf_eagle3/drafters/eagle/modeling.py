"""`EagleDraftModel`: one decoder layer over [embedding ; feature], whose output is the target's next feature.

    features of "the cat" (inputs of the target's head)  +  tokens "cat sat"  -->  feature of "sat"  -->  on

What drafts, trains and caches an [`Eagle3DraftModel`] serves it, too: only fusion and layers differ.

Shape letters: B batch, L sequence, H hidden.

Source: EAGLE (arXiv 2401.15077), section 4.1; layers as in the original repository's `cnets1.py`.
"""

import torch
from torch import nn

from ... import checkpoint
from ...compat.models import rotary_embedding
from ...draft_layers import Attend, Eagle3DecoderLayer, Rotary
from ...draft_model import DraftModel, without_unwanted
from ...modeling_eagle3 import Eagle3DraftModel
from .configuration import EagleDraftConfig


class EagleDraftModel(Eagle3DraftModel):
    """
    A draft that predicts features: EAGLE's with `with_tree("sparse", sparse_tree="eagle")`, EAGLE-2's with its default
    tree, HASS's by its training. `from_pretrained` reads the layout of SafeAILab's EAGLE-1/2 and HASS's checkpoints.

    Args:
        config: An [`EagleDraftConfig`]; `EagleDraftConfig.from_target(target)` makes one for a target.
    """

    config_class = EagleDraftConfig

    def __init__(self, config: EagleDraftConfig):
        DraftModel.__init__(self, config)
        size = config.hidden_size
        self.fc = nn.Linear(size + config.target_hidden_size, size, bias=config.fc_bias)
        self.layers = nn.ModuleDict(
            {str(i): Eagle3DecoderLayer(config, i, reads_pairs=False) for i in range(config.num_hidden_layers)}
        )
        self.layers["0"].input_layernorm = nn.Identity()  # what it reads comes from `fc`
        self.input_norm = self.fc_norm = None
        self.lm_head = nn.Linear(size, config.draft_vocab_size, bias=False) if config.has_lm_head else None
        self.embed_tokens = nn.Embedding(config.vocab_size, size) if config.has_embed_tokens else None
        self.rotary_emb = rotary_embedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def midlayer(self) -> nn.Module:
        """The first layer, by the name that EAGLE-3's code has for it."""
        return self.layers["0"]

    def fuse(self, target_features: torch.Tensor) -> torch.Tensor:
        """The features themselves (B, L, H): inputs of the target's head, as the draft's own states are."""
        return target_features

    def decode(
        self,
        embeds: torch.Tensor,
        hidden: torch.Tensor,
        rotary: Rotary,
        attend: Attend,
        places: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As in [`Eagle3DraftModel`]: predicted features, both to feed back and for the head, (B, L, H)."""
        hidden = self.fc(torch.cat((embeds, hidden), dim=-1))
        *others, last = self.layers.values()
        for layer in others:
            hidden = layer(None, hidden, rotary, attend)
        hidden = last(None, hidden, rotary, attend, places)
        return hidden, hidden

    @classmethod
    def _read_config(cls, source: str, overrides: dict, hub: dict) -> EagleDraftConfig:
        return DraftModel._read_config.__func__(cls, source, overrides, hub)

    @classmethod
    def _read(cls, source: str, config: EagleDraftConfig, overrides: dict, hub: dict) -> tuple[EagleDraftConfig, dict]:
        tensors = checkpoint.load_tensors(source, rename=lambda name: name.removeprefix("model."), **hub)
        tensors = without_unwanted(tensors, overrides)
        stored = {"has_embed_tokens": "embed_tokens.weight", "has_lm_head": "lm_head.weight", "fc_bias": "fc.bias"}
        return config.changed({field: name in tensors for field, name in stored.items()} | overrides), tensors
