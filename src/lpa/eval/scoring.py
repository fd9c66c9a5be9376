"""The loss of every token of a text, in windows of a model's context, added up by document."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from lpa.callbacks import StepCallback
from lpa.data.dataset import IGNORE_INDEX
from lpa.eval.tokenized_text import TokenizedText

MODES = ("blocks", "sliding", "documents")

# Windows that are sorted by length at a time, in batches: documents differ, and padding costs.
_SORT_BATCHES = 32
# With fewer documents than this, resampling them says little of the spread; blocks do better.
_MIN_DOCUMENTS = 30


class Window(NamedTuple):
    """Tokens that a model reads at once.

    Attributes:
        ids: (inputs + 1,); each but the first is a target of the one before.
        num_scored: how many of the last targets are scored here; the others were before.
        stop: index in the text after the last target.
    """

    ids: np.ndarray
    num_scored: int
    stop: int


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
    """Windows in which every token is a scored target once.

    Args:
        text: what to score.
        mode: `blocks` and `sliding` go through all documents as one sequence; `documents` shows each
            alone.
        seq_len: most inputs of a window.
        stride: how far one window begins after the other, in `sliding`, and in `documents` that
            are longer than a window. In `blocks` it is the context.

    A sequence begins with the tokenizer's beginning-of-sequence token where it has the habit of setting
    one. A document alone begins with the end-of-text token otherwise, as after another document. Without
    either, the first token of all is not scored, as nothing comes before it.
    """
    if mode == "documents":
        first = text.eos_token_id if text.bos_token_id is None else text.bos_token_id
        begin = 0
        for end in text.ends:
            yield from _spans(text.tokens[begin:end], first, begin, seq_len, stride)
            begin = int(end)
    else:
        step = seq_len if mode == "blocks" else stride
        yield from _spans(text.tokens, text.bos_token_id, 0, seq_len, step)


def _spans(
    tokens: np.ndarray, first: int | None, offset: int, seq_len: int, stride: int
) -> Iterator[Window]:
    if first is not None:
        tokens, offset = np.concatenate([[first], tokens]), offset - 1
    last = len(tokens) - 1
    num_scored = 0  # the last target that is done
    for begin in range(0, last, stride):
        end = min(begin + seq_len, last)
        yield Window(tokens[begin : end + 1], end - num_scored, offset + end + 1)
        num_scored = end
        if end == last:
            return


@torch.no_grad()
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
    for batch in _batches(
        iter_windows(text, mode=mode, seq_len=seq_len, stride=stride),
        batch_size,
        sort=mode == "documents",
    ):
        for window, losses in zip(batch, window_losses(model, batch), strict=True):
            positions = np.arange(window.stop - window.num_scored, window.stop)
            parts = np.searchsorted(ends, positions, side="right")
            np.add.at(loss, parts, losses[-window.num_scored :])
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


def _batches(windows: Iterator[Window], batch_size: int, *, sort: bool) -> Iterator[list[Window]]:
    while group := list(islice(windows, batch_size * _SORT_BATCHES)):
        if sort:
            group.sort(key=lambda window: len(window.ids))
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def window_losses(model: Any, batch: list[Window]) -> list[np.ndarray]:
    """The loss of each target of each window, in float64."""
    length = max(len(window.ids) for window in batch)
    # On the right of what counts, causal attention makes padding harmless without a mask.
    ids = np.zeros((len(batch), length), dtype=np.int64)
    targets = np.full((len(batch), length - 1), IGNORE_INDEX)
    for row, window in enumerate(batch):
        ids[row, : len(window.ids)] = window.ids
        targets[row, : len(window.ids) - 1] = window.ids[1:]
    device = model.device
    logits = model(input_ids=torch.from_numpy(ids[:, :-1]).to(device), use_cache=False).logits
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(),
        torch.from_numpy(targets).to(device).flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
    ).view(len(batch), -1)
    rows = losses.double().cpu().numpy()
    return [row[: len(window.ids) - 1] for row, window in zip(rows, batch, strict=True)]
