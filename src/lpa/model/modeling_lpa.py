"""LPAForCausalLM: a LLaMA-like decoder in which any projection may be low-rank.

What a layer computes is Llama's, so RoPE, RMSNorm, masks, caches, attention kernels and generation
are those of transformers. The one thing of our own is `projection`: a dense map or a low-rank one.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from lpa.lowrank import LowRankLinear
from lpa.model.configuration_lpa import LPAConfig


def projection(config: LPAConfig, name: str) -> nn.Module:
    """The projection `name` of a layer: low-rank where the configuration gives it a rank."""
    in_features, out_features = config.projection_shape(name)
    rank = config.projection_rank(name)
    if rank is None:
        return nn.Linear(in_features, out_features, bias=False)
    pair = LowRankLinear(in_features, out_features, rank, bias=False)
    # An entry of B·A sums `rank` products of independent entries, so its variance is r σ⁴: this σ
    # gives the product the deviation that the dense projection would have.
    deviation = (config.initializer_range / rank**0.5) ** 0.5
    pair.down.initializer_range = pair.up.initializer_range = deviation
    return pair


class LPAAttention(nn.Module):
    """Causal multi-head attention with rotary positions and grouped keys and values."""

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
        self.q_proj = projection(config, "q_proj")
        self.k_proj = projection(config, "k_proj")
        self.v_proj = projection(config, "v_proj")
        self.o_proj = projection(config, "o_proj")

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        batch_and_length = hidden_states.shape[:-1]
        heads = (*batch_and_length, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(*batch_and_length, -1)), weights


class LPAMLP(nn.Module):
    """SwiGLU: down(act(gate(x)) · up(x))."""

    def __init__(self, config: LPAConfig) -> None:
        super().__init__()
        self.gate_proj = projection(config, "gate_proj")
        self.up_proj = projection(config, "up_proj")
        self.down_proj = projection(config, "down_proj")
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class LPADecoderLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LPAConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = LPAAttention(config, layer_idx)
        self.mlp = LPAMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class LPAPreTrainedModel(PreTrainedModel):
    config_class = LPAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LPADecoderLayer"]  # noqa: RUF012, transformers reads a list here
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": LPADecoderLayer,
        "attentions": LPAAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal with `initializer_range`, except for what `projection` gave a deviation of its own."""
        if isinstance(module, nn.Linear) and hasattr(module, "initializer_range"):
            init.normal_(module.weight, std=module.initializer_range)
        else:
            super()._init_weights(module)


class LPAModel(LPAPreTrainedModel):
    """The decoder without its head: token ids in, hidden states out."""

    def __init__(self, config: LPAConfig) -> None:
        super().__init__(config)
        # No padding_idx: where padding and end of text share a token, that one must learn too.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            LPADecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """input_ids: (batch, sequence) -> last_hidden_state: (batch, sequence, hidden_size)."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen
            position_ids = position_ids.unsqueeze(0)

        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values
        )


class LPAForCausalLM(LPAPreTrainedModel, GenerationMixin):
    """The decoder with its LM head: token ids in, next-token logits or loss out."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LPAConfig) -> None:
        super().__init__(config)
        self.model = LPAModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_logits: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits, and the loss where targets are given.

        Args:
            input_ids: (batch, sequence).
            labels: (batch, sequence), the inputs themselves: position t is scored on label t + 1.
            shift_labels: (batch, sequence), targets already shifted; takes the place of `labels`.
                -100 is ignored in both.
            logits_to_keep: compute the logits of only so many last positions (0: of all).
            num_items_in_batch: divide the summed loss by this instead of by the number of targets
                here, so that the parts of one batch add up to its mean.
            return_logits: whether to compute logits beside a loss. By default only outside training:
                there the loss alone is asked for, and it never holds them all.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state

        loss = None
        if shift_labels is None and labels is not None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=-100)
        if shift_labels is not None:
            loss = self._loss(hidden_states, shift_labels, num_items_in_batch)

        logits = None
        if return_logits is None:
            return_logits = loss is None or not self.training
        if return_logits:
            kept = (
                slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            )
            logits = self.lm_head(hidden_states[:, kept])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(self, hidden_states: Tensor, targets: Tensor, items: Tensor | int | None) -> Tensor:
        """Cross entropy of the targets, summed and divided by `items` or by their number."""
        targets = targets.to(hidden_states.device).reshape(-1)
        total = F.linear_cross_entropy(
            hidden_states.reshape(-1, hidden_states.shape[-1]),
            self.lm_head.weight,
            targets,
            linear_bias=self.lm_head.bias,
            reduction="sum",
            options=self._loss_options(targets.numel()),
        )
        if items is None:
            items = (targets != -100).sum()
        return total / items

    def _loss_options(self, tokens: int) -> "nn.LinearCrossEntropyOptions | None":
        """Chunk the loss over tokens where the logits would outweigh the hidden states they come from.

        The two conditions are those under which torch's documentation says that chunking is a win;
        without gradients, or for fewer tokens, the plain path is cheaper.
        """
        width = self.config.hidden_size
        if not torch.is_grad_enabled() or tokens < width or self.config.vocab_size <= width:
            return None
        return nn.LinearCrossEntropyOptions()
