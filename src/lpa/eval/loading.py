"""Trained models with their tokenizers, on a device."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lpa.data.document_limits import document_bos_token
from lpa.data.model_tokenizer import load_model_tokenizer
from lpa.device import resolve_device, resolve_dtype
from lpa.errors import LPAWarning
from lpa.eval.tokenized_text import check_text
from lpa.model.loading import load_model, model_directory, open_causal_config


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
    tokenizer = load_model_tokenizer(directory, model.config)
    bos = document_bos_token(tokenizer)
    if model.config.model_type == "lpa" and model.config.bos_token_id is None and bos is not None:
        warnings.warn(
            f"model {directory}: its tokenizer puts token {bos} before a text, and its config.json names no "
            "bos_token_id, so it may never have seen that token; prepare the data again to train with it",
            LPAWarning,
            stacklevel=2,
        )
    return model.to(target), tokenizer


def check_texts(models: Sequence[Path], sources: Sequence[str], split: str | None) -> None:
    """Refuse what would end the scoring of texts one after another, before any is scored.

    Args:
        models: run directories or Hugging Face directories.
        sources: see `check_text`.
        split: of prepared data directories.

    Raises:
        UserError: a text or a tokenizer cannot be read, or they do not fit.
    """
    tokenizers = []
    for path in models:
        directory = model_directory(path)
        tokenizers.append(load_model_tokenizer(directory, open_causal_config(directory)))
    for source in sources:
        check_text(source, split, tokenizers)
