"""Layers of the draft: attention, MLP, the decoder layer, and causal attention over one pass.

Attention is a function handed in (`attend`), so that drafting, training and a plain causal pass share one layer.

Shape letters: B batch, L sequence, H hidden.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .compat.models import activation
from .configuration_eagle3 import Eagle3Config


# attend(query (B, heads, L, d), key (B, kv heads, L, d), value, layer_index) -> (B, heads, L, d); RoPE is applied.
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
Rotary = tuple[torch.Tensor, torch.Tensor]  # cos, sin: (B or 1, 1, L, d)


def causal_attend(attention_mask: torch.Tensor | None = None, window: int | None = None) -> Attend:
    """
    Plain causal attention over the pass itself; `attention_mask` (B, L) is 0 at padding, `window` counts positions.
    """

    def attend(query, key, value, layer_index):
        grouped, length = query.shape[1] != key.shape[1], query.shape[2]
        if attention_mask is None and (window is None or length <= window):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        allowed = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
        if window is not None:
            allowed = allowed.triu(1 - window)
        if attention_mask is not None:
            allowed = allowed & attention_mask.bool()[:, None, None, :]
        # A padded query sees itself, so that no row is empty.
        allowed = allowed | torch.eye(length, dtype=torch.bool, device=query.device)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, enable_gqa=grouped)

    return attend


def at_places(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(B, n, W) of `states` (B, L, W) at `places` (B, n)."""
    return states.gather(1, places[:, :, None].expand(-1, -1, states.shape[2]))


def rotate_half(states: torch.Tensor) -> torch.Tensor:
    """The second half of the last axis, negated, before the first: the partner of each pair that RoPE turns."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class RMSNorm(nn.RMSNorm):
    """Runs in its input's precision also where autocast leaves the weight in another, so that it stays one kernel."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Normalised states, same shape and precision as `states` (..., H)."""
        return F.rms_norm(states, self.normalized_shape, self.weight.to(states.dtype), self.eps)


class Eagle3Attention(nn.Module):
    """Self-attention whose projections read `input_size` columns: 2H in the first layer."""

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
        """Mixed states (B, L, H) of `states` (B, L, input_size); with `places` (B, n) only of these, (B, n, H)."""
        batch, length, _ = states.shape
        asking = states if places is None else at_places(states, places)
        query = self.q_proj(asking).view(batch, asking.shape[1], -1, self.head_dim)
        key = self.k_proj(states).view(batch, length, -1, self.head_dim)
        value = self.v_proj(states).view(batch, length, -1, self.head_dim).transpose(1, 2)
        if self.q_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        cos, sin = rotary
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        key = key * cos + rotate_half(key) * sin
        if places is not None:
            cos, sin = (at_places(angles[:, 0], places)[:, None] for angles in (cos, sin))
        query = query * cos + rotate_half(query) * sin
        mixed = attend(query, key, value, self.layer_index)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Eagle3MLP(nn.Module):
    """The gated MLP of Llama."""

    def __init__(self, config: Eagle3Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = activation(config.hidden_act)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(B, L, H) of `states` (B, L, H)."""
        return self.down_proj(self.act_fn(self.gate_proj(states)) * self.up_proj(states))


class Eagle3DecoderLayer(nn.Module):
    """The first layer reads [embedding ; feature] (2H); further layers are plain pre-norm layers."""

    def __init__(self, config: Eagle3Config, layer_index: int):
        super().__init__()
        is_first, size, eps = layer_index == 0, config.hidden_size, config.rms_norm_eps
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
        States after the layer from h (`hidden`) and, in the first layer, embedding rows `embeds`, all (B, L, H); with
        `places` (B, n) only those of these, (B, n, H).
        """
        residual = hidden
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
