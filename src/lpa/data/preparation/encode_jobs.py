"""Jobs: some megabytes of chunks each, encoded to files that outlive the process.

A finished job says of which text and by which encoding it was made, so that another process may use it
again, whatever has changed around that text.
"""

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numpy as np

from lpa.data.memmap import open_memmap
from lpa.data.preparation.splitting import SplitChunk
from lpa.data.preparation.word_cache import WordCacheEncoder, supports_word_cache
from lpa.data.text_encoder import TextEncoder
from lpa.data.tokenizer import open_backend
from lpa.errors import UserError
from lpa.storage.files import write_text_atomic
from lpa.storage.records import Count, read_json

JOB_CHARACTERS = 2**21


@dataclass
class JobStats:
    """What a job holds of one split; `digest` identifies what it was made of (see `Encoding.digest`)."""

    digest: str
    tokens: Count = 0
    documents: Count = 0
    bytes: Count = 0
    words: Count = 0
    special_tokens_in_text: Count = 0


def group_chunks(chunks: Iterable[SplitChunk]) -> Iterator[list[SplitChunk]]:
    """Chunks in groups of about `JOB_CHARACTERS`; the same chunks always make the same groups."""
    group: list[SplitChunk] = []
    size = 0
    for chunk in chunks:
        group.append(chunk)
        size += len(chunk.text)
        if size >= JOB_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def job_path(directory: Path, split: str, number: int) -> Path:
    return directory / f"{split}-{number:07d}"


def load_job_stats(directory: Path, split: str, number: int) -> JobStats | None:
    """What a finished job holds of a split, or None where it is not finished or damaged."""
    path = job_path(directory, split, number)
    try:
        job = read_json(path.with_suffix(".json"), JobStats)
    except UserError:  # not there yet, or damaged
        return None
    tokens = open_memmap(path.with_suffix(".npy"))
    whole = tokens is not None and tokens.dtype.kind == "u" and tokens.shape == (job.tokens,)
    return job if whole else None


def finished_jobs(directory: Path) -> int:
    """How many jobs of all splits a folder holds."""
    return sum(1 for _ in directory.glob("*.json"))


class Encoding:
    """How text becomes tokens.

    Args:
        tokenizer: the path of a `tokenizer.json`.
        bos_token_id: set before each document; None where nothing is.
        eos_token_id: set after each document.
        dtype: of the token ids.
        parse_special_tokens: see `TextEncoder`.
    """

    def __init__(
        self,
        tokenizer: Path,
        bos_token_id: int | None,
        eos_token_id: int,
        dtype: str,
        *,
        parse_special_tokens: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.dtype = dtype
        self.parse_special_tokens = parse_special_tokens
        settings = (bos_token_id, eos_token_id, dtype, parse_special_tokens)
        self._key = hashlib.blake2b(repr(settings).encode() + tokenizer.read_bytes()).digest()

    def text_encoder(self) -> TextEncoder:
        return TextEncoder(
            open_backend(self.tokenizer),
            self.eos_token_id,
            parse_special_tokens=self.parse_special_tokens,
        )

    def digest(self, chunks: list[SplitChunk]) -> str:
        """Identifies what the tokens of some chunks depend on: text, limits of documents, and this."""
        digest = hashlib.blake2b(key=self._key, digest_size=16)
        limits = [(len(chunk.text), chunk.is_first, chunk.is_last) for chunk in chunks]
        digest.update(repr(limits).encode())
        digest.update("".join(chunk.text for chunk in chunks).encode())
        return digest.hexdigest()


def write_array(path: Path, parts: Iterable[np.ndarray], length: int, dtype: str) -> None:
    """Write arrays one after another as one `.npy` file, which is on the disk from then on.

    With plain writes: on a full disk a memory map ends the process with a signal, and `np.save` with an
    error that does not say why.
    """
    with open(path, "wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.data)
        file.flush()
        os.fsync(file.fileno())


class JobEncoder:
    """Encodes jobs with one thread; made once per process.

    Args:
        encoding: how.
        directory: where jobs are written.
    """

    def __init__(self, encoding: Encoding, directory: Path) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process per core does better
        self._encoding = encoding
        self._encoder = encoding.text_encoder()
        backend = self._encoder.backend
        self._words = (
            WordCacheEncoder(backend, encoding.dtype) if supports_word_cache(backend) else None
        )
        bos = [] if encoding.bos_token_id is None else [encoding.bos_token_id]
        self._bos = np.array(bos, dtype=encoding.dtype)
        self._eos = np.array([encoding.eos_token_id], dtype=encoding.dtype)
        self._dtype = encoding.dtype
        self._folder = directory

    def encode(self, number: int, split: str, chunks: list[SplitChunk]) -> JobStats:
        """Write the tokens of a split's chunks, then, as a mark that they are complete, their figures."""
        result = JobStats(self._encoding.digest(chunks))
        parts: list[np.ndarray] = []
        encoded = self._encode_texts([chunk.text for chunk in chunks])
        for chunk, (ids, words) in zip(chunks, encoded, strict=True):
            if chunk.is_first and not np.array_equal(ids[:1], self._bos):  # text may spell it
                parts.append(self._bos)
            parts.append(ids)
            result.words += words
            if chunk.is_last:
                parts.append(self._eos)
                result.documents += 1
            result.bytes += len(chunk.text.encode())
            result.special_tokens_in_text += self._encoder.count_special(chunk.text)
        tokens = np.concatenate(parts)
        result.tokens = len(tokens)
        path = job_path(self._folder, split, number)
        temporary = path.with_suffix(".tmp")
        write_array(temporary, [tokens], len(tokens), self._dtype)
        os.replace(temporary, path.with_suffix(".npy"))
        write_text_atomic(path.with_suffix(".json"), json.dumps(asdict(result)))
        return result

    def _encode_texts(self, texts: list[str]) -> list[tuple[np.ndarray, int]]:
        """The token ids and the number of words of each text."""
        if self._words is not None:
            return self._words.encode(texts)
        return [
            (np.array(ids, dtype=self._dtype), len(text.split()))
            for text, ids in zip(texts, self._encoder.encode_batch(texts), strict=True)
        ]


_encoder: JobEncoder | None = None


def init_worker(*arguments: Any) -> None:
    """Make the encoder of a worker process, which ends when its parent does."""
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says what an interrupt means
    parent = parent_process()  # it may be gone already
    assert parent is not None

    def watch() -> None:
        while os.getppid() == parent.pid:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _encoder = JobEncoder(*arguments)


def encode_in_worker(number: int, split: str, chunks: list[SplitChunk]) -> JobStats:
    assert _encoder is not None
    return _encoder.encode(number, split, chunks)
