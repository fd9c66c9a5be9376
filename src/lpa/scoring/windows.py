"""Windows of tokens that a model reads at once, and batches of them."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lpa.data.dataset import IGNORE_INDEX, TokenSplit, document_position_ids

# Windows that are sorted by length at a time, in batches: documents differ, and padding costs.
_SORT_BATCHES = 32


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


def sequence_windows(
    tokens: np.ndarray | TokenSplit,
    *,
    seq_len: int,
    stride: int | None = None,
    first: int | None = None,
    offset: int = 0,
) -> Iterator[Window]:
    """Windows in which every token of a sequence is a scored target once, but the first of all.

    Args:
        tokens: (n,); those on disk are read window by window.
        seq_len: most inputs of a window.
        stride: how far one window begins after the other. By default they do not overlap, and the first
            target of a window is predicted from one token only.
        first: a token to put before the sequence, so that its first one is scored too.
        offset: where the sequence begins in the text.
    """
    if first is not None:
        tokens, offset = np.concatenate([[first], tokens[:]]), offset - 1
    last = len(tokens) - 1
    num_scored = 0  # the last target that is done
    for begin in range(0, last, stride or seq_len):
        end = min(begin + seq_len, last)
        yield Window(tokens[begin : end + 1], end - num_scored, offset + end + 1)
        num_scored = end
        if end == last:
            return


def batch_windows(
    windows: Iterable[Window], batch_size: int, *, sort: bool = False
) -> Iterator[list[Window]]:
    """Batches of windows, where `sort` says so of about equal lengths."""
    windows = iter(windows)
    while group := list(islice(windows, batch_size * (_SORT_BATCHES if sort else 1))):
        if sort:
            group.sort(key=lambda window: len(window.ids))
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def collate_windows(
    batch: Sequence[Window], *, length: int | None = None, eos_token_id: int | None = None
) -> dict[str, Tensor]:
    """What a model reads, and what is scored.

    Args:
        length: of the rows; by default that of the longest window.
        eos_token_id: what ends a document, where documents in one window may not attend to each other.

    Returns:
        `input_ids`, `shift_labels` and, with `eos_token_id`, `position_ids`, each (windows, length) int64.
        Labels are `IGNORE_INDEX` where nothing is scored.
    """
    length = length or max(len(window.ids) for window in batch) - 1
    # On the right of what counts, causal attention makes padding harmless without a mask.
    input_ids = np.zeros((len(batch), length), dtype=np.int64)
    labels = np.full((len(batch), length), IGNORE_INDEX, dtype=np.int64)
    for row, (ids, num_scored, _) in enumerate(batch):
        inputs = len(ids) - 1
        input_ids[row, :inputs] = ids[:-1]
        labels[row, inputs - num_scored : inputs] = ids[-num_scored:]
    tensors = {"input_ids": torch.from_numpy(input_ids), "shift_labels": torch.from_numpy(labels)}
    if eos_token_id is not None:
        rows = [document_position_ids(row, eos_token_id) for row in tensors["input_ids"]]
        tensors["position_ids"] = torch.stack(rows)
    return tensors
