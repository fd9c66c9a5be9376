"""LPAForCausalLM: a decoder in which any projection may be low-rank.

Masks, caches, attention kernels, generation, RoPE and RMSNorm are those of transformers. The one
thing of our own is `projection`: a dense map or a low-rank one. The two decoders of the paper share
everything but their positions, their FFN and the order of norm and branch in a layer.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
    eager_attention_forward,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from lpa.lowrank import LowRankLinear, draw_factors
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.elementwise import RMSNorm, rotate, silu_product
from lpa.model.fused import apply_together
from lpa.model.latent_cache import LatentCache, attend_with_latents
from lpa.model.loss import head_loss


def projection(config: LPAConfig, name: str, layer_idx: int) -> nn.Module:
    """The projection `name` of a layer: low-rank where the configuration gives it a rank."""
    in_features, out_features = config.projection_shape(name)
    rank = config.projection_rank(name, layer_idx)
    biased = config.decoder_type == "paper"
    # What writes to the residual stream, twice in each layer, so that the stream's variance does not
    # grow with depth (Radford et al. 2019, section 2.3).
    writes = name in ("o_proj", "down_proj", "fc2")
    scaled = config.residual_scaling and writes
    scale = (2 * config.num_hidden_layers) ** -0.5 if scaled else 1.0
    if rank is None:
        linear = nn.Linear(in_features, out_features, bias=biased)
        linear.initializer_range = config.initializer_range * scale
        return linear
    # The paper's bias stands where its branch begins: at the latent of q, k, v and fc1, at the output
    # of o and fc2.
    pair = LowRankLinear(
        in_features,
        out_features,
        rank,
        bias=biased and writes,
        down_bias=biased and not writes,
    )
    # Read by _init_weights, which gets to see a module by itself.
    pair.initialization = config.initialization
    pair.initializer_range = config.initializer_range
    pair.initializer_scale = scale
    pair.down.initialized_by_pair = pair.up.initialized_by_pair = True
    return pair


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
        self.q_proj = projection(config, "q_proj", layer_idx)
        self.k_proj = projection(config, "k_proj", layer_idx)
        self.v_proj = projection(config, "v_proj", layer_idx)
        self.o_proj = projection(config, "o_proj", layer_idx)

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
            output, weights = attend_with_latents(
                self, hidden_states, position_embeddings, attention_mask, past_key_values, attend
            )
        else:
            projections = (self.q_proj, self.k_proj, self.v_proj)
            query, key, value = (
                projected.view(*hidden_states.shape[:-1], -1, self.head_dim).transpose(1, 2)
                for projected in apply_together(projections, hidden_states)
            )
            if position_embeddings is not None:
                query, key = rotate(query, key, *position_embeddings)
            if past_key_values is not None:
                key, value = past_key_values.update(key, value, self.layer_idx)
            output, weights = attend(query, key, value)
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020): down(act(gate(x)) · up(x))."""

    def __init__(self, config: LPAConfig, layer_idx: int) -> None:
        super().__init__()
        self.gate_proj = projection(config, "gate_proj", layer_idx)
        self.up_proj = projection(config, "up_proj", layer_idx)
        self.down_proj = projection(config, "down_proj", layer_idx)
        self.act_fn = ACT2FN[config.hidden_act]
        self.is_swiglu = config.hidden_act in ("silu", "swish")

    def forward(self, x: Tensor) -> Tensor:
        gate, up = apply_together((self.gate_proj, self.up_proj), x)
        product = silu_product(gate, up) if self.is_swiglu else self.act_fn(gate) * up
        return self.down_proj(product)


class PlainMLP(nn.Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, config: LPAConfig, layer_idx: int) -> None:
        super().__init__()
        self.fc1 = projection(config, "fc1", layer_idx)
        self.fc2 = projection(config, "fc2", layer_idx)
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
        self.input_layernorm = _norm(config)
        self.post_attention_layernorm = _norm(config)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        def attention(x: Tensor) -> Tensor:
            return self.self_attn(x, **kwargs)[0]

        hidden_states = self._add(hidden_states, attention, self.input_layernorm)
        return self._add(hidden_states, self.mlp, self.post_attention_layernorm)

    def _add(self, x: Tensor, branch: Callable, norm: nn.Module) -> Tensor:
        return x + self.dropout(branch(norm(x)) if self.norm_first else norm(branch(x)))


def _norm(config: LPAConfig) -> nn.Module:
    if config.decoder_type == "llama":
        return RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


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
        """Initialise one module, wherever it stands, by what `projection` left on it.

        A pair starts as a whole, so its two maps by themselves are passed over. Everything else is
        normal with the configuration's `initializer_range`; norms are one, biases nought.
        """
        if hasattr(module, "initialized_by_pair"):
            return
        if isinstance(module, LowRankLinear) and hasattr(module, "initialization"):
            _init_pair(module)
        elif isinstance(module, nn.Linear) and hasattr(module, "initializer_range"):
            init.normal_(module.weight, std=module.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # The caution that transformers takes with code outside it passes over modules whose parameters
        # all lie in children, as a pair's do. It is for code that writes weights without asking whether
        # they are loaded already.
        super()._initialize_weights(module, is_custom_code=False)


def _init_pair(pair: LowRankLinear) -> None:
    """Initialise both maps of a pair, but not what from_pretrained has already loaded."""
    weights = (pair.down.weight, pair.up.weight)
    if not all(getattr(weight, "_is_hf_initialized", False) for weight in weights):
        down, up = draw_factors(
            pair.initialization,
            pair.in_features,
            pair.out_features,
            pair.rank,
            pair.initializer_range,
            scale=pair.initializer_scale,
            device=pair.up.weight.device,
            dtype=pair.up.weight.dtype,
        )
        init.copy_(pair.down.weight, down)
        init.copy_(pair.up.weight, up)
    for linear in (pair.down, pair.up):
        if linear.bias is None:
            continue
        if pair.initialization == "default":
            bound = linear.in_features**-0.5
            init.uniform_(linear.bias, -bound, bound)
        else:
            init.zeros_(linear.bias)


class LPAModel(LPAPreTrainedModel):
    """The decoder without its head: token ids in, hidden states out."""

    def __init__(self, config: LPAConfig) -> None:
        super().__init__(config)
        # No padding_idx: where padding and end of text share a token, that one must learn too.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            LPADecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        if config.decoder_type == "llama":
            self.norm = _norm(config)
            self.rotary_emb = LlamaRotaryEmbedding(config)
        else:
            self.norm = nn.Identity()  # each branch ends in a norm already
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
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
        # Before an empty cache exists, since packed sequences are kept apart only without one. Positions
        # of our own making hold no packing, so they are not looked through for it.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen
            position_ids = position_ids.unsqueeze(0)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        hidden_states, position_embeddings = inputs_embeds, None
        if self.config.decoder_type == "llama":
            position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        else:
            self._check_positions(seen, inputs_embeds.shape[1])
            hidden_states = hidden_states + self.embed_positions(position_ids)
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

    def _check_positions(self, seen: int | Tensor, length: int) -> None:
        """Learned positions end somewhere; without this a lookup would fail deep in a kernel."""
        if isinstance(seen, int) and seen + length > self.config.max_position_embeddings:
            raise ValueError(
                f"sequence length: got {seen + length}; expected at most max_position_embeddings "
                f"({self.config.max_position_embeddings})"
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
        num_items_in_batch: Tensor | int | None = None,
        return_logits: bool | None = None,
        loss_from_hidden: Callable[..., Tensor] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits, and the loss where targets are given.

        Args:
            input_ids: (batch, sequence).
            labels: (batch, sequence), the inputs themselves: position t is scored on label t + 1.
            shift_labels: (batch, sequence), targets already shifted; takes the place of `labels`.
                -100 is ignored in both. A keyword alone: what the signature names as labels, the
                Trainer expects in each batch.
            logits_to_keep: compute the logits of only so many last positions (0: of all).
            num_items_in_batch: divide the summed loss by this instead of by the number of targets
                here, so that the parts of one batch add up to its mean.
            return_logits: whether to compute logits beside a loss. By default only outside training:
                there the loss alone is asked for, and it never holds them all.
            loss_from_hidden: computes the loss in place of cross entropy, from the last hidden states,
                the head, shifted targets and num_items_in_batch.
        """
        shift_labels: Tensor | None = kwargs.pop("shift_labels", None)
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
            if loss_from_hidden is not None:
                loss = loss_from_hidden(
                    hidden_states, self.lm_head, shift_labels, num_items_in_batch
                )
            else:
                loss = self._loss(hidden_states, shift_labels, num_items_in_batch)

        logits = None
        if return_logits is None:
            return_logits = loss is None or not self.training
        if return_logits:
            kept = (
                slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            )
            logits = self.lm_head(hidden_states[:, kept])
            if isinstance(logits, DTensor):  # split by vocabulary
                logits = logits.full_tensor()
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        cache_implementation: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """As GenerationMixin.generate, and `cache_implementation="latent"` keeps latents (LatentCache)."""
        if cache_implementation == "latent":
            kwargs["past_key_values"] = LatentCache(config=self.config)
        elif cache_implementation is not None:
            kwargs["cache_implementation"] = cache_implementation
        return super().generate(inputs, **kwargs)

    def _loss(self, hidden_states: Tensor, targets: Tensor, items: Tensor | int | None) -> Tensor:
        """Cross entropy of the targets, summed and divided by `items` or by their number."""
        targets = targets.to(hidden_states.device).reshape(-1)
        if items is None:
            items = (targets != -100).sum()
        if isinstance(self.lm_head.weight, DTensor):
            # Tensor parallelism: each process has the logits of its part of the vocabulary.
            logits = self.lm_head(hidden_states).flatten(0, 1)
            total = F.cross_entropy(logits, targets, reduction="sum")
            return (total.to_local() if isinstance(total, DTensor) else total) / items
        return head_loss(
            hidden_states.reshape(-1, hidden_states.shape[-1]),
            self.lm_head.weight,
            self.lm_head.bias,
            targets,
            items,
        )


class LPAForSequenceClassification(LPAPreTrainedModel):
    """The decoder with a linear head on the last token of each sequence.

    `config.problem_type` says what labels are: `regression`, `single_label_classification` or
    `multi_label_classification`; where it is None, their number and dtype do.
    """

    # The loss is a mean over its own batch, which the Trainer then divides by the parts of a step.
    accepts_loss_kwargs = False

    def __init__(self, config: LPAConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = LPAModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
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
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """input_ids, attention_mask: (batch, sequence), padded on either side -> logits: (batch, labels)."""
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
        last = self._last_tokens(input_ids, attention_mask, hidden_states)
        rows = torch.arange(hidden_states.shape[0], device=hidden_states.device)
        logits = self.score(hidden_states[rows, last])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, pooled_logits=logits, config=self.config
            )
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _last_tokens(
        self, input_ids: Tensor | None, mask: Tensor | None, hidden_states: Tensor
    ) -> Tensor:
        """(batch,): the place of the last token that is not padding.

        The mask says which are; without one the padding token does. The mask comes first since
        padding and end of text may share a token.
        """
        batch, length = hidden_states.shape[:2]
        places = torch.arange(length, device=hidden_states.device)
        if mask is None:
            if input_ids is None or self.config.pad_token_id is None:
                return places[-1].expand(batch)
            mask = input_ids != self.config.pad_token_id
        return (places * mask.to(places)).argmax(-1)
