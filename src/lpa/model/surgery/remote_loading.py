"""What opens a model with low-rank pairs inside where this package is not installed.

A directory of such a model names one of these classes in the `auto_map` of its config.json. The Auto classes
of transformers then call its `from_pretrained`, which gives a model of the class that the configuration
belongs to, as they would with this package.
"""

from typing import Any

from transformers.models.auto import modeling_auto
from transformers.quantizers import auto as quantizers_auto

from lpa.model.auto import QUANT_METHOD
from lpa.model.surgery.quantizer import LowRankConfig, LowRankQuantizer


class LowRankModel:
    """Opens the model of `AutoModel`."""

    auto_class = "AutoModel"

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, config: Any, **options: Any) -> Any:
        """A model of the class that transformers has for its configuration, with pairs inside."""
        quantizers_auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(QUANT_METHOD, LowRankConfig)
        quantizers_auto.AUTO_QUANTIZER_MAPPING.setdefault(QUANT_METHOD, LowRankQuantizer)
        del config.auto_map  # `save_pretrained` of that class copies no code
        model_class = getattr(modeling_auto, cls.auto_class)._model_mapping[type(config)]
        return model_class.from_pretrained(path, *args, config=config, **options)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any) -> None:
        """Nothing: it is asked of every class that an Auto class finds in a directory."""


class LowRankForCausalLM(LowRankModel):
    auto_class = "AutoModelForCausalLM"


class LowRankForSequenceClassification(LowRankModel):
    auto_class = "AutoModelForSequenceClassification"


REMOTE_CLASSES = {
    "AutoModel": "LowRankModel",
    "AutoModelForCausalLM": "LowRankForCausalLM",
    "AutoModelForSequenceClassification": "LowRankForSequenceClassification",
}
