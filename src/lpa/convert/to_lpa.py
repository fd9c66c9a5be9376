"""A Llama or an LPA model whose projections were factorized, as an LPA model of the same function."""

import warnings
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from lpa.convert.llama_fields import llama_values
from lpa.errors import LPAWarning
from lpa.model.configuration_lpa import ATTENTION_PROJECTIONS, FFN_PROJECTIONS, LPAConfig
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.model.surgery.lpa_ranks import rank_fields, with_ranks


def to_lpa_config(model: PreTrainedModel, ranks: Mapping[str, int]) -> LPAConfig | None:
    """The configuration of the same function as an `LPAForCausalLM`, or None where it cannot be one.

    It can for Llama, and for Mistral without a sliding window, where nothing but projections was factorized.

    Raises:
        UserError: an LPA model that cannot be factorized further.
    """
    config: Any = model.config
    if isinstance(model, LPAForCausalLM):
        return with_ranks(config, ranks)
    if type(model).__name__ not in ("LlamaForCausalLM", "MistralForCausalLM"):
        return None
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        return None
    if getattr(config, "sliding_window", None) is not None:
        return None
    dense: list[int | None] = [None] * config.num_hidden_layers
    kinds = (*ATTENTION_PROJECTIONS, *FFN_PROJECTIONS["llama"])
    fields = rank_fields(dict.fromkeys(kinds, dense), ranks)
    if fields is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LPAWarning)  # said once already, when ranks were chosen
        return LPAConfig(**llama_values(config), **fields, dtype=model.dtype)


def to_lpa_model(model: PreTrainedModel, config: LPAConfig) -> LPAForCausalLM:
    """A factorized Llama or LPA model as an `LPAForCausalLM` with the same tensors under the same names."""
    factorized_model = LPAForCausalLM(config).to(dtype=model.dtype, device=model.device)
    factorized_model.load_state_dict(model.state_dict(), strict=True)
    factorized_model.generation_config = model.generation_config
    return factorized_model.eval()
