"""The decoder layer: attention and FFN whose projections are dense or low-rank."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    eager_attention_forward,
)

from lpa.lowrank import CoLALinear, LowRankLinear, SLTrainLinear
from lpa.model.configuration_lpa import RESIDUAL_PROJECTIONS, LPAConfig
from lpa.model.layers.fused_projections import project_fused
from lpa.model.layers.latent_cache import LatentCache, latent_attention
from lpa.model.layers.ops import RMSNorm, apply_rotary, silu_mul


def build_projection(config: LPAConfig, name: str, layer_idx: int) -> nn.Module:
    """The projection `name` of a layer: low-rank where the configuration gives it a rank."""
    in_features, out_features = config.projection_shape(name)
    rank = config.projection_rank(name, layer_idx)
    has_bias = config.decoder_type == "paper"
    # What writes to the residual stream, twice in each layer, so that the stream's variance does not
    # grow with depth (Radford et al. 2019, section 2.3).
    writes_to_residual = name in RESIDUAL_PROJECTIONS
    scaled = config.residual_scaling and writes_to_residual
    scale = (2 * config.num_hidden_layers) ** -0.5 if scaled else 1.0
    if rank is None:
        linear = nn.Linear(in_features, out_features, bias=has_bias)
        linear.initializer_range = config.initializer_range * scale
        return linear
    # The paper's bias is where its branch begins: at the latent of q, k, v and fc1, at the output
    # of o and fc2.
    module: LowRankLinear
    if config.low_rank_method == "sltrain":
        assert config.sparse_density is not None
        module = SLTrainLinear(
            in_features,
            out_features,
            rank,
            density=config.sparse_density,
            support_seed=layer_idx * len(config.projections) + config.projections.index(name),
        )
    else:
        pair_class = CoLALinear if config.low_rank_method == "cola" else LowRankLinear
        module = pair_class(
            in_features,
            out_features,
            rank,
            bias=has_bias and writes_to_residual,
            down_bias=has_bias and not writes_to_residual,
        )
    # Read by _init_weights, which sees one module at a time.
    module.initialization = config.initialization
    module.initializer_range = config.initializer_range
    module.initializer_scale = scale
    module.down.initialized_by_parent = module.up.initialized_by_parent = True
    return module


class LPAAttention(nn.Module):
    """Causal multi-head attention with grouped keys and values, and RoPE where positions are rotary."""

    def __init__(self, config: LPAConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.head_dim is not None
        assert config.num_key_value_heads is not None
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        # Read by the attention functions of transformers.
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.q_proj = build_projection(config, "q_proj", layer_idx)
        self.k_proj = build_projection(config, "k_proj", layer_idx)
        self.v_proj = build_projection(config, "v_proj", layer_idx)
        self.o_proj = build_projection(config, "o_proj", layer_idx)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
            attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, eager_attention_forward
            )
            dropout = self.config.attention_dropout if self.training else 0.0
            return attention(
                self,
                query,
                key,
                value,
                attention_mask,
                dropout=dropout,
                scaling=self.scaling,
                **kwargs,
            )

        if isinstance(past_key_values, LatentCache):
            output, weights = latent_attention(
                self, hidden_states, position_embeddings, attention_mask, past_key_values, attend
            )
        else:
            projections = (self.q_proj, self.k_proj, self.v_proj)
            query, key, value = (
                projected.view(*hidden_states.shape[:-1], -1, self.head_dim).transpose(1, 2)
                for projected in project_fused(projections, hidden_states)
            )
            if position_embeddings is not None:
                query, key = apply_rotary(query, key, *position_embeddings)
            if past_key_values is not None:
                key, value = past_key_values.update(key, value, self.layer_idx)
            output, weights = attend(query, key, value)
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020): down(act(gate(x)) · up(x))."""

    def __init__(self, config: LPAConfig, layer_idx: int) -> None:
        super().__init__()
        self.gate_proj = build_projection(config, "gate_proj", layer_idx)
        self.up_proj = build_projection(config, "up_proj", layer_idx)
        self.down_proj = build_projection(config, "down_proj", layer_idx)
        self.act_fn = ACT2FN[config.hidden_act]
        self.is_swiglu = config.hidden_act in ("silu", "swish")

    def forward(self, x: Tensor) -> Tensor:
        gate, up = project_fused((self.gate_proj, self.up_proj), x)
        product = silu_mul(gate, up) if self.is_swiglu else self.act_fn(gate) * up
        return self.down_proj(product)


class PlainMLP(nn.Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, config: LPAConfig, layer_idx: int) -> None:
        super().__init__()
        self.fc1 = build_projection(config, "fc1", layer_idx)
        self.fc2 = build_projection(config, "fc2", layer_idx)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act_fn(self.fc1(x)))


class LPADecoderLayer(GradientCheckpointingLayer):
    """Attention and FFN, each added to the stream; a norm at the beginning or the end of each branch.

    llama: x + branch(norm(x)). paper: x + dropout(norm(branch(x))) (Lv et al. 2024, setting 1).
    """

    def __init__(self, config: LPAConfig, layer_idx: int) -> None:
        super().__init__()
        self.norm_first = config.decoder_type == "llama"
        self.self_attn = LPAAttention(config, layer_idx)
        self.mlp = (GatedMLP if self.norm_first else PlainMLP)(config, layer_idx)
        self.input_layernorm = build_norm(config)
        self.post_attention_layernorm = build_norm(config)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        def attention(x: Tensor) -> Tensor:
            return self.self_attn(x, **kwargs)[0]

        hidden_states = self._add(hidden_states, attention, self.input_layernorm)
        return self._add(hidden_states, self.mlp, self.post_attention_layernorm)

    def _add(self, x: Tensor, branch: Callable, norm: nn.Module) -> Tensor:
        return x + self.dropout(branch(norm(x)) if self.norm_first else norm(branch(x)))


def build_norm(config: LPAConfig) -> nn.Module:
    if config.decoder_type == "llama":
        return RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
