"""Code in a model directory, which opens the model where this package is not installed.

transformers runs it where the caller passes `trust_remote_code=True`. It is made from the sources of this
package when a model is saved, and imports torch and transformers alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wrapt

from lpa.model.auto import MODELS, QUANT_METHOD
from lpa.model.hub.code_flattening import FlatFile, flatten

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIGURATION = "configuration_lpa"
MODELING = "modeling_lpa"
# Of models of other classes with low-rank pairs inside.
LOW_RANK = "modeling_low_rank"

_HEADER = '''"""{title}, as one file.

Made by lpa {version} from its sources (Apache-2.0). `pip install lpa` brings the package, which opens this
directory without this file.
"""

import transformers

if tuple(map(int, transformers.__version__.split(".")[:2])) < {minimum}:
    raise ImportError(
        "this model needs transformers {minimum[0]}.{minimum[1]} or later; found "
        f"{{transformers.__version__}}. Two other ways: `pip install lpa` and `import lpa`, or a stock model "
        "by `lpa convert merge MODEL --out DENSE`"
    )

'''


def register_saving() -> None:
    """Let `save_pretrained` of any class write the code that a model needs to be opened elsewhere."""
    from transformers.modeling_utils import PreTrainedModel

    wrapt.wrap_function_wrapper(PreTrainedModel, "save_pretrained", _save_with_code)


def _save_with_code(
    wrapped: Callable[..., Any],
    model: "PreTrainedModel",
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> Any:
    from lpa.model.surgery.quantizer import saving_state_dict

    def save(
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: Any = None,
        *others: Any,
        **named: Any,
    ) -> Any:
        code = _with_code(model, save_directory) if is_main_process else nullcontext()
        with code, saving_state_dict(model, state_dict):
            return wrapped(save_directory, is_main_process, state_dict, *others, **named)

    return save(*arguments, **options)


@contextmanager
def _with_code(model: "PreTrainedModel", directory: str | Path) -> Iterator[None]:
    """Write the code that a model needs into a directory, and let its config.json name it.

    Within the context `model.save_pretrained` writes the rest. A stock model needs no code and gets none.
    """
    auto_map, files = _remote_code(model)
    if not files:
        yield
        return
    from lpa.model.surgery.remote_loading import as_new_files

    Path(directory).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (Path(directory) / name).write_text(text, encoding="utf-8")
    before = model.config.__dict__.get("auto_map")
    model.config.auto_map = dict(auto_map)
    try:
        with as_new_files(model, files):
            yield
    finally:
        if before is None:
            del model.config.auto_map
        else:
            model.config.auto_map = before


def needs_remote_code(model: "PreTrainedModel") -> bool:
    """Whether transformers alone cannot open the model once it is saved."""
    return bool(_remote_code(model)[1])


def _remote_code(model: "PreTrainedModel") -> tuple[dict[str, str], dict[str, str]]:
    """`auto_map` for config.json, and name -> text of the files that it names."""
    if model.config.model_type == "lpa":
        return lpa_code()
    method = getattr(getattr(model.config, "quantization_config", None), "quant_method", None)
    return low_rank_code() if method == QUANT_METHOD else ({}, {})


@cache
def lpa_code() -> tuple[dict[str, str], dict[str, str]]:
    """`auto_map` and files of models whose configuration is an `LPAConfig`."""
    configuration = flatten(CONFIGURATION, [("lpa.model.configuration_lpa", "LPAConfig")])
    roots = [("lpa.model.modeling_lpa", name) for name in MODELS.values()]
    modeling = flatten(MODELING, roots, beside=configuration)
    auto_map = {"AutoConfig": f"{CONFIGURATION}.LPAConfig"}
    auto_map |= {auto: f"{MODELING}.{name}" for auto, name in MODELS.items()}
    return auto_map, {
        f"{CONFIGURATION}.py": _file(configuration, "The configuration of LPA models", (5, 13)),
        f"{MODELING}.py": _file(modeling, "LPA models", (5, 13)),
    }


@cache
def low_rank_code() -> tuple[dict[str, str], dict[str, str]]:
    """`auto_map` and files of models of other classes with low-rank pairs inside.

    There is no `AutoConfig`: the configuration is that of transformers.
    """
    from lpa.model.surgery.remote_loading import REMOTE_CLASSES

    module = "lpa.model.surgery.remote_loading"
    flat = flatten(LOW_RANK, [(module, name) for name in REMOTE_CLASSES.values()])
    auto_map = {auto: f"{LOW_RANK}.{name}" for auto, name in REMOTE_CLASSES.items()}
    return auto_map, {f"{LOW_RANK}.py": _file(flat, "Models with low-rank pairs inside", (5, 18))}


def _file(flat: FlatFile, title: str, minimum: tuple[int, int]) -> str:
    """The text of a file that needs a version of transformers, by its first two numbers."""
    return _HEADER.format(title=title, version=version("lpa"), minimum=minimum) + flat.body
