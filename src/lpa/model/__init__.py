"""Configuration, model and arithmetic of the decoder.

The names load on first use: the configuration alone does not need the model's imports.
"""

import importlib
from typing import TYPE_CHECKING, Any

_MODULES = {
    "PRESETS": "presets",
    "LPAConfig": "configuration_lpa",
    "LPAForCausalLM": "modeling_lpa",
    "LPAModel": "modeling_lpa",
    "preset_config": "presets",
}

__all__ = ["PRESETS", "LPAConfig", "LPAForCausalLM", "LPAModel", "preset_config"]

if TYPE_CHECKING:
    from lpa.model.configuration_lpa import LPAConfig
    from lpa.model.modeling_lpa import LPAForCausalLM, LPAModel
    from lpa.model.presets import PRESETS, preset_config


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"lpa.model.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'lpa.model' has no attribute {name!r}")
