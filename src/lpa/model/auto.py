"""Make the Auto classes of transformers know `model_type: lpa`, whichever package is imported first."""

import importlib
import sys


def register_config() -> None:
    """Map the model type to its configuration."""
    from transformers.models.auto.configuration_auto import AutoConfig

    from lpa.model.configuration_lpa import LPAConfig

    AutoConfig.register(LPAConfig.model_type, LPAConfig, exist_ok=True)


def load_models() -> None:
    """Import our models, which register themselves, unless what they import is half imported itself.

    `transformers.modeling_layers` imports the Auto classes on its way; called from there, this waits
    for the call that follows once that module is complete.
    """
    layers = sys.modules.get("transformers.modeling_layers")
    if layers is None or hasattr(layers, "GradientCheckpointingLayer"):
        importlib.import_module("lpa.model.modeling_lpa")
