"""Named architectures."""

from typing import Any

from lpa.errors import UserError
from lpa.model.configuration_lpa import LPAConfig

# Sizes only; the placement is attention unless said otherwise, and the vocabulary that of the data.
PRESETS: dict[str, dict[str, Any]] = {
    "nano": {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
        "rank": 64,
    },
    # Lv et al. 2024, setting 2 at 130M, as published.
    "paper-130m-s2": {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 256,
        "rank": 128,
        "ffn_rank": 384,
        "lm_head_bias": True,
    },
}


def preset_config(name: str, **overrides: Any) -> LPAConfig:
    """The configuration of a preset, with some of its fields changed.

    Raises:
        UserError: no preset has this name, or a value is not accepted (see `LPAConfig`).
    """
    if name not in PRESETS:
        raise UserError(f"preset: got {name!r}; expected one of {', '.join(PRESETS)}")
    return LPAConfig(**(PRESETS[name] | overrides))
