"""Layers of the draft: attention, MLP, decoder layer, and plain causal attention.

The attention function is an argument (`attend`), so that drafting, training and a causal pass share the same layers.
Does not know caches, trees or masks other than the causal one.

Shape letters: B batch, L sequence, H hidden.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .compat.models import activation
from .configuration_eagle3 import Eagle3Config


# attend(query (B, heads, L, d), key (B, kv heads, L, d), value, layer_index) -> (B, heads, L, d), after RoPE.
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
Rotary = tuple[torch.Tensor, torch.Tensor]  # cos, sin: (B or 1, 1, L, d)


def causal_attend(attention_mask: torch.Tensor | None = None, window: int | None = None) -> Attend:
    """
    Causal attention within one pass, without a cache. `attention_mask` (B, L) is 0 at padding; `window` is in tokens.
    """

    def attend(query, key, value, layer_index):
        grouped, length = query.shape[1] != key.shape[1], query.shape[2]
        if attention_mask is None and (window is None or length <= window):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        allowed = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
        if window is not None:
            allowed = allowed.triu(1 - window)  # the window includes the query's own position
        if attention_mask is not None:
            allowed = allowed & attention_mask.bool()[:, None, None, :]
        # Padding attends to itself: a row without any key would be NaN.
        allowed = allowed | torch.eye(length, dtype=torch.bool, device=query.device)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, enable_gqa=grouped)

    return attend


def at_places(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Entries of `states` (B, L, W) at the indices `places` (B, n), as (B, n, W)."""
    return states.gather(1, places[:, :, None].expand(-1, -1, states.shape[2]))


def rotate_half(states: torch.Tensor) -> torch.Tensor:
    """(-second half, first half) of the last axis: RoPE rotates pairs (i, i + d/2), the Llama layout."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class RMSNorm(nn.RMSNorm):
    """RMSNorm in its input's precision, even if autocast keeps the weight in another, so that it stays one kernel."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Normalised states, with the shape and dtype of `states` (..., H)."""
        return F.rms_norm(states, self.normalized_shape, self.weight.to(states.dtype), self.eps)


class Eagle3Attention(nn.Module):
    """Self-attention whose q, k, v projections read `input_size` features: 2H in the first layer."""

    def __init__(self, config: Eagle3Config, input_size: int, layer_index: int):
        super().__init__()
        self.layer_index, self.head_dim = layer_index, config.head_dim
        query_size, key_size = (
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        )
        self.q_proj = nn.Linear(input_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(input_size, key_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(input_size, key_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_bias)
        self.q_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps) if config.use_qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps) if config.use_qk_norm else None

    def forward(
        self, states: torch.Tensor, rotary: Rotary, attend: Attend, places: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Output (B, L, H) for `states` (B, L, input_size); with `places` (B, n), only at these, (B, n, H)."""
        # With `places`, keys and values are still made for all L states, for later passes to attend to.
        query_states = states if places is None else at_places(states, places)
        query = self.q_proj(query_states).unflatten(2, (-1, self.head_dim))
        query = (query if self.q_norm is None else self.q_norm(query)).transpose(1, 2)
        key, value = self.keys_and_values(states, rotary)
        cos, sin = rotary
        if places is not None:  # queries rotate by the angles at their own positions
            cos, sin = (at_places(angles[:, 0], places)[:, None] for angles in (cos, sin))
        query = query * cos + rotate_half(query) * sin
        output = attend(query, key, value, self.layer_index)
        return self.o_proj(output.transpose(1, 2).flatten(2))

    def keys_and_values(self, states: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of `states` (B, L, input_size), RoPE applied, (B, kv heads, L, d) each."""
        key = self.k_proj(states).unflatten(2, (-1, self.head_dim))
        value = self.v_proj(states).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        key = (key if self.k_norm is None else self.k_norm(key)).transpose(1, 2)
        cos, sin = rotary
        return key * cos + rotate_half(key) * sin, value


class Eagle3MLP(nn.Module):
    """Llama's gated MLP."""

    def __init__(self, config: Eagle3Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = activation(config.hidden_act)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(B, L, H) from `states` (B, L, H)."""
        return self.down_proj(self.act_fn(self.gate_proj(states)) * self.up_proj(states))


class Eagle3DecoderLayer(nn.Module):
    """A pre-norm decoder layer; the first reads [embedding ; feature] (2H), unless `reads_pairs` says otherwise."""

    def __init__(self, config: Eagle3Config, layer_index: int, reads_pairs: bool | None = None):
        super().__init__()
        is_first, size, eps = layer_index == 0, config.hidden_size, config.rms_norm_eps
        is_first = is_first if reads_pairs is None else reads_pairs
        self.norm_before_residual = config.norm_before_residual
        self.input_layernorm = RMSNorm(size, eps=eps)
        self.hidden_norm = RMSNorm(size, eps=eps) if is_first else None
        self.self_attn = Eagle3Attention(config, 2 * size if is_first else size, layer_index)
        self.post_attention_layernorm = RMSNorm(size, eps=eps)
        self.mlp = Eagle3MLP(config)

    def forward(
        self,
        embeds: torch.Tensor | None,
        hidden: torch.Tensor,
        rotary: Rotary,
        attend: Attend,
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Output states from h (`hidden`) and, in the first layer, the embedding rows `embeds`, all (B, L, H); with
        `places` (B, n), only the states there, (B, n, H).
        """
        residual = hidden  # the feature only: the embedding enters through attention
        if self.hidden_norm is None:
            states = self.input_layernorm(hidden)
        else:
            normed = self.hidden_norm(hidden)
            residual = normed if self.norm_before_residual else hidden
            states = torch.cat((self.input_layernorm(embeds), normed), dim=-1)
        if places is not None:
            residual = at_places(residual, places)
        hidden = residual + self.self_attn(states, rotary, attend, places)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))
