"""Perplexity of a trained model on prepared data or on a text file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lpa.data.dataset import split_tokens
from lpa.data.manifest import SPLITS, Manifest
from lpa.data.sources import read_documents
from lpa.data.tokenizer import tokenizer_hash
from lpa.errors import UserError
from lpa.train.evaluate import Perplexity, total_loss
from lpa.train.loading import load_model


def evaluate_perplexity(
    model_path: Path,
    data: Path,
    *,
    split: str | None = None,
    context: int | None = None,
    batch_size: int = 8,
    device: str = "auto",
    threads: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Perplexity:
    """Score every token but the first, once each, in windows that do not overlap.

    Args:
        model_path: a run directory or a Hugging Face directory.
        data: a prepared data directory, or a file that `read_documents` reads; a text file is one
            document.
        split: of a prepared data directory; by default test where there is one, else validation.
        context: tokens per window; by default as many positions as the model was made for.
        threads: CPU threads; 0 leaves it to torch. The same number gives the same bits.
        report: called with tokens scored and tokens in all.

    Raises:
        UserError: no model or no data there, or the data was made with another tokenizer.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size: got {batch_size}; expected at least 1")
    if threads:
        torch.set_num_threads(threads)
    model, tokenizer = load_model(model_path, device)
    positions = model.config.max_position_embeddings
    if context is None:
        context = positions
    if not 1 <= context <= positions:
        raise UserError(
            f"--context: got {context}; expected from 1 to {positions}, what the model was made for"
        )
    if data.is_dir():
        tokens, words, size = _prepared(data, split, tokenizer)
    else:
        tokens, words, size = _text(data, tokenizer)
    if len(tokens) < 2:
        raise UserError(
            f"{data}: got {len(tokens)} token; expected at least 2, one to predict from"
        )
    total = total_loss(
        model,
        tokens,
        context=context,
        batch_size=batch_size,
        device=model.device,
        report=report,
    )
    return Perplexity.from_total(total, tokens=len(tokens) - 1, words=words, bytes=size)


def _prepared(directory: Path, split: str | None, tokenizer: Any) -> tuple[np.ndarray, int, int]:
    """Tokens, words and bytes of a split."""
    manifest = Manifest.load(directory)
    if manifest.tokenizer_sha256 != tokenizer_hash(tokenizer):
        raise UserError(
            f"--data {directory}: was made with another tokenizer than the model's "
            f"(vocabulary {manifest.vocab_size} there, {len(tokenizer)} here); give the text itself, "
            "or prepare it with --tokenizer MODEL"
        )
    if split is None:
        present = [name for name in reversed(SPLITS) if name in manifest.splits]
        split = present[0]
    contents = manifest.split(split)
    return split_tokens(directory, split), contents.words, contents.bytes


def _text(path: Path, tokenizer: Any) -> tuple[np.ndarray, int, int]:
    """Tokens, words and bytes of a file, each document followed by the end-of-text token."""
    ids: list[int] = []
    words = size = 0
    for document in read_documents([path]):
        encoding = tokenizer.backend_tokenizer.encode(document, add_special_tokens=False)
        ids += [*encoding.ids, tokenizer.eos_token_id]
        words += len(document.split())
        size += len(document.encode())
    if not ids:
        raise UserError(f"{path}: no text")
    return np.array(ids, dtype=np.int64), words, size
