"""What `generate` returns and streams to, and the interface of transformers' own assisted decoding."""

import torch
from transformers.utils import ModelOutput

from .calls import CACHE
from .points import is_missing, uses


GENERATION = "transformers.generation"
_DecoderOnlyOutput = uses(GENERATION, "GenerateDecoderOnlyOutput", "what `generate` returns")
# Any base class works if the name is missing: drafts are then refused, and outputs are plain `generate`'s own.
DecoderOnlyOutput = ModelOutput if is_missing(_DecoderOnlyOutput) else _DecoderOnlyOutput
BaseStreamer = uses("transformers.generation.streamers", "BaseStreamer", "streamers")
CandidateGenerator = uses(
    "transformers.generation.candidate_generator", "CandidateGenerator", "the tree mode 'host_chain'"
)
GenerationMode = uses("transformers.generation.configuration_utils", "GenerationMode", "refusing other decodings")
for _name in ("sequences", "scores", "logits", "attentions", "hidden_states", CACHE):
    uses(
        "transformers.generation.GenerateDecoderOnlyOutput",
        _name,
        "what `generate` returns",
        holder=lambda: _DecoderOnlyOutput(torch.zeros(1, 1)),
        is_word=True,
    )


def is_assisted(mode) -> bool:
    """Whether a generation mode is assisted generation."""
    return mode == GenerationMode.ASSISTED_GENERATION


def cache_field(cache) -> dict:
    """The cache under its field name in outputs."""
    return {CACHE: cache}
