"""The loss of every token of a text, in windows of a model's context, added up by document."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lpa.callbacks import StepCallback
from lpa.eval.tokenized_text import TokenizedText
from lpa.scoring.losses import token_losses
from lpa.scoring.windows import Window, batch_windows, sequence_windows

MODES = ("blocks", "sliding", "documents")

# With fewer documents than this, resampling them says little of the variance; blocks do better.
_MIN_DOCUMENTS = 30


@dataclass
class Scores:
    """Losses by the parts of a text that are resampled for the standard error.

    Attributes:
        loss: (parts,), summed negative log-likelihood in nats.
        tokens: (parts,), how many tokens were scored.
        bytes: (parts,), of UTF-8; None where it is not known.
        resampling_unit: what a part is, in words.
    """

    loss: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray | None
    resampling_unit: str


def iter_windows(text: TokenizedText, *, mode: str, seq_len: int, stride: int) -> Iterator[Window]:
    """Windows in which every token that another comes before is a scored target once.

    Args:
        text: what to score.
        mode: `blocks` and `sliding` go through all documents as one sequence; `documents` shows each
            alone.
        seq_len: most inputs of a window.
        stride: how far one window begins after the other, in `sliding`, and in `documents` that
            are longer than a window. In `blocks` it is the context.

    A document alone that has no beginning-of-sequence token begins with the end-of-text token, as after
    another document.
    """
    if mode == "documents":
        begin = 0
        for end in text.ends:
            has_bos = text.tokens[begin] == text.bos_token_id
            first = None if has_bos else text.eos_token_id
            yield from sequence_windows(
                text.tokens[begin:end], seq_len=seq_len, stride=stride, first=first, offset=begin
            )
            begin = int(end)
    else:
        step = seq_len if mode == "blocks" else stride
        yield from sequence_windows(text.tokens, seq_len=seq_len, stride=step)


def score(
    model: Any,
    text: TokenizedText,
    *,
    mode: str,
    seq_len: int,
    stride: int,
    batch_size: int,
    on_progress: StepCallback = lambda done, total: None,
) -> Scores:
    """Score a text (see `iter_windows`); float32 losses of single tokens, added up in float64.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        batch_size: windows per forward pass.
        on_progress: called with tokens scored and tokens in all.
    """
    ends, resampling_unit = _resampling_parts(text, seq_len)
    loss, tokens = np.zeros(len(ends)), np.zeros(len(ends), dtype=np.int64)
    done = 0
    windows = iter_windows(text, mode=mode, seq_len=seq_len, stride=stride)
    for batch in batch_windows(windows, batch_size, sort=mode == "documents"):
        found = token_losses(model, batch, eos_token_id=text.eos_token_id)
        for window, losses in zip(batch, found, strict=True):
            positions = np.arange(window.stop - window.num_scored, window.stop)
            parts = np.searchsorted(ends, positions, side="right")
            np.add.at(loss, parts, losses)
            np.add.at(tokens, parts, 1)
            done += window.num_scored
        on_progress(done, len(text.tokens))
    of_documents = ends is text.ends
    return Scores(loss, tokens, text.document_bytes if of_documents else None, resampling_unit)


def _resampling_parts(text: TokenizedText, seq_len: int) -> tuple[np.ndarray, str]:
    """Where the parts end that are resampled, and what they are."""
    if len(text.ends) >= _MIN_DOCUMENTS:
        return text.ends, "documents"
    ends = np.append(np.arange(seq_len, len(text.tokens), seq_len), len(text.tokens))
    return ends, f"blocks of {seq_len} tokens"
