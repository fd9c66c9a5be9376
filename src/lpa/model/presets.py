"""Named architectures."""

from dataclasses import dataclass
from typing import Any

from lpa.errors import UserError, expected_one_of
from lpa.model.configuration_lpa import PLACEMENTS, LPAConfig
from lpa.model.cost import parameter_count


@dataclass
class Preset:
    """Sizes of a model, in any placement; attention unless said otherwise.

    Attributes:
        origin: `published` (by Lv et al. 2024 in full), `our reading` (of what they published in
            part), or `modern` (bias-free, merges to a stock Llama).
        fields: of `LPAConfig`; the vocabulary only where it is part of what was published.
    """

    origin: str
    fields: dict[str, Any]


def _llama(
    hidden_size: int, intermediate_size: int, layers: int, heads: int, seq_len: int, **fields: Any
) -> dict[str, Any]:
    return {
        "decoder_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": seq_len,
        "rank": hidden_size // 4,
        **fields,
    }


def _paper(
    hidden_size: int, intermediate_size: int, layers: int, heads: int, seq_len: int, **fields: Any
) -> dict[str, Any]:
    sizes = _llama(hidden_size, intermediate_size, layers, heads, seq_len)
    return {**sizes, "decoder_type": "paper", "resid_pdrop": 0.1, **_HEAD, **fields}


# The published code's vocabulary, and its untied LM head with a bias.
_HEAD: dict[str, Any] = {"vocab_size": 32000, "lm_head_bias": True}

PRESETS: dict[str, Preset] = {
    "paper-130m-s2": Preset(
        "published", _llama(768, 2048, 12, 12, 256, rank=128, ffn_rank=384, **_HEAD)
    ),
    "paper-370m-s1": Preset("published", _paper(1024, 4096, 24, 8, 1024, rank=320, ffn_rank=768)),
    # The sizes of the other setting at this scale; ranks in the same fraction of the width.
    "130m-s1": Preset("our reading", _paper(768, 3072, 12, 12, 256, rank=256, ffn_rank=576)),
    "370m-s2": Preset(
        "our reading", _llama(1024, 2736, 24, 16, 1024, rank=256, ffn_rank=512, **_HEAD)
    ),
    "nano": Preset("modern", _llama(256, 688, 4, 4, 1024)),
    "micro": Preset("modern", _llama(384, 1024, 6, 6, 1024)),
    "mini": Preset("modern", _llama(512, 1376, 8, 8, 1024)),
    "130m": Preset("modern", _llama(768, 2048, 12, 12, 2048)),
    "370m": Preset("modern", _llama(1024, 2736, 24, 16, 2048)),
    "1b": Preset("modern", _llama(2048, 5504, 24, 16, 2048)),
    # The paper gives its 3B model no sizes; these are ours, about 3.2B dense.
    "3b": Preset("modern", _llama(2560, 6912, 38, 20, 2048)),
}


def preset_config(name: str, **overrides: Any) -> LPAConfig:
    """The configuration of a preset, with some of its fields changed.

    Raises:
        UserError: no preset has this name, or a value is not accepted (see `LPAConfig`).
    """
    if name not in PRESETS:
        raise UserError(f"preset: got {name!r}; {expected_one_of(name, PRESETS)}")
    return LPAConfig(**override_fields(PRESETS[name].fields, overrides))


def override_fields(fields: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Fields of `LPAConfig` with some changed; another rank is also the FFN's unless that is given."""
    is_other_rank = "rank" in overrides and overrides["rank"] != fields.get("rank")
    return fields | ({"ffn_rank": None} if is_other_rank else {}) | overrides


def preset_parameters(placement: str | None = None) -> dict[str, dict[str, int]]:
    """Counts the parameters of every preset.

    Args:
        placement: the one to count; by default all.

    Returns:
        Preset -> placement -> parameters.

    Raises:
        UserError: no such placement.
    """
    placements = PLACEMENTS if placement is None else (placement,)
    return {
        name: {one: parameter_count(preset_config(name, placement=one)) for one in placements}
        for name in PRESETS
    }
