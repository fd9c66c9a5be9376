"""The one way in for models: a Hugging Face directory becomes a configuration or a model, or is refused.

transformers warns of much that makes a result wrong (weights that are missing start at random), follows
what a directory says of other files, and asks whether to run a directory's code. Here such a directory is
refused, in one line that names the file. Nothing of it is executed or unpickled, and nothing is fetched.
"""

import os
import re
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpa.errors import UserError
from lpa.model.auto import QUANT_METHOD
from lpa.model.weight_checks import (
    as_user_error,
    check_missing_keys,
    check_unexpected_keys,
    is_quantized,
    limit_model_size,
    quantization_method,
    silence_loading,
    ties_embeddings,
)
from lpa.model.weights import ADAPTER, ADAPTER_REFUSED, Weights, open_weights
from lpa.storage.records import read_json
from lpa.storage.run_directory import CONFIG_FILE, FINAL_DIRECTORY

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_CONFIG = "config.json"
_GENERATION = "generation_config.json"

# No model has so many layers, heads or experts; lists of them are made before their weights are known.
_MAX_PARTS = 2**16
_PARTS = re.compile(r"(layers?|blocks?|heads?|experts?)$")
# Keys of config.json by which transformers would read other files than those that are checked here, or
# fetch code.
_REDIRECTIONS = ("configuration_files", "transformers_weights")
# What a repository on the hub may be called, and a run below `runs` mostly is not.
_HUB_NAME = re.compile(r"(?!runs/)[\w.-]+(/[\w.-]+)?")
# Encoders of which transformers has no masked language model.
_ENCODERS = ("bert-generation",)
_IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")


def model_directory(path: str | Path, field: str = "model") -> Path:
    """The Hugging Face directory that a path means: `final/` of a run, or the path itself.

    Args:
        field: what to call the path in messages.

    Raises:
        UserError: there is no model at `path`.
    """
    path = Path(path)
    for directory in (path / FINAL_DIRECTORY, path):
        if (directory / _CONFIG).is_file():
            return directory
    if path.is_file():
        raise UserError(
            f"{field} {path}: is a file; expected a run or a Hugging Face directory, which `lpa convert "
            "factorize` makes of a GGUF file"
        )
    if not path.is_dir():
        fetch = f"hf download {path} --local-dir {path.name}"
        hint = (
            f"; a model on the hub is fetched first: {fetch}"
            if _HUB_NAME.fullmatch(str(path))
            else ""
        )
        raise UserError(
            f"{field} {path}: no such directory; expected a run or a Hugging Face directory{hint}"
        )
    if (path / CONFIG_FILE).is_file():
        raise UserError(
            f"{field} {path}: a run that has not finished (no final/); resume it: lpa train … --resume"
        )
    if (path / ADAPTER).is_file():
        raise UserError(f"{field} {path}: {ADAPTER_REFUSED}")
    raise UserError(
        f"{field} {path}: has no config.json; expected a run or a Hugging Face directory"
    )


def config_fields(path: Path, field: str = "model") -> dict[str, Any]:
    """What a config.json says, as long as it is an object and names no other files.

    Args:
        path: the file, or its directory.

    Raises:
        UserError: it is damaged, or no machine could hold the model.
    """
    file = path / _CONFIG if path.is_dir() else path
    fields = _read(file, field)
    for name in _REDIRECTIONS:
        if fields.get(name) is not None:
            raise UserError(
                f"{_where(path, field)}: {name}: got {fields[name]!r}; expected no such key, as only the "
                "standard files of the directory are opened"
            )
    _check_values(fields, _where(path, field))
    return fields


def open_config(path: Path, field: str = "model", **changes: Any) -> "PreTrainedConfig":
    """The configuration of a directory, of a class of this package or of transformers.

    Args:
        path: the directory, or the config.json in it.
        field: what to call it in messages.
        changes: fields to set.

    Raises:
        UserError: it is damaged, not accepted by its class, or needs code that transformers has not.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    fields, where = config_fields(path, field), _where(path, field)
    kind = fields.get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"{where}: model_type: got {kind!r}; expected a name such as llama")
    if kind not in CONFIG_MAPPING:
        if "auto_map" in fields:
            raise UserError(
                f"{where}: model_type {kind} needs Python code from the directory (auto_map), which is never "
                "run; expected a model type of transformers"
            )
        raise UserError(
            f"{where}: model_type: got {kind!r}; expected one that the installed transformers has"
        )
    with as_user_error(where), silence_loading():
        return AutoConfig.from_pretrained(
            path, trust_remote_code=False, local_files_only=True, **changes
        )


def open_causal_config(path: Path, field: str = "model") -> "PreTrainedConfig":
    """Open a configuration as `open_config` does, of a directory that holds a causal language model.

    Raises:
        UserError: as `open_config`, or it holds another kind of model.
    """
    config = open_config(path, field)
    _auto_class(config, False, path, field)
    return config


def open_classifier_config(path: Path, **changes: Any) -> "PreTrainedConfig":
    """Open a configuration as `open_config` does, of a model of which there is a sequence classifier.

    Raises:
        UserError: as `open_config`, or there is none.
    """
    config = open_config(path, **changes)
    _auto_class(config, True, path, "model")
    return config


def lpa_config(fields: dict[str, Any], where: str) -> Any:
    """The `LPAConfig` of fields.

    Args:
        where: the file that they come from, for messages.

    Raises:
        UserError: a field is not accepted, or they describe another class of model.
    """
    from lpa.model.configuration_lpa import LPAConfig

    if fields.get("model_type") != LPAConfig.model_type:
        raise UserError(f"{where}: model_type: got {fields.get('model_type')!r}; expected lpa")
    with as_user_error(where), silence_loading():
        return LPAConfig.from_dict(fields)


def load(path: str | Path, **options: Any) -> "PreTrainedModel":
    """Loads a causal language model from a directory that this package or transformers wrote.

    Args:
        path: a Hugging Face directory, or a run.
        options: for `from_pretrained`; the dtype is that of the file unless given.

    Returns:
        The model, in evaluation mode, on the CPU unless the options say otherwise.

    Raises:
        UserError: there is no model, it is damaged, or its weights are not those of its configuration.

    Example:
        model = lpa.load("runs/lpa", dtype="bfloat16")
    """
    if "torch_dtype" in options:  # its earlier name, which transformers takes too
        options.setdefault("dtype", options.pop("torch_dtype"))
    return load_model(path, **options)


def load_model(
    path: str | Path,
    *,
    field: str = "model",
    config: "PreTrainedConfig | None" = None,
    classify: bool = False,
    dtype: Any = "auto",
    **options: Any,
) -> "PreTrainedModel":
    """A model in evaluation mode, with every weight from its files.

    Args:
        path: a run or a Hugging Face directory.
        field: what to call it in messages.
        config: one that `open_config` gave for it.
        classify: a sequence classifier, whose head is newly initialized, instead of a causal language model.
        dtype: of the weights; `auto` is that of the files.
        options: for `from_pretrained`.

    Raises:
        UserError: it is damaged; tensors are missing, left over or of another shape, by name; or it holds
            what is not opened, such as pickles, adapters and code.
    """
    directory = model_directory(path, field)
    config = config or open_config(directory, field)
    auto = _auto_class(config, classify, directory, field)
    if not classify:
        generation_fields(directory, field)
    weights = open_weights(directory, field)
    where = f"{field} {directory}: cannot be loaded"
    with as_user_error(where), silence_loading(), _size_of(weights, config):
        model, found = auto.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            # Reported with the rest below.
            ignore_mismatched_sizes=True,
            **options,
        )
    check_missing_keys(model, found, partial(weights.error, weights.name), new_head=classify)
    check_unexpected_keys(model, found, weights, new_head=classify)
    if not classify and not ties_embeddings(model):
        # Or whoever builds the model again by its configuration would lose the head of the file.
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False
    return model


def positions_of(config: Any) -> int | None:
    """How many tokens a model was made to read at once; None where its configuration does not say."""
    # GPT-2's other name for it is mapped to this one.
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) else None


def new_model(directory: Path, config: "PreTrainedConfig", *, classify: bool = False) -> Any:
    """A model of a configuration that `open_config` gave for a directory, its weights newly drawn.

    Raises:
        UserError: there is no such model, its weights are quantized, or it does not fit into memory.
    """
    from lpa.model.surgery.factorize import draw_low_rank_modules

    auto = _auto_class(config, classify, directory, "model")
    check_drawable(directory, config)
    where = f"{_where(directory, 'model')}: cannot be built"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with (
        as_user_error(where),
        silence_loading(),
        limit_model_size(memory // 4, 2**20, _CONFIG, "the memory of this machine holds"),
    ):
        model = auto.from_config(config, dtype="float32", trust_remote_code=False)
        # Only `from_pretrained` looks at it.
        if quantization_method(config) == QUANT_METHOD:
            draw_low_rank_modules(model, config.quantization_config.get("ranks"))
    return model


def check_drawable(directory: Path, config: "PreTrainedConfig") -> None:
    """Refuse a configuration of quantized weights, of which `new_model` could make a dense model alone.

    Raises:
        UserError: naming the method.
    """
    if is_quantized(config):
        raise UserError(
            f"{_where(directory, 'model')}: quantization_config.quant_method: got "
            f"{quantization_method(config)!r}; expected {QUANT_METHOD} or no quantization_config, as new "
            "weights are not quantized"
        )


def _auto_class(config: Any, classify: bool, directory: Path, field: str) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if classify else AutoModelForCausalLM
    if type(config) not in auto._model_mapping:
        what = "sequence classifier" if classify else "causal language model"
        raise UserError(
            f"{_where(directory, field)}: model_type {config.model_type}: transformers has no {what} of it"
        )
    if not classify:
        _check_causal(config, _where(directory, field))
    return auto


def _check_causal(config: Any, where: str) -> None:
    """Refuse an encoder: its causal class attends to later tokens unless a field makes it a decoder."""
    from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    # Of an encoder-decoder, the causal class takes the decoder, whatever the configuration says.
    masked = type(config) in AutoModelForMaskedLM._model_mapping
    seq2seq = type(config) in AutoModelForSeq2SeqLM._model_mapping
    if seq2seq or not (masked or config.model_type in _ENCODERS):
        return
    name = "causal" if config.model_type == "xlm" else "is_decoder"
    if not getattr(config, name, True):
        raise UserError(
            f"{where}: {name}: got false; expected true, as {config.model_type} otherwise attends to later "
            "tokens and is no causal language model"
        )


def _where(path: Path, field: str) -> str:
    return f"{field} {path / _CONFIG if path.is_dir() else path}"


def _read(path: Path, field: str) -> dict[str, Any]:
    try:
        return read_json(path, dict[str, Any])
    except UserError as error:
        raise UserError(f"{field} {error}") from error


def _check_values(value: Any, where: str, key: str = "") -> None:
    """Refuse numbers that nothing can be made of, and implementations that would be fetched."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_values(item, where, name)
    elif isinstance(value, list):
        for item in value:
            _check_values(item, where, key)
    elif isinstance(value, int):
        if _PARTS.search(key) and value > _MAX_PARTS:
            raise UserError(f"{where}: {key}: got {value}; expected at most {_MAX_PARTS}")
    elif isinstance(value, str) and key in _IMPLEMENTATIONS and "/" in value:
        raise UserError(
            f"{where}: {key}: got {value!r}; code on the hub is never run; expected a name such as sdpa"
        )


def generation_fields(directory: Path, field: str = "model") -> dict[str, Any]:
    """What a generation_config.json says; nothing where there is none.

    Raises:
        UserError: it is damaged; transformers takes other values then, without a word.
    """
    from transformers import GenerationConfig

    path = directory / _GENERATION
    if not path.is_file():
        return {}
    where = f"{field} {path}"
    fields = _read(path, field)
    for name, default in GenerationConfig._get_default_generation_params().items():
        value = fields.get(name)
        kinds = (bool,) if isinstance(default, bool) else (int, float)
        if value is not None and isinstance(default, int | float) and not isinstance(value, kinds):
            accepted = (
                "true or false" if isinstance(default, bool) else f"a number such as {default}"
            )
            raise UserError(f"{where}: {name}: got {value!r}; expected {accepted}")
    with as_user_error(where), silence_loading():
        GenerationConfig.from_dict(fields)
    return fields


def _size_of(weights: Weights, config: Any) -> AbstractContextManager[None]:
    """Stop the building of a model that is far larger than its weights.

    transformers builds on the meta device, then allocates what the files have not. A model registers each
    matrix once, and tied ones twice; a byte of quantized weights holds at most eight numbers.
    """
    elements = 16 * weights.bytes if is_quantized(config) else 2 * weights.elements + 2**20
    return limit_model_size(
        elements, 4 * len(weights.tensors) + 10_000, _CONFIG, f"{weights.name} holds"
    )
