"""Configuration, model and arithmetic of the decoder.

The names load on first use: the configuration alone does not need the model's imports.
"""

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "configuration_lpa": ["LPAConfig"],
        "cost": ["parameter_count", "training_flops_per_token"],
        "layers.latent_cache": ["LatentCache"],
        "modeling_lpa": [
            "LPAForCausalLM",
            "LPAForQuestionAnswering",
            "LPAForSequenceClassification",
            "LPAForTokenClassification",
            "LPAModel",
        ],
        "presets": ["PRESETS", "preset_config"],
    },
)

if TYPE_CHECKING:
    from lpa.model.configuration_lpa import LPAConfig
    from lpa.model.cost import parameter_count, training_flops_per_token
    from lpa.model.layers.latent_cache import LatentCache
    from lpa.model.modeling_lpa import (
        LPAForCausalLM,
        LPAForQuestionAnswering,
        LPAForSequenceClassification,
        LPAForTokenClassification,
        LPAModel,
    )
    from lpa.model.presets import PRESETS, preset_config
