"""Tokens on disk as samples: for training in a shuffled order, for evaluation one after another."""

import hashlib
import mmap
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lpa.data.manifest import Manifest, Shard
from lpa.data.memmap import open_memmap
from lpa.errors import UserError
from lpa.storage.files import file_sha256

IGNORE_INDEX = -100  # the target that a loss leaves out


class TokenSplit:
    """The tokens of one split as one long sequence, memory-mapped."""

    def __init__(self, directory: Path, split: str, manifest: Manifest | None = None) -> None:
        """Open the shards.

        Args:
            manifest: that of the directory, where it has been read.

        Raises:
            UserError: a shard is missing or not as long as the manifest says.
        """
        manifest = manifest or Manifest.load(directory)
        self._opened_by = directory, split, manifest
        shards = manifest.split(split).shards
        self._shards = [
            _open_shard(directory / shard.name, shard.tokens, manifest.dtype) for shard in shards
        ]
        self._ends = np.cumsum([shard.tokens for shard in shards])

    def __getstate__(self) -> tuple[Path, str, Manifest]:
        """Where the tokens are: a memory map itself would be pickled as all its content."""
        return self._opened_by

    def __setstate__(self, state: tuple[Path, str, Manifest]) -> None:
        self.__init__(*state)  # type: ignore[misc]

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
            # The copy is of the span alone; the pages behind it are given back at once.
            parts.append(self._shards[shard][start - begin : end - begin].astype(np.int64))
            _release_pages(self._shards[shard], start - begin, end - begin)
            start, shard = end, shard + 1
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _release_pages(shard: np.memmap, start: int, stop: int) -> None:
    """Unmap the pages of a span, so that reading here and there does not fill the memory with a file."""
    header = shard.offset % mmap.ALLOCATIONGRANULARITY  # the mapping begins at a whole page
    first = header + start * shard.itemsize
    last = header + stop * shard.itemsize
    first -= first % mmap.PAGESIZE
    shard._mmap.madvise(mmap.MADV_DONTNEED, first, last - first)  # type: ignore[attr-defined]


def _open_shard(path: Path, tokens: int, dtype: str) -> np.memmap:
    if not path.exists():
        raise UserError(f"{path}: no such shard, though the manifest names it")
    shard = open_memmap(path)
    if shard is None:
        raise UserError(
            f"{path}: shard is truncated or not .npy; expected {tokens} tokens of {dtype}; "
            "prepare the data again"
        )
    if shard.shape != (tokens,) or shard.dtype != dtype:
        raise UserError(
            f"{path}: shard holds {shard.dtype} of shape {shard.shape}; "
            f"the manifest says {tokens} tokens of {dtype}"
        )
    # Read at random, what is around a sample is not needed.
    shard._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
    return shard


def verify_shards(directory: Path, split: str, manifest: Manifest | None = None) -> None:
    """Compare the checksums of a split's shards with the manifest; reads all of them.

    Args:
        manifest: that of the directory, where it has been read.

    Raises:
        UserError: a shard is not the one that was written, or has a token beyond the vocabulary.
    """
    manifest = manifest or Manifest.load(directory)
    for shard in manifest.split(split).shards:
        verify_shard(directory, manifest, shard)


def verify_shard(directory: Path, manifest: Manifest, shard: Shard) -> None:
    """`verify_shards` for one of them."""
    if file_sha256(directory / shard.name) != shard.sha256:
        raise UserError(
            f"{directory / shard.name}: SHA-256 is not that of the manifest: the shard was replaced, "
            "reordered or damaged; prepare the data again"
        )
    highest = _open_shard(directory / shard.name, shard.tokens, manifest.dtype).max(initial=0)
    if highest >= manifest.vocab_size:
        raise UserError(
            f"{directory / shard.name}: has token {highest}; the vocabulary ends at "
            f"{manifest.vocab_size - 1}"
        )


def load_split_tokens(directory: Path, split: str, manifest: Manifest | None = None) -> np.ndarray:
    """All tokens of a split in order, as int64, their checksums compared.

    Args:
        manifest: that of the directory, where it has been read.

    Raises:
        UserError: as `TokenSplit` and `verify_shards`.
    """
    manifest = manifest or Manifest.load(directory)
    tokens = TokenSplit(directory, split, manifest)
    verify_shards(directory, split, manifest)
    return tokens[:]


class TokenDataset(Dataset):
    """An endless stream of training samples whose order is a pure function of seed and index.

    The split is divided into `len(self)` windows of `seq_len` tokens, each predicted from those before it.
    Sample i is a window of epoch i // len(self); within an epoch every window comes once, in an order
    drawn from (seed, epoch). Nothing depends on how many processes read, or from where one resumes.

    Args:
        directory: a prepared data directory.
        split: which split of it.
        seq_len: tokens per sample.
        seed: of the order.
        intra_document_mask: also give `position_ids` that begin again at 0 with each document, by which
            the model keeps documents that share a window from attending to each other.
        manifest: that of the directory, where it has been read.

    Raises:
        UserError: the split is missing, damaged or shorter than one sample.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        *,
        seq_len: int,
        seed: int,
        intra_document_mask: bool = False,
        manifest: Manifest | None = None,
    ) -> None:
        manifest = manifest or Manifest.load(directory)
        self._eos = manifest.eos_token_id if intra_document_mask else None
        self._tokens = TokenSplit(directory, split, manifest)
        self.seq_len = seq_len
        self.seed = seed
        self._windows = (len(self._tokens) - 1) // seq_len
        if self._windows < 1:
            raise UserError(
                f"data {directory}: the {split} split has {len(self._tokens)} tokens; expected at "
                f"least {seq_len + 1}, one more than the context"
            )

    def __len__(self) -> int:
        """Samples per epoch."""
        return self._windows

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Sample `index` ≥ 0 of the stream: `input_ids`, `shift_labels` and, where asked for,
        `position_ids`, each (context,) int64.
        """
        epoch, position = divmod(index, self._windows)
        window = permuted_index(position, self._windows, seed=self.seed, epoch=epoch)
        start = window * self.seq_len
        tokens = torch.from_numpy(self._tokens[start : start + self.seq_len + 1])
        sample = {"input_ids": tokens[:-1], "shift_labels": tokens[1:]}
        if self._eos is not None:
            sample["position_ids"] = document_position_ids(tokens[:-1], self._eos)
        return sample


def document_position_ids(tokens: Tensor, eos_token_id: int) -> Tensor:
    """Each token's place in its document, (n,); a document begins after an end-of-text token."""
    positions = torch.arange(len(tokens))
    begins = torch.zeros(len(tokens), dtype=torch.long)
    begins[1:] = torch.where(tokens[:-1] == eos_token_id, positions[1:], 0)
    return positions - begins.cummax(0).values


# Four turns suffice for large ranges; for a few thousand samples they leave traces of the input order.
_ROUNDS = 8


def permuted_index(index: int, size: int, *, seed: int, epoch: int) -> int:
    """Where `index` goes in a permutation of range(size) drawn from (seed, epoch), without storing it.

    A balanced Feistel network with a keyed hash (Luby & Rackoff 1988) permutes the smallest
    range(4^k) that covers `size`; what falls outside is sent through again (cycle walking, Black &
    Rogaway 2002), which still is a permutation of range(size).
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for round_index in range(_ROUNDS):
            key = f"{seed}/{epoch}/{round_index}/{right}".encode()
            digest = hashlib.blake2b(key, digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        index = (left << half) | right
        if index < size:
            return index
