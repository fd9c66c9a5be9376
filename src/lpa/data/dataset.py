"""Tokens on disk as samples: for training in a shuffled order, for evaluation one after another."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lpa.data.manifest import Manifest
from lpa.errors import UserError

IGNORE = -100  # the target that a loss leaves out


class TokenSplit:
    """The tokens of one split as one long sequence, memory-mapped."""

    def __init__(self, directory: Path, split: str) -> None:
        """Open the shards.

        Raises:
            UserError: a shard is missing or not as long as the manifest says.
        """
        manifest = Manifest.load(directory)
        shards = manifest.split(split).shards
        self._shards = [
            _open_shard(directory / shard.name, shard.tokens, manifest.dtype) for shard in shards
        ]
        self._ends = np.cumsum([shard.tokens for shard in shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, span: slice) -> np.ndarray:
        """Tokens start … stop - 1 as int64, across shards where need be."""
        start, stop, _ = span.indices(len(self))
        parts = []
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            begin = int(self._ends[shard]) - len(self._shards[shard])
            end = min(stop, int(self._ends[shard]))
            parts.append(self._shards[shard][start - begin : end - begin])
            start, shard = end, shard + 1
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)


def _open_shard(path: Path, tokens: int, dtype: str) -> np.ndarray:
    try:
        shard = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such shard, though the manifest names it") from error
    except (ValueError, EOFError, OSError) as error:
        raise UserError(
            f"{path}: shard is truncated or not .npy; expected {tokens} tokens of {dtype}; "
            "prepare the data again"
        ) from error
    if shard.shape != (tokens,) or shard.dtype != dtype:
        raise UserError(
            f"{path}: shard holds {shard.dtype} of shape {shard.shape}; "
            f"the manifest says {tokens} tokens of {dtype}"
        )
    return shard


def split_tokens(directory: Path, split: str) -> np.ndarray:
    """All tokens of a split in order, as int64. Raises UserError as `TokenSplit` does."""
    return TokenSplit(directory, split)[:]


class TokenDataset(Dataset):
    """An endless stream of training samples whose order is a pure function of seed and index.

    The split is cut into `len(self)` windows of `context` tokens, each predicted from those before it.
    Sample i is a window of epoch i // len(self); within an epoch every window comes once, in an order
    drawn from (seed, epoch). Nothing depends on how many processes read, or from where one resumes.

    Args:
        directory: a prepared data directory.
        split: which split of it.
        context: tokens per sample.
        seed: of the order.

    Raises:
        UserError: the split is missing, damaged or shorter than one sample.
    """

    def __init__(self, directory: Path, split: str, *, context: int, seed: int) -> None:
        self._tokens = TokenSplit(directory, split)
        self.context = context
        self.seed = seed
        self._windows = (len(self._tokens) - 1) // context
        if self._windows < 1:
            raise UserError(
                f"data {directory}: the {split} split has {len(self._tokens)} tokens; expected at "
                f"least {context + 1}, one more than the context"
            )

    def __len__(self) -> int:
        """Samples per epoch."""
        return self._windows

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Sample `index` ≥ 0 of the stream: `input_ids` and `shift_labels`, each (context,) int64."""
        epoch, position = divmod(index, self._windows)
        window = permute(position, self._windows, seed=self.seed, epoch=epoch)
        start = window * self.context
        tokens = torch.from_numpy(self._tokens[start : start + self.context + 1])
        return {"input_ids": tokens[:-1], "shift_labels": tokens[1:]}


# Four turns suffice for large ranges; for a few thousand samples they leave traces of the input order.
_TURNS = 8


def permute(index: int, size: int, *, seed: int, epoch: int) -> int:
    """Where `index` goes in a permutation of range(size) drawn from (seed, epoch), without storing it.

    A balanced Feistel network with a keyed hash (Luby & Rackoff 1988) permutes the smallest
    range(4^k) that covers `size`; what falls outside is sent through again (cycle walking, Black &
    Rogaway 2002), which still is a permutation of range(size).
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(_TURNS):
            key = f"{seed}/{epoch}/{turn}/{right}".encode()
            digest = hashlib.blake2b(key, digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        index = (left << half) | right
        if index < size:
            return index


def eval_windows(
    tokens: np.ndarray, *, context: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches that score every token but the first exactly once.

    The windows do not overlap, so the first token of each but the very first is predicted from one
    token only; the last window is padded.

    Yields:
        input_ids and shift_labels, each (up to batch_size, context); -100 where there is no target.
    """
    targets = len(tokens) - 1
    windows = -(-targets // context)
    padded = np.zeros(windows * context, dtype=np.int64)
    padded[:targets] = tokens[:-1]
    labels = np.full(windows * context, IGNORE, dtype=np.int64)
    labels[:targets] = tokens[1:]
    for start in range(0, windows, batch_size):
        rows = slice(start, start + batch_size)
        yield (
            torch.from_numpy(padded.reshape(windows, context)[rows]),
            torch.from_numpy(labels.reshape(windows, context)[rows]),
        )
