"""A key-value cache that holds latents where a projection is low-rank.

With v = B z the output of a head is P (Z Bᵀ) = (P Z) Bᵀ, P being its attention weights and Z the latents of
all tokens: so z, r wide and shared by all heads, takes the place of the values, and B is applied to what was
attended to instead of to every token. Keys likewise, q (Z Bᵀ)ᵀ = (q B) Zᵀ, where positions are learned. RoPE
turns each key by its own position, which does not pass through B; keys are then kept turned, as they are
without this cache. (The idea is that of multi-head latent attention, DeepSeek-AI 2024, section 2.1.2.)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.configuration_utils import PreTrainedConfig

from lpa.lowrank import LowRankLinear, has_hooks, is_plain_linear
from lpa.model.layers.ops import apply_rotary


class LatentCache(DynamicCache):
    """A KV cache of latents, for `past_key_values` of a forward pass or of `generate`.

    `generate(cache_implementation="latent")` makes one. It grows, and can be cropped, reordered and reset,
    as a DynamicCache. For each layer, `keys` are (batch, key heads, sequence, head_dim), or latents of
    (batch, 1, sequence, rank); `values` likewise.

    Args:
        config: the configuration of the model.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)

    def nbytes(self) -> int:
        """Bytes that the cache holds now."""
        return sum(
            tensor.nbytes
            for layer in self.layers
            if layer.is_initialized
            for tensor in (layer.keys, layer.values)
        )


def latent_attention(
    attention: nn.Module,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor] | None,
    mask: Tensor | None,
    cache: LatentCache,
    attention_forward: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]],
) -> tuple[Tensor, Tensor | None]:
    """Attention of new tokens to those of the cache and to each other, up to the output projection.

    Args:
        attention: an LPAAttention.
        mask: (batch, 1, queries, keys), boolean or to be added.
        attention_forward: what runs where keys and values are better expanded: for long prompts.

    Shapes: hidden_states (batch, queries, hidden_size) -> (batch, queries, heads, head_dim), and the
        attention weights (batch, heads, queries, keys).
    """
    key_up = _up_factor(attention.k_proj) if position_embeddings is None else None
    value_up = _up_factor(attention.v_proj)
    query = _split_heads(attention.q_proj(hidden_states), attention.head_dim)
    key, value = (
        projection.down(hidden_states).unsqueeze(1)
        if up is not None
        else _split_heads(projection(hidden_states), attention.head_dim)
        for projection, up in ((attention.k_proj, key_up), (attention.v_proj, value_up))
    )
    if position_embeddings is not None:
        query, key = apply_rotary(query, key, *position_embeddings)
    key, value = cache.update(key, value, attention.layer_idx)

    if _should_absorb(attention, query.shape[2], mask, [key_up, value_up]):
        return _absorbed_attention(query, key, value, mask, key_up, value_up, attention)
    if key_up is not None:
        key = _split_heads(key_up(key.squeeze(1)), attention.head_dim)
    if value_up is not None:
        value = _split_heads(value_up(value.squeeze(1)), attention.head_dim)
    return attention_forward(query, key, value)


def _up_factor(projection: nn.Module) -> nn.Module | None:
    """B of a projection whose latents can be kept, else None."""
    if type(projection) is LowRankLinear and not has_hooks(projection):
        return projection.up
    return None


def _split_heads(x: Tensor, head_dim: int) -> Tensor:
    """(batch, sequence, heads · head_dim) -> (batch, heads, sequence, head_dim)."""
    return x.view(*x.shape[:-1], -1, head_dim).transpose(1, 2)


def _should_absorb(
    attention: nn.Module, queries: int, mask: Tensor | None, factors: list[nn.Module | None]
) -> bool:
    """Whether B goes to the queries and to the result, instead of to every token in the cache.

    In multiplications per cached token and unit of rank that is `queries · heads` against
    `key heads · head_dim`.
    """
    latent = [up for up in factors if up is not None]
    heads = attention.config.num_attention_heads
    width = heads // attention.num_key_value_groups * attention.head_dim
    return (
        bool(latent)
        and all(is_plain_linear(up) and up.bias is None for up in latent)
        and attention.config._attn_implementation in ("sdpa", "eager")
        # Several queries without a mask are a prompt, whose causality a kernel is left to know of.
        and (queries == 1 or mask is not None)
        and queries * heads <= width
    )


def _absorbed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    key_up: nn.Module | None,
    value_up: nn.Module | None,
    attention: Any,
) -> tuple[Tensor, Tensor]:
    batch, heads, queries, head_dim = query.shape
    groups = attention.num_key_value_groups
    # Heads that share keys stand side by side: (batch, key heads, groups · queries, head_dim).
    query = query.reshape(batch, heads // groups, groups * queries, head_dim)
    if key_up is not None:
        # (q B) Zᵀ: the latents are those of all heads, so all heads are rows of one product.
        query = query @ key_up.weight.view(heads // groups, head_dim, -1)
        query = query.reshape(batch, 1, heads * queries, -1)
    scores = (query @ key.transpose(-1, -2)).view(batch, heads, queries, -1) * attention.scaling
    if mask is not None:
        scores = _apply_mask(scores, mask)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    # (P Z) Bᵀ, or P V.
    rows = weights.view(batch, value.shape[1], -1, weights.shape[-1])
    output = (rows @ value).view(batch, heads // groups, groups * queries, -1)
    if value_up is not None:
        output = output @ value_up.weight.view(heads // groups, head_dim, -1).transpose(-1, -2)
    return output.reshape(batch, heads, queries, head_dim).transpose(1, 2), weights


def _apply_mask(scores: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        # Not -inf: a row of padding sees nothing at all, and must stay a number.
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask
