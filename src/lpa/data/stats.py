"""Looking into a prepared data directory: what it holds, whether it is intact."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lpa.data.dataset import TokenSplit, verify_shards
from lpa.data.manifest import Manifest
from lpa.data.tokenizer import load_data_tokenizer, verify_tokenizer
from lpa.errors import UserError

_BLOCK_TOKENS = 2**22


@dataclass
class SplitStats:
    """What a split holds.

    Attributes:
        documents, tokens, words, bytes: counts; tokens before and after each document are counted in.
        bytes_per_token: of UTF-8, the tokens before and after documents counted in.
        lengths: smallest length of a class -> documents in it; classes double: 1, 2, 4, 8 … tokens.
        longest: tokens of the longest document.
        vocab_used: how many tokens of the vocabulary occur.
        duplicates: documents equal to an earlier one of the split.
    """

    documents: int
    tokens: int
    words: int
    bytes: int
    bytes_per_token: float
    lengths: dict[int, int]
    longest: int
    vocab_used: int
    duplicates: int


@dataclass
class DataStats:
    """What a prepared data directory holds."""

    vocab_size: int
    splits: dict[str, SplitStats]


def data_stats(data: Path) -> DataStats:
    """Read every split of a prepared data directory once and count.

    Raises:
        UserError: no such directory, or a damaged one.
    """
    manifest = Manifest.load(data)
    splits = {split: split_stats(data, split, manifest) for split in manifest.splits}
    return DataStats(manifest.vocab_size, splits)


def split_stats(directory: Path, split: str, manifest: Manifest | None = None) -> SplitStats:
    """Read a split once and count; 16 bytes of memory, and some of Python's, per document.

    Args:
        manifest: that of the directory, where it has been read.

    Raises:
        UserError: no such split, or a damaged one.
    """
    manifest = manifest or Manifest.load(directory)
    described = manifest.split(split)
    used = np.zeros(manifest.vocab_size, dtype=bool)
    lengths: dict[int, int] = {}
    seen: set[bytes] = set()
    longest = documents = 0
    for document in _iterate_documents(directory, split, manifest):
        if int(document.max(initial=0)) >= manifest.vocab_size:
            raise UserError(
                f"data {directory}: {split} has token {document.max()}; the vocabulary ends at "
                f"{manifest.vocab_size - 1}"
            )
        used[document] = True
        documents += 1
        longest = max(longest, len(document))
        smallest = 1 << (len(document).bit_length() - 1)
        lengths[smallest] = lengths.get(smallest, 0) + 1
        seen.add(hashlib.blake2b(document.tobytes(), digest_size=16).digest())
    return SplitStats(
        documents=documents,
        tokens=described.tokens,
        words=described.words,
        bytes=described.bytes,
        bytes_per_token=described.bytes / described.tokens,
        lengths=dict(sorted(lengths.items())),
        longest=longest,
        vocab_used=int(used.sum()),
        duplicates=documents - len(seen),
    )


def _iterate_documents(directory: Path, split: str, manifest: Manifest) -> Iterator[np.ndarray]:
    """The documents of a split in order, each with the tokens before and after it."""
    tokens = TokenSplit(directory, split, manifest)
    pending: list[np.ndarray] = []
    for start in range(0, len(tokens), _BLOCK_TOKENS):
        block = tokens[start : start + _BLOCK_TOKENS]
        begin = 0
        for end in (np.flatnonzero(block == manifest.eos_token_id) + 1).tolist():
            yield np.concatenate([*pending, block[begin:end]])
            pending, begin = [], end
        pending.append(block[begin:])
    rest = np.concatenate(pending) if pending else np.empty(0, np.int64)
    if len(rest):
        yield rest


def sample_documents(
    data: Path, split: str = "train", *, num_samples: int = 5, max_tokens: int = 200, seed: int = 0
) -> list[str]:
    """Decoded beginnings of some documents, chosen evenly among all; their end shows if it is reached.

    Raises:
        UserError: no such split, a number below 1, or a tokenizer that is not that of the data.
    """
    for name, value in (("num-samples", num_samples), ("max-tokens", max_tokens)):
        if value < 1:
            raise UserError(f"--{name}: got {value}; expected at least 1")
    manifest = Manifest.load(data)
    tokenizer = load_data_tokenizer(data, manifest)
    count = manifest.split(split).documents
    generator = np.random.default_rng(seed)
    chosen = set(generator.choice(count, size=min(num_samples, count), replace=False).tolist())
    texts = []
    for number, document in enumerate(_iterate_documents(data, split, manifest)):
        if number in chosen:
            text = tokenizer.decode(document[:max_tokens])
            texts.append(text if len(document) <= max_tokens else f"{text} …")
            if len(texts) == len(chosen):
                break
    return texts


def decode_documents(directory: Path, split: str | None = None) -> Iterator[str]:
    """The text of each document of a split, in order.

    Args:
        split: by default test where there is one, else validation.

    Raises:
        UserError: no such split, a damaged one, or a tokenizer that is not that of the data.
    """
    manifest = Manifest.load(directory)
    split = split or manifest.held_out_split
    tokenizer = load_data_tokenizer(directory, manifest)
    for document in _iterate_documents(directory, split, manifest):
        begins = int(document[0] == manifest.bos_token_id)
        ends = document[-1] == manifest.eos_token_id
        yield tokenizer.decode(document[begins : len(document) - ends])


def verify_data(data: Path) -> list[str]:
    """What is wrong with a prepared data directory; nothing if it is as it was written.

    Raises:
        UserError: it has no manifest that can be read.
    """
    manifest = Manifest.load(data)
    problems = []
    try:
        verify_tokenizer(data, manifest)
    except UserError as error:
        problems.append(str(error))
    for split in manifest.splits:
        try:
            TokenSplit(data, split, manifest)
            verify_shards(data, split, manifest)
        except UserError as error:
            problems.append(str(error))
    return problems
