"""Make the Auto classes of transformers know `model_type: lpa`, whichever package is imported first.

The Auto classes appear halfway through the import of almost any part of transformers, when parts that
our models need are not complete yet. So they are given names that load our models on first use.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import wrapt

from lpa.errors import UserError
from lpa.storage.run_directory import FINAL_DIRECTORY

# The `cache_implementation` of a `LatentCache`.
LATENT = "latent"
# The `quant_method` of models of other classes that have low-rank pairs inside.
QUANT_METHOD = "low_rank"

# Auto class -> what it makes of an `LPAConfig`.
MODELS = {
    "AutoModel": "LPAModel",
    "AutoModelForCausalLM": "LPAForCausalLM",
    "AutoModelForSequenceClassification": "LPAForSequenceClassification",
    "AutoModelForTokenClassification": "LPAForTokenClassification",
    "AutoModelForQuestionAnswering": "LPAForQuestionAnswering",
}


def register_config() -> None:
    """Map the model type to its configuration."""
    from transformers.models.auto.configuration_auto import AutoConfig

    from lpa.model.configuration_lpa import LPAConfig

    AutoConfig.register(LPAConfig.model_type, LPAConfig, exist_ok=True)


def register_models() -> None:
    """Map the configuration to its models."""
    from transformers.models.auto import modeling_auto

    from lpa.model.configuration_lpa import LPAConfig

    for auto_class, name in MODELS.items():
        # `AutoModel.register` would look into the class at once; the mapping below it does not.
        mapping = getattr(modeling_auto, auto_class)._model_mapping
        mapping.register(LPAConfig, _on_first_use("lpa.model.modeling_lpa", name), exist_ok=True)
        # Where transformers tells by the name of a class what a model is for: the Trainer shifts labels
        # for a label-smoothed loss of a causal model alone, pipelines warn of a class unknown to them.
        mapping._model_mapping[LPAConfig.model_type] = name


def explain_run_directories() -> None:
    """Let `from_pretrained` of any class say where the model of a run is."""
    from transformers.configuration_utils import PreTrainedConfig

    wrapt.wrap_function_wrapper(PreTrainedConfig, "get_config_dict", _refuse_run)


def _refuse_run(
    wrapped: Callable[..., Any], _: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    path = Path(arguments[0] if arguments else options["pretrained_model_name_or_path"])
    final = path / FINAL_DIRECTORY
    if (final / "config.json").is_file() and not (path / "config.json").is_file():
        raise UserError(
            f"{path}: is a run, whose model is in {final}; give that to from_pretrained, or the run to "
            "lpa.load"
        )
    return wrapped(*arguments, **options)


def register_cache_implementation() -> None:
    """Let a `GenerationConfig` name the latent cache."""
    from transformers.generation import configuration_utils

    known = configuration_utils.ALL_CACHE_IMPLEMENTATIONS
    if LATENT not in known:
        configuration_utils.ALL_CACHE_IMPLEMENTATIONS = (*known, LATENT)


def register_quantizer() -> None:
    """Let models of other classes be loaded with low-rank pairs inside."""
    from transformers.quantizers import auto

    for mapping, name in (
        (auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "LowRankConfig"),
        (auto.AUTO_QUANTIZER_MAPPING, "LowRankQuantizer"),
    ):
        mapping[QUANT_METHOD] = _on_first_use("lpa.model.surgery.quantizer", name)


def _on_first_use(module: str, name: str) -> Any:
    def load() -> Any:
        return getattr(importlib.import_module(module), name)

    return wrapt.LazyObjectProxy(load, interface=type)
