"""Documents to a prepared data directory: tokenizer, token shards, manifest."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lpa.data.manifest import SPLITS, TOKENIZER_DIRECTORY, Manifest, Shard, Split
from lpa.data.sources import file_format, read_documents
from lpa.data.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer
from lpa.errors import LPAWarning, UserError
from lpa.files import check_output, new_directory

SHARD_TOKENS = 2**27
_BATCH_BYTES = 2**22

# (what is being done, documents done, documents in all or None)
Report = Callable[[str, int, int | None], None]


def prepare(
    sources: Sequence[Path],
    out: Path,
    *,
    vocab_size: int | None = None,
    tokenizer: str | Path | None = None,
    validation: Sequence[Path] = (),
    test: Sequence[Path] = (),
    validation_fraction: float = 0.01,
    test_fraction: float = 0.0,
    boundary: str = "file",
    column: str = "text",
    overwrite: bool = False,
    report: Report = lambda what, done, total: None,
) -> Manifest:
    """Turn text into a prepared data directory, complete or not at all.

    Args:
        sources: files of training text, and of held-out text where a fraction says so.
        out: the directory to make.
        vocab_size: train a byte-level BPE of this size on the training documents, or
        tokenizer: use this one (see `load_tokenizer`).
        validation, test: files of held-out text.
        validation_fraction, test_fraction: the share of `sources` to hold out for a split that has no
            files of its own: of the documents, evenly spread; where there are too few, of the end of
            each document.
        boundary, column: see `read_documents`.
        overwrite: replace what `out` holds.
        report: called as the work goes on.

    Raises:
        UserError: bad input, named; nothing is written.
    """
    if (vocab_size is None) == (tokenizer is None):
        raise UserError("expected one of --vocab-size and --tokenizer")
    fractions = {
        "validation": 0.0 if validation else validation_fraction,
        "test": 0.0 if test else test_fraction,
    }
    for name, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise UserError(f"{name}_fraction: got {fraction}; expected at least 0 and below 1")
    if sum(fractions.values()) >= 1:
        raise UserError("validation_fraction + test_fraction: expected below 1 together")
    check_output(out, overwrite=overwrite)
    given = {"train": sources, "validation": validation, "test": test}
    if not sources:
        raise UserError("SOURCE: got no file; expected at least one")
    for path in (path for paths in given.values() for path in paths):
        file_format(path)

    def documents(split: str) -> Iterator[str]:
        if split != "train" and given[split]:
            return read_documents(given[split], boundary=boundary, column=column)
        everything = read_documents(sources, boundary=boundary, column=column)
        return _share(everything, split, fractions, whole=count >= smallest)

    count = sum(1 for _ in read_documents(sources, boundary=boundary, column=column))
    report("reading", count, count)
    if count == 0:
        raise UserError(f"{', '.join(map(str, sources))}: no text")
    # Whole documents are held out where that can come within a third of each fraction asked for.
    smallest = max((3 / fraction for fraction in fractions.values() if fraction), default=0)

    if tokenizer is not None:
        encoder = load_tokenizer(tokenizer)
    else:
        assert vocab_size is not None
        encoder = train_tokenizer(
            _reported(documents("train"), "training the tokenizer", report), vocab_size
        )
        if len(encoder) < vocab_size:
            import warnings

            warnings.warn(
                f"vocab_size: the text yields only {len(encoder)} of {vocab_size} tokens",
                LPAWarning,
                stacklevel=2,
            )

    dtype = "uint16" if len(encoder) <= 2**16 else "uint32"
    with new_directory(out, overwrite=overwrite) as directory:
        encoder.save_pretrained(directory / TOKENIZER_DIRECTORY)
        manifest = Manifest(
            tokenizer_sha256=tokenizer_hash(encoder),
            vocab_size=len(encoder),
            dtype=dtype,
            eos_token_id=encoder.eos_token_id,
            splits={
                split: _write_split(
                    directory,
                    split,
                    _reported(documents(split), f"encoding {split}", report),
                    encoder,
                    dtype,
                )
                for split in SPLITS
                if split == "train" or given[split] or fractions[split]
            },
            source={
                "files": {split: [path.name for path in paths] for split, paths in given.items()},
                "boundary": boundary,
                "column": column,
                "fractions": fractions,
            },
        )
        for split, contents in manifest.splits.items():
            if contents.tokens == 0:
                raise UserError(
                    f"{split}: no text is left for it; give more text, a file of its own, or "
                    f"a --{split}-fraction of 0"
                )
        manifest.save(directory)
    return manifest


def _share(
    documents: Iterator[str], split: str, fractions: dict[str, float], *, whole: bool
) -> Iterator[str]:
    """The part of the documents that falls to a split: whole documents, or pieces of each."""
    for index, document in enumerate(documents):
        if whole:
            if _split_of(index, fractions) == split:
                yield document
        else:
            piece = _cut(document, fractions)[split]
            if piece.strip():
                yield piece


def _split_of(index: int, fractions: dict[str, float]) -> str:
    """Which split document `index` belongs to: a pure function that looks random and spreads evenly.

    Multiples of the golden ratio, taken modulo 1, fill the unit interval evenly (Weyl).
    """
    position = (index + 1) * 0.6180339887498949 % 1
    if position < fractions["validation"]:
        return "validation"
    if position < fractions["validation"] + fractions["test"]:
        return "test"
    return "train"


def _cut(document: str, fractions: dict[str, float]) -> dict[str, str]:
    """A document in three consecutive pieces: train, validation, test; cut at line ends or spaces."""
    start_test = _boundary(document, len(document) * (1 - fractions["test"]))
    start_validation = _boundary(
        document, len(document) * (1 - fractions["test"] - fractions["validation"])
    )
    return {
        "train": document[:start_validation],
        "validation": document[start_validation:start_test],
        "test": document[start_test:],
    }


def _boundary(text: str, position: float) -> int:
    """The last line end before a position; in text of one line the last space."""
    place = round(position)
    if place >= len(text):
        return len(text)
    for mark in ("\n", " "):
        if (found := text.rfind(mark, 0, place)) > 0:
            return found
    return place


def _reported(documents: Iterator[str], what: str, report: Report) -> Iterator[str]:
    done = 0
    report(what, done, None)
    for document in documents:
        yield document
        done += 1
        report(what, done, None)
    report(what, done, done)


def _write_split(
    directory: Path, split: str, documents: Iterable[str], encoder: Any, dtype: str
) -> Split:
    """Encode documents, each with an end-of-text token after it, into shards."""
    result = Split(shards=[], tokens=0, documents=0, bytes=0, words=0)
    parts: list[np.ndarray] = []
    held = 0

    def flush() -> None:
        nonlocal parts, held
        if held:
            tokens = np.concatenate(parts)
            result.shards.append(
                _write_shard(directory, f"{split}-{len(result.shards):05d}", tokens)
            )
            parts, held = [], 0

    for batch in _batches(documents):
        for document, encoding in zip(
            batch,
            encoder.backend_tokenizer.encode_batch(batch, add_special_tokens=False),
            strict=True,
        ):
            ids = np.array([*encoding.ids, encoder.eos_token_id], dtype=dtype)
            parts.append(ids)
            held += len(ids)
            result.tokens += len(ids)
            result.documents += 1
            result.bytes += len(document.encode())
            result.words += len(document.split())
            if held >= SHARD_TOKENS:
                flush()
    flush()
    return result


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in groups large enough for the tokenizer's threads and small enough for memory."""
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_shard(directory: Path, stem: str, tokens: np.ndarray) -> Shard:
    path = directory / f"{stem}.npy"
    np.save(path, tokens)
    with open(path, "rb") as file:
        return Shard(path.name, len(tokens), hashlib.file_digest(file, "sha256").hexdigest())
