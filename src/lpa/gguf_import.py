"""A GGUF file as a model of transformers, for what is to be done with it in torch."""

import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lpa.data.tokenizer import check_vocabulary, from_pretrained, vocabulary_size
from lpa.errors import UserError
from lpa.model.weight_checks import (
    as_user_error,
    check_missing_keys,
    limit_model_size,
    silence_loading,
)
from lpa.model.weights import ADAPTER, ADAPTER_REFUSED

_MAGIC = b"GGUF"
# The names under which llama.cpp splits every digit off before it splits as GPT-2 does (llama-vocab.cpp).
_SPLITS_DIGITS = ("smollm", "starcoder", "refact", "command-r")


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
        splitting = _content(reader, "tokenizer.ggml.pre")
        _check_sizes(reader)
        tokenizer: Any = from_pretrained(**source)
        model, found = AutoModelForCausalLM.from_pretrained(
            **source,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        check_missing_keys(model, found, UserError)
    if splitting in _SPLITS_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    _forget_quantization(model)
    check_vocabulary(vocabulary_size(tokenizer), model.config, f"{where}: its tokenizer")
    return model.eval(), tokenizer


def gguf_elements(path: Path, field: str = "model") -> int:
    """Numbers of all tensors of a GGUF file together, by its header.

    Raises:
        UserError: as `load_gguf`, as far as the header tells.
    """
    where = f"{field} {path}"
    gguf = _reading_package(path, where)
    with _refusals(where):
        reader = gguf.GGUFReader(path)
        _check_sizes(reader)
        return sum(int(tensor.n_elements) for tensor in reader.tensors)


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


def _content(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _forget_quantization(model: PreTrainedModel) -> None:
    """The weights are plain float32 by now; the model would still refuse to be saved."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
