"""Trained models with their tokenizers, on a device."""

from pathlib import Path
from typing import Any

from lpa.data.tokenizer import load_model_tokenizer
from lpa.device import resolve_device, resolve_dtype
from lpa.model.loading import load_model, model_directory


def load_with_tokenizer(
    path: Path, device: str = "auto", *, dtype: str = "float32", attention: str | None = None
) -> tuple[Any, Any]:
    """A causal language model in evaluation mode, and its tokenizer.

    Args:
        path: a run directory or a Hugging Face directory.
        device: `auto`, `cpu`, `cuda`, …
        dtype: of weights and arithmetic: `float32`, `bfloat16` or `auto` (see `resolve_dtype`).
        attention: an attention implementation of transformers; None: its choice.

    Raises:
        UserError: there is none at `path`, it is damaged, or there is no such device.
    """
    directory = model_directory(path)
    target = resolve_device(device)
    model: Any = load_model(
        directory, dtype=resolve_dtype(dtype, target.type), attn_implementation=attention
    )
    return model.to(target), load_model_tokenizer(directory, model.config)
