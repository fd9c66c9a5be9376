"""Encoded jobs put together as the token shards of a prepared data directory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lpa.data.manifest import Shard, Split, shard_name
from lpa.data.preparation.encode_jobs import job_path, load_job_stats, write_array
from lpa.storage.files import file_sha256

SHARD_TOKENS = 2**27


def write_shards(folder: Path, result: Path, split: str, numbers: list[int], dtype: str) -> Split:
    """Write the jobs of a split, one after another, as shards; one job at a time is in memory.

    Args:
        folder: where the encoded jobs are.
        result: where the shards go.
        numbers: the jobs of the split, in order.
        dtype: of the tokens.
    """
    total = Split(shards=[], tokens=0, documents=0, bytes=0, words=0)
    for number in numbers:
        job = load_job_stats(folder, split, number)
        assert job is not None
        total.tokens += job.tokens
        total.documents += job.documents
        total.bytes += job.bytes
        total.words += job.words
        total.special_tokens_in_text += job.special_tokens_in_text
    tokens = (np.load(job_path(folder, split, n).with_suffix(".npy")) for n in numbers)
    remaining = np.empty(0, dtype=dtype)

    def next_tokens(count: int) -> Iterator[np.ndarray]:
        nonlocal remaining
        while count:
            if len(remaining) == 0:
                remaining = next(tokens)
            taken, remaining = remaining[:count], remaining[count:]
            count -= len(taken)
            yield taken

    for start in range(0, total.tokens, SHARD_TOKENS):
        length = min(SHARD_TOKENS, total.tokens - start)
        path = result / shard_name(split, len(total.shards))
        write_array(path, next_tokens(length), length, dtype)
        total.shards.append(Shard(path.name, length, file_sha256(path)))
    return total
