"""A Llama whose projections were factorized, as an LPA model of the same function."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from lpa.convert.llama_fields import llama_values
from lpa.errors import LPAWarning
from lpa.model.configuration_lpa import ATTENTION_PROJECTIONS, FFN_PROJECTIONS, LPAConfig
from lpa.model.modeling_lpa import LPAForCausalLM


def to_lpa_config(model: PreTrainedModel, ranks: Mapping[str, int]) -> LPAConfig | None:
    """The configuration of the same function as an `LPAForCausalLM`, or None where it cannot be one.

    It can for Llama, and for Mistral without a sliding window, where nothing but projections was factorized.
    """
    config: Any = model.config
    if type(model).__name__ not in ("LlamaForCausalLM", "MistralForCausalLM"):
        return None
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        return None
    if getattr(config, "sliding_window", None) is not None:
        return None
    kinds = (*ATTENTION_PROJECTIONS, *FFN_PROJECTIONS["llama"])
    layers = config.num_hidden_layers
    layer_ranks: dict[str, list[int | None]] = {kind: [None] * layers for kind in kinds}
    for name, rank in ranks.items():
        match = re.fullmatch(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)", name)
        if match is None or match[2] not in layer_ranks:
            return None
        layer_ranks[match[2]][int(match[1])] = rank
    method = {kind: set(values) != {None} for kind, values in layer_ranks.items()}
    attention = any(method[kind] for kind in ATTENTION_PROJECTIONS)
    ffn = any(method[kind] for kind in FFN_PROJECTIONS["llama"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LPAWarning)  # said once already, when ranks were chosen
        return LPAConfig(
            **llama_values(config),
            placement="all" if attention and ffn else "attention" if attention else "ffn",
            rank=max(ranks.values()),
            # One number where all layers have the same.
            ranks={k: v[0] if len(set(v)) == 1 else v for k, v in layer_ranks.items()},
            dtype=model.dtype,
        )


def to_lpa_model(model: PreTrainedModel, config: LPAConfig) -> LPAForCausalLM:
    """A factorized Llama as an `LPAForCausalLM` with the same tensors, which has the same names for them."""
    factorized_model = LPAForCausalLM(config).to(dtype=model.dtype, device=model.device)
    factorized_model.load_state_dict(model.state_dict(), strict=True)
    factorized_model.generation_config = model.generation_config
    return factorized_model.eval()
