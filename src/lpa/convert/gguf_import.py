"""A GGUF file as a model of transformers, for what is to be done with it in torch."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lpa.errors import UserError

_MAGIC = b"GGUF"
# The names under which llama.cpp splits every digit off before it splits as GPT-2 does (llama-vocab.cpp).
_SPLITS_DIGITS = ("smollm", "starcoder", "refact", "command-r")


def load_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a GGUF file, in float32 and in evaluation mode.

    By transformers' own reader, which also turns llama.cpp's order of query and key rows back. Quantised
    weights become the numbers that they stand for; the model is an ordinary one that trains and saves.

    Raises:
        UserError: no such file, no GGUF file, a damaged one, an architecture that transformers does
            not read, or the package `gguf` is missing.
    """
    if not path.is_file():
        raise UserError(f"model {path}: no such file; expected a GGUF file")
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise UserError(f"model {path}: is not a GGUF file")
    try:
        import gguf
    except ImportError as error:
        raise UserError("gguf: the package is not installed; pip install 'lpa[gguf]'") from error
    try:
        reader = gguf.GGUFReader(path)
        splitting = _text(reader, "tokenizer.ggml.pre")
        # Relative paths would be looked for on the hub too.
        source = {"pretrained_model_name_or_path": path.parent.resolve(), "gguf_file": path.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The reader fails in numpy's words on a file that ends early, transformers in its own on what it
    # does not know.
    except (ValueError, KeyError, IndexError, NotImplementedError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"model {path}: cannot be read as GGUF ({reason})") from error
    if splitting in _SPLITS_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    _forget_quantization(model)
    return model.eval(), tokenizer


def _text(reader: Any, key: str) -> str | None:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _forget_quantization(model: PreTrainedModel) -> None:
    """The weights are plain float32 by now; the model would still refuse to be saved."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
