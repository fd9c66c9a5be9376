"""A GGUF file as a model of transformers, for what is to be done with it in torch."""

import copy
import math
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lpa.data.document_limits import begin_with_bos
from lpa.data.model_tokenizer import check_model_tokenizer
from lpa.data.tokenizer import as_generic, from_pretrained
from lpa.errors import UserError
from lpa.model.weight_checks import (
    as_user_error,
    check_missing_keys,
    limit_model_size,
    silence_loading,
)
from lpa.model.weights import ADAPTER, ADAPTER_REFUSED

_MAGIC = b"GGUF"
# How llama.cpp reads names of `tokenizer.ggml.pre` (llama-vocab.cpp): by GPT-2's rule, by that rule after
# every digit is split off, and with whole words of the vocabulary before any merge, after a first token.
_SPLITS_AS_GPT2 = (
    *("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat"),
    *("roberta-bpe", "exaone4", "mpt", "olmo", "jais"),
)
_SPLITS_DIGITS = (
    *("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
)
_KEEPS_WORDS = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    *("jina-v5-nano", "tekken"),
)
# Keys of the metadata -> the fields of configurations that hold them, one for each architecture. transformers
# reads a key for some architectures and leaves the others their defaults.
_FIELDS = {
    "attention.layer_norm_epsilon": (
        *("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    ),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.sliding_window": ("sliding_window",),
    "attention.shared_kv_layers": ("num_kv_shared_layers",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "ssm.dt_b_c_rms": (),  # norms without weights, of Falcon Mamba
}
# Layers of those releases of Gemma whose queries llama.cpp scales by another width than a head's.
_GEMMA_27B = {"gemma2": 46, "gemma3_text": 62}
# Divisors of the frequencies of RoPE, one for each pair of features.
_ROPE_DIVISORS = "rope_freqs.weight"
# Keys of `{architecture}.rope.scaling` -> fields of transformers' `rope_parameters`.
_ROPE_FIELDS = {
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
# What every release of Llama 3 with scaled positions has, beside its factor. A file holds the divisors that
# follow from them.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def is_gguf(path: Path) -> bool:
    """Whether a path means a GGUF file, there or not, rather than a directory."""
    return path.is_file() or path.suffix == ".gguf"


def load_gguf(path: Path, field: str = "model") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a GGUF file, in float32 and in evaluation mode.

    By transformers' own reader, which also turns llama.cpp's order of query and key rows back. Quantized
    weights become the numbers that they stand for; the model is an ordinary one that trains and saves.

    Args:
        field: what to call the file in messages.

    Raises:
        UserError: no such file, no GGUF file, a damaged one, an architecture that transformers does
            not read, or the package `gguf` is missing.
    """
    where = f"{field} {path}"
    gguf = _reading_package(path, where)
    # Relative paths would be looked for on the hub too.
    directory = path.parent.resolve()
    if (directory / ADAPTER).is_file():
        raise UserError(f"{where}: beside it, {ADAPTER_REFUSED}")
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": directory,
        "gguf_file": path.name,
        "local_files_only": True,
    }
    # The reader fails in numpy's words on a file that ends early, transformers in its own on what it does
    # not know. A byte holds at most eight weights, and tied ones are registered twice.
    with (
        _refusals(where),
        silence_loading(),
        limit_model_size(16 * path.stat().st_size, 2**20, "its metadata", "its tensors hold"),
    ):
        reader = gguf.GGUFReader(path)
        _check_sizes(reader)
        _check_splitting(reader)
        tokenizer = _apply_splitting(from_pretrained(**source), reader)
        config = AutoConfig.from_pretrained(**source, trust_remote_code=False)
        _set_fields(config, reader)
        _set_rope(config, reader)
        _set_rope_scaling(config, reader)
        model, found = AutoModelForCausalLM.from_pretrained(
            **source,
            config=config,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        check_missing_keys(model, found, UserError)
        _check_all_are_read(model, reader)
    _forget_quantization(model)
    check_model_tokenizer(tokenizer, model.config, f"{where}: its tokenizer")
    return model.eval(), tokenizer


@dataclass(frozen=True)
class GGUFHeader:
    """What a plan needs of a GGUF file.

    Attributes:
        elements: numbers of all tensors together.
        positions: how many tokens the model was made to read at once; None where the file does not say.
    """

    elements: int
    positions: int | None


def read_gguf_header(path: Path, field: str = "model") -> GGUFHeader:
    """The size of a model by its GGUF file, of which no tensor is read.

    Raises:
        UserError: as `load_gguf`, as far as the header tells.
    """
    where = f"{field} {path}"
    gguf = _reading_package(path, where)
    with _refusals(where):
        reader = gguf.GGUFReader(path)
        _check_sizes(reader)
        positions = _content(reader, f"{_content(reader, 'general.architecture')}.context_length")
        return GGUFHeader(sum(int(tensor.n_elements) for tensor in reader.tensors), positions)


def _reading_package(path: Path, where: str) -> Any:
    """The package `gguf`, for a file that begins as one of its format does."""
    if not path.is_file():
        raise UserError(f"{where}: no such file; expected a GGUF file")
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise UserError(f"{where}: is not a GGUF file")
    try:
        import gguf
    except ImportError as error:
        raise UserError("gguf: the package is not installed; pip install 'lpa[gguf]'") from error
    return gguf


def _refusals(where: str) -> AbstractContextManager[None]:
    return as_user_error(f"{where}: cannot be read as GGUF")


def _check_sizes(reader: Any) -> None:
    """transformers reads no tensor of a layer beyond the count, and believes any number of positions."""
    architecture = _content(reader, "general.architecture")
    count = _content(reader, f"{architecture}.block_count")
    numbers = (re.match(r"blk\.(\d+)\.", tensor.name) for tensor in reader.tensors)
    there = 1 + max((int(number[1]) for number in numbers if number), default=-1)
    if count is not None and count != there:
        raise UserError(f"block_count: got {count}; the file has tensors of {there} layers")
    if _content(reader, f"{architecture}.context_length") == 0:
        raise UserError("context_length: got 0; expected at least 1")


def _check_splitting(reader: Any) -> None:
    """Refuse rules by which text is split that are not known; transformers would take GPT-2's."""
    if _content(reader, "tokenizer.ggml.model") != "gpt2":  # byte-level BPE of any kind
        return
    known = {*GGUF_PRE_TOKENIZER_SPLITS, *_SPLITS_AS_GPT2, *_SPLITS_DIGITS}
    name = _content(reader, "tokenizer.ggml.pre")
    if name not in known:
        raise UserError(
            f"tokenizer.ggml.pre: got {name!r}, by which text would be split in a way that is not known "
            f"here; expected one of {', '.join(sorted(known))}"
        )


def _apply_splitting(tokenizer: Any, reader: Any) -> Any:
    """The tokenizer with what llama.cpp does by the name of its rule and transformers leaves out."""
    backend, name = tokenizer.backend_tokenizer, _content(reader, "tokenizer.ggml.pre")
    if name in _SPLITS_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if name in _KEEPS_WORDS:
        backend.model.ignore_merges = True
        is_said = _content(reader, "tokenizer.ggml.add_bos_token") is not None
        if not is_said and tokenizer.bos_token is not None:
            begin_with_bos(tokenizer)
    return as_generic(tokenizer)


def _set_fields(config: PreTrainedConfig, reader: Any) -> None:
    """Write into a configuration what the metadata says and transformers does not read.

    Raises:
        UserError: the configuration cannot say it.
    """
    architecture = _content(reader, "general.architecture")
    for key, fields in _FIELDS.items():
        value = _content(reader, f"{architecture}.{key}")
        if not value:  # zero: without
            continue
        field = next((field for field in fields if hasattr(config, field)), None)
        if field is None:
            raise UserError(f"{key}: got {value}, which is not read for {config.model_type}")
        if not math.isclose(value, getattr(config, field) or 0, rel_tol=1e-6):  # of float32
            setattr(config, field, value)
    pattern = _content(reader, f"{architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, list):
        layers = getattr(config, "layer_types", None) or []
        if [bool(slides) for slides in pattern] != [kind == "sliding_attention" for kind in layers]:
            raise UserError(
                f"attention.sliding_window_pattern: got {pattern}; expected that of {layers}"
            )
    if hasattr(config, "query_pre_attn_scalar"):  # no key says it
        is_27b = config.num_hidden_layers == _GEMMA_27B.get(config.model_type)
        width = config.hidden_size // config.num_attention_heads if is_27b else config.head_dim
        config.query_pre_attn_scalar = width


def _set_rope(config: PreTrainedConfig, reader: Any) -> None:
    """Write into a configuration the base of RoPE and how many features of a head it rotates.

    Raises:
        UserError: another number of features than the architecture can rotate.
    """
    rope = getattr(config, "rope_parameters", None)
    if not rope:
        return
    prefix = f"{_content(reader, 'general.architecture')}.rope"
    by_name = {
        "freq_base": rope.get("full_attention", rope),
        "freq_base_swa": rope.get("sliding_attention"),
    }
    for name, parameters in by_name.items():
        base = _content(reader, f"{prefix}.{name}")
        if base and parameters:
            parameters["rope_theta"] = base
    count = _content(reader, f"{prefix}.dimension_count")
    if not count or "full_attention" in rope:
        return
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if "partial_rotary_factor" in rope:
        rope["partial_rotary_factor"] = count / width
    rotated = int(width * rope.get("partial_rotary_factor", 1))
    if count != rotated:
        raise UserError(
            f"rope.dimension_count: got {count}; expected {rotated}, which {config.model_type} rotates"
        )


def _set_rope_scaling(config: PreTrainedConfig, reader: Any) -> None:
    """Write into a configuration how positions are scaled, which transformers does not read.

    Raises:
        UserError: they are scaled in a way that transformers cannot express.
    """
    scaling = _rope_scaling(reader) | _llama3_scaling(config, reader)
    if not scaling:
        return
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "default":
        raise UserError(
            f"rope.scaling.type: got {scaling['rope_type']}, which is not read for {config.model_type}"
        )
    config.rope_parameters = rope | scaling


def _rope_scaling(reader: Any) -> dict[str, Any]:
    """What the metadata says of scaled positions, as fields of `rope_parameters`."""
    architecture = _content(reader, "general.architecture")
    prefix = f"{architecture}.rope.scaling."
    given = {
        key.removeprefix(prefix): _content(reader, key)
        for key in reader.fields
        if key.startswith(prefix)
    }
    given.pop("finetuned", None)  # of the history of the model
    # llama.cpp takes linear where there is a factor alone, under either name.
    kind = given.pop("type", "linear")
    factor = given.pop("factor", None) or _content(reader, f"{architecture}.rope.scale_linear")
    if kind == "none" or (kind == "linear" and factor in (None, 0, 1)):
        return {}
    if kind not in ("linear", "yarn"):
        raise UserError(f"rope.scaling.type: got {kind}; expected linear or yarn")
    unknown = given.keys() - (_ROPE_FIELDS if kind == "yarn" else {"original_context_length"})
    if unknown or not factor:
        name = min(unknown, default="factor")
        raise UserError(
            f"rope.scaling.{name}: got {given.get(name)}, with which {kind} is not read"
        )
    fields = {_ROPE_FIELDS[name]: value for name, value in given.items() if kind == "yarn"}
    return {"rope_type": kind, "factor": float(factor), **fields}


def _llama3_scaling(config: PreTrainedConfig, reader: Any) -> dict[str, Any]:
    """The scaling of Llama 3 that the divisors of frequencies follow from, as fields of `rope_parameters`.

    Raises:
        UserError: they follow from another.
    """
    tensor = next((tensor for tensor in reader.tensors if tensor.name == _ROPE_DIVISORS), None)
    if tensor is None:
        return {}
    divisors = torch.tensor(tensor.data, dtype=torch.float32)
    if (divisors == 1).all():
        return {}
    scaling = {"rope_type": "llama3", "factor": float(divisors.max()), **_LLAMA3}
    if config.model_type == "llama":
        scaled: Any = copy.deepcopy(config)
        width, theta = scaled.head_dim, scaled.rope_parameters["rope_theta"]
        frequencies = theta ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
        scaled.rope_parameters |= scaling
        expected, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled)
        # The divisors were computed in float64 and rounded.
        if divisors.shape == expected.shape and torch.allclose(
            frequencies / divisors, expected, rtol=1e-4, atol=0
        ):
            return scaling
    raise UserError(
        f"{_ROPE_DIVISORS}: holds divisors of RoPE's frequencies that are not those of Llama 3; expected 1 "
        "for all"
    )


def _check_all_are_read(model: PreTrainedModel, reader: Any) -> None:
    """transformers leaves out tensors that it has no place for, without a word.

    Raises:
        UserError: naming the first.
    """
    architecture = _content(reader, "general.architecture")
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    places = get_gguf_hf_weights_map(model, processor)
    unread = [
        tensor.name
        for tensor in reader.tensors
        # Experts that are stacked into one parameter have no suffix there.
        if not {tensor.name, tensor.name.removesuffix(".weight")} & {*places, _ROPE_DIVISORS}
    ]
    if unread:
        raise UserError(
            f"has {min(unread)}, for which {type(model).__name__} of transformers has no place"
        )


def _content(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _forget_quantization(model: PreTrainedModel) -> None:
    """The weights are plain float32 by now; the model would still refuse to be saved."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
