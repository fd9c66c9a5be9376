"""LPAForCausalLM: a decoder in which any projection may be low-rank.

Masks, caches, attention kernels, generation, RoPE and RMSNorm are those of transformers. The
only new part is `build_projection`: a dense map or a low-rank one. The two decoders of the paper share
everything but their positions, their FFN and the order of norm and branch in a layer.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.modeling_layers import GenericForQuestionAnswering, GenericForTokenClassification
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModel
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from lpa.errors import UserError
from lpa.lowrank import LowRankLinear, SLTrainLinear, init_factors, is_plain_linear
from lpa.model.auto import LATENT, register_cache_implementation
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.layers.decoder import LPAAttention, LPADecoderLayer, build_norm
from lpa.model.layers.latent_cache import LatentCache
from lpa.model.layers.loss import as_divisor, lm_head_loss
from lpa.model.layers.mask import causal_mask
from lpa.model.layers.positions import check_positions, default_positions


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
        """Initialize one module, wherever it is, by what `build_projection` left on it.

        A pair starts as a whole, so its two maps are skipped. Everything else is
        normal with the configuration's `initializer_range`; norms are one, biases zero.
        """
        if hasattr(module, "initialized_by_parent"):
            return
        if isinstance(module, LowRankLinear) and hasattr(module, "initialization"):
            _init_low_rank_linear(module)
        elif isinstance(module, nn.Linear) and hasattr(module, "initializer_range"):
            init.normal_(module.weight, std=module.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def _resolve_parallel_plans(self, distributed_config: Any) -> tuple[dict[str, str], ...]:
        """Resolve the plans as transformers does, by names in which layers are alike.

        Raises:
            UserError: the model cannot be split so.
        """
        if distributed_config.pp_size > 1 and self.config.decoder_type != "llama":
            raise UserError(
                f"pp_size: got {distributed_config.pp_size}; expected 1 with decoder_type "
                f"{self.config.decoder_type}, every stage of which would add its positions again"
            )
        tensor_plan, *others = super()._resolve_parallel_plans(distributed_config)
        # A rule for the dense projections of some layers names the pairs of others too.
        pairs = {n for n, module in self.named_modules() if isinstance(module, LowRankLinear)}
        return {name: style for name, style in tensor_plan.items() if name not in pairs}, *others

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # The caution that transformers takes with code outside it passes over modules whose parameters
        # all lie in children, as a pair's do. It is for code that writes weights without asking whether
        # they are loaded already.
        super()._initialize_weights(module, is_custom_code=False)


def _init_low_rank_linear(module: LowRankLinear) -> None:
    """Initialize both maps of a pair, but not what from_pretrained has already loaded."""
    weights = (module.down.weight, module.up.weight)
    if not all(getattr(weight, "_is_hf_initialized", False) for weight in weights):
        down, up = init_factors(
            module.initialization,
            module.in_features,
            module.out_features,
            module.rank,
            module.initializer_range,
            scale=module.initializer_scale,
            device=module.up.weight.device,
            dtype=module.up.weight.dtype,
        )
        init.copy_(module.down.weight, down)
        init.copy_(module.up.weight, up)
    if isinstance(module, SLTrainLinear):
        module.reset_support()
        if not getattr(module.sparse_values, "_is_hf_initialized", False):
            module.reset_values(module.initializer_scale)
    for linear in (module.down, module.up):
        if linear.bias is None:
            continue
        if module.initialization == "linear":
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
            self.norm = build_norm(config)
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
        # Before an empty cache exists, since packed sequences are kept apart only without one.
        mask = causal_mask(
            self.config, inputs_embeds, attention_mask, past_key_values, position_ids
        )
        past_seen_tokens = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = default_positions(
                self.config, inputs_embeds, attention_mask, past_seen_tokens
            )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        hidden_states, position_embeddings = inputs_embeds, None
        if self.config.decoder_type == "llama":
            position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        else:
            check_positions(self.config, position_ids, past_seen_tokens)
            # Sharded over devices, a model may have them on another one.
            of_positions = self.embed_positions(position_ids).to(hidden_states.device)
            hidden_states = hidden_states + of_positions
        # Fewer of them while `assistant_early_exit` lets the first layers draft.
        for layer in self.layers[: self.config.num_hidden_layers]:
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

    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LPAConfig) -> None:
        super().__init__(config)
        self.model = LPAModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        register_cache_implementation()  # where a copy of this code runs without this package
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
        return_logits: bool = True,
        loss_from_hidden: Callable[..., Tensor] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits, and the loss where targets are given.

        Args:
            input_ids: (batch, sequence).
            labels: (batch, sequence), the inputs themselves: position t is scored on label t + 1.
            logits_to_keep: compute the logits of only so many last positions (0: of all).
            num_items_in_batch: divide the summed loss by this instead of by the number of targets
                here, so that the parts of one batch add up to its mean.
            return_logits: False for the loss alone, which then never holds the logits of all tokens.
            loss_from_hidden: computes the loss in place of cross entropy, from the last hidden states,
                the head, shifted targets and num_items_in_batch.
            **kwargs: `shift_labels`, (batch, sequence), targets already shifted; takes the place of
                `labels`. -100 is ignored in both. It is not in the signature, because the Trainer
                expects in each batch what the signature names as labels.

        Returns:
            `logits`: (batch, kept positions, vocab_size), None where `return_logits` is false. `loss`: a
            scalar in nats, None without targets. Cache, hidden states and attentions as the decoder's.
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

        logits = None
        if return_logits:
            kept = (
                slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            )
            logits = self.lm_head(hidden_states[:, kept])
        loss = None
        if shift_labels is None and labels is not None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=-100)
        if shift_labels is not None:
            if loss_from_hidden is not None:
                loss = loss_from_hidden(
                    hidden_states, self.lm_head, shift_labels, num_items_in_batch
                )
            else:
                of_all = logits if isinstance(logits_to_keep, int) and not logits_to_keep else None
                loss = self._compute_loss(hidden_states, of_all, shift_labels, num_items_in_batch)
        if isinstance(logits, DTensor):  # split by vocabulary
            logits = logits.full_tensor()
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @wraps(GenerationMixin.generate)
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        layers = self.config.num_hidden_layers
        try:
            return super().generate(*args, **kwargs)
        finally:  # an error while the first layers draft would leave the model with those alone
            self.config.num_hidden_layers = layers

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any
    ) -> None:
        """Prepare a cache as GenerationMixin does, or a LatentCache for `cache_implementation="latent"`."""
        cache = model_kwargs.get("past_key_values")
        if generation_config.cache_implementation == LATENT:
            if cache is None and generation_config.use_cache is not False:
                model_kwargs["past_key_values"] = LatentCache(config=self.config)
                return
            if isinstance(cache, LatentCache):  # any other is refused beside this name
                generation_config.cache_implementation = None
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)

    def _compute_loss(
        self,
        hidden_states: Tensor,
        logits: Tensor | None,
        targets: Tensor,
        num_items: Tensor | int | None,
    ) -> Tensor:
        """Cross entropy of the targets, summed and divided by `num_items` or by their number.

        Args:
            logits: those of all tokens, where they are there anyway.
        """
        targets = targets.to(hidden_states.device).reshape(-1)
        if num_items is None:
            num_items = (targets != -100).sum()
        if logits is None and is_plain_linear(self.lm_head):
            return lm_head_loss(
                hidden_states.reshape(-1, hidden_states.shape[-1]),
                self.lm_head.weight,
                self.lm_head.bias,
                targets,
                num_items,
            )
        # Tensor parallelism, where each process has the logits of its part of the vocabulary, adapters,
        # offloaded and quantized weights.
        if logits is None:
            logits = self.lm_head(hidden_states)
        targets = targets.to(logits.device)  # of a model sharded over devices, perhaps another one
        total = F.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="sum")
        total = total.to_local() if isinstance(total, DTensor) else total
        return total / as_divisor(num_items, total.device)


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
        positions = torch.arange(length, device=hidden_states.device)
        if mask is None:
            if input_ids is None or self.config.pad_token_id is None:
                return positions[-1].expand(batch)
            mask = input_ids != self.config.pad_token_id
        return (positions * mask.to(positions)).argmax(-1)


class RegistersDecoder:
    """Goes before a head of transformers, which asks `AutoModel` for the decoder of a configuration."""

    # Their losses are means over their own batch, which the Trainer then divides by the parts of a step.
    accepts_loss_kwargs = False

    def __init__(self, config: LPAConfig) -> None:
        # Of code in a directory there are two copies of `LPAConfig`: each file has its own.
        AutoModel.register(type(config), LPAModel, exist_ok=True)
        super().__init__(config)  # type: ignore[call-arg]


class LPAForTokenClassification(
    RegistersDecoder, GenericForTokenClassification, LPAPreTrainedModel
):
    """The decoder with a linear head on every token: logits (batch, sequence, labels)."""


class LPAForQuestionAnswering(RegistersDecoder, GenericForQuestionAnswering, LPAPreTrainedModel):
    """The decoder with a linear head for the first and the last token of an answer."""
