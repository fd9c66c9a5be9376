"""What opens a model with low-rank pairs inside where this package is not installed.

A directory of such a model names one of these classes in the `auto_map` of its config.json. The Auto classes
of transformers then call its `from_pretrained`, which gives a model of the class that the configuration
belongs to, as they would with this package.
"""

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

from transformers.models.auto import modeling_auto
from transformers.quantizers import auto as quantizers_auto

from lpa.model.auto import QUANT_METHOD
from lpa.model.surgery.quantizer import LowRankConfig, LowRankQuantizer, saving_state_dict


def save_with_code(
    model: Any,
    save_directory: Any,
    is_main_process: bool = True,
    state_dict: Any = None,
    *args: Any,
    **options: Any,
) -> None:
    """`save_pretrained` of a model that this file opened: this file is copied."""
    Path(save_directory).mkdir(parents=True, exist_ok=True)
    shutil.copy(__file__, save_directory)
    # Names that say in which repository they are stand for this file too.
    auto_map = {auto: name.rpartition("--")[2] for auto, name in model.config.auto_map.items()}
    model.config.auto_map = auto_map
    with as_new_files(model, [Path(__file__).name]), saving_state_dict(model, state_dict):
        type(model).save_pretrained(
            model, save_directory, is_main_process, state_dict, *args, **options
        )


@contextmanager
def as_new_files(model: Any, names: Collection[str]) -> Iterator[None]:
    """Let `save_pretrained` upload files that it finds, where it pushes to the hub.

    transformers uploads what is newer than its first look at the directory.
    """
    look = model._get_files_timestamps
    model._get_files_timestamps = lambda directory: {
        name: time for name, time in look(directory).items() if name not in names
    }
    try:
        yield
    finally:  # such calls may be one within another
        vars(model).pop("_get_files_timestamps", None)


class LowRankModel:
    """Opens the model of `AutoModel`."""

    auto_class = "AutoModel"

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, config: Any, **options: Any) -> Any:
        """A model of the class that transformers has for its configuration, with pairs inside."""
        quantizers_auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(QUANT_METHOD, LowRankConfig)
        quantizers_auto.AUTO_QUANTIZER_MAPPING.setdefault(QUANT_METHOD, LowRankQuantizer)
        model_class = getattr(modeling_auto, cls.auto_class)._model_mapping[type(config)]
        loaded = model_class.from_pretrained(path, *args, config=config, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.save_pretrained = MethodType(save_with_code, model)
        return loaded

    @classmethod
    def register_for_auto_class(cls, auto_class: Any) -> None:
        """Nothing: it is asked of every class that an Auto class finds in a directory."""


class LowRankForCausalLM(LowRankModel):
    auto_class = "AutoModelForCausalLM"


class LowRankForSequenceClassification(LowRankModel):
    auto_class = "AutoModelForSequenceClassification"


class LowRankForTokenClassification(LowRankModel):
    auto_class = "AutoModelForTokenClassification"


class LowRankForQuestionAnswering(LowRankModel):
    auto_class = "AutoModelForQuestionAnswering"


REMOTE_CLASSES = {
    "AutoModel": "LowRankModel",
    "AutoModelForCausalLM": "LowRankForCausalLM",
    "AutoModelForSequenceClassification": "LowRankForSequenceClassification",
    "AutoModelForTokenClassification": "LowRankForTokenClassification",
    "AutoModelForQuestionAnswering": "LowRankForQuestionAnswering",
}
