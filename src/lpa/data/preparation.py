"""Documents to a prepared data directory: tokenizer, token shards, manifest.

Work is kept beside the output in `.<name>.partial/` until it is complete: units of some megabytes, each
finished or not. A process that was killed or met a bad row leaves them, and the same command goes on from
there to the same bytes, even where the text has been corrected in between.
"""

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from lpa.data.assignment import Assigned, Assignment, Survey, survey
from lpa.data.job import AllLeftOut, Job
from lpa.data.listing import SourceFiles, list_files
from lpa.data.manifest import SPLITS, TOKENIZER_DIRECTORY, Manifest, Shard, Split, shard_name
from lpa.data.pieces import Cutter
from lpa.data.sources import Source
from lpa.data.tokenizer import (
    load_tokenizer,
    plain_tokenizer,
    tokenizer_hash,
    train_tokenizer,
    vocabulary_size,
)
from lpa.data.units import (
    Encoder,
    Encoding,
    encode_in_worker,
    finished_units,
    load_unit,
    start_worker,
    unit_name,
    units,
    write_array,
)
from lpa.errors import LPAWarning, UserError
from lpa.files import write_text
from lpa.locks import hold_directory
from lpa.outputs import (
    check_output,
    content_of,
    replace_directory,
    resolve_output,
    seal_directory,
    staging_directory,
)

# What the marker of an output directory calls it.
KIND = "a prepared data directory"
SHARD_TOKENS = 2**27
SAMPLE_CHARACTERS = 2**28
_ALONE_BYTES = 2**22  # below this, starting processes takes longer than the work

# (what is being done, bytes of the sources done, bytes in all or 0 where not known)
Report = Callable[[str, int, int], None]


def prepare(
    sources: Sequence[str | Path | Source],
    out: Path,
    *,
    vocab_size: int | None = None,
    tokenizer: str | Path | None = None,
    validation: Sequence[str | Path | Source] = (),
    test: Sequence[str | Path | Source] = (),
    validation_fraction: float = 0.01,
    test_fraction: float = 0.0,
    boundary: str = "file",
    column: str = "text",
    errors: str = "strict",
    deduplicate: bool = False,
    parse_special_tokens: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    report: Report = lambda what, done, total: None,
) -> Manifest:
    """Turn text into a prepared data directory, complete or not at all.

    Args:
        sources: training text: files, directories, globs or data sets of the hub (see `Source.parse`).
        out: the directory to make.
        vocab_size: train a byte-level BPE of this size on the training documents, or
        tokenizer: use this one (see `load_tokenizer`).
        validation, test: held-out text of its own.
        validation_fraction, test_fraction: the share of `sources` to hold out for a split that has
            none (see `Assignment`).
        boundary, column, errors: of sources that do not say them (see `Source`).
        deduplicate: leave out training documents equal to an earlier one.
        parse_special_tokens: let text that spells a special token become that token (see `TextEncoder`).
        workers: processes that encode; by default one per core.
        overwrite: replace what `out` holds.
        report: called as the work goes on.

    Raises:
        UserError: bad input, named; nothing is left behind but units that were finished before a bad
            row was met. Or no space left; what is finished stays.
    """
    if (vocab_size is None) == (tokenizer is None):
        raise UserError("expected one of --vocab-size and --tokenizer")
    if not sources:
        raise UserError("SOURCE: got no file; expected at least one")
    if workers is not None and workers < 1:
        raise UserError(f"workers: got {workers}; expected at least 1")
    check_output(out, KIND, overwrite=overwrite)
    defaults = {"boundary": boundary, "column": column, "errors": errors}

    def listed(
        places: Sequence[str | Path | Source], held_out: Iterable[Path] = ()
    ) -> list[SourceFiles]:
        parsed = (s if isinstance(s, Source) else Source.parse(s, **defaults) for s in places)
        return [list_files(source, output=out, held_out=held_out) for source in parsed]

    given = {"validation": listed(validation), "test": listed(test)}
    held_out = [file for of_split in given.values() for of in of_split for file in of.files]
    job = Job(
        given={"train": listed(sources, held_out), **given},
        fractions={
            "validation": 0.0 if validation else validation_fraction,
            "test": 0.0 if test else test_fraction,
        },
        deduplicate=deduplicate,
        workers=workers or _cores(),
    )
    _check_fractions(job.fractions)
    with _partial_directory(out, job, vocab_size, tokenizer) as partial:
        with _keep_finished_units(partial):
            found = survey(job.given["train"], job.fractions, deduplicate=deduplicate)
            if found.documents == 0:
                raise UserError(f"{', '.join(map(str, sources))}: no text")
            encoder = _tokenizer(partial, job, found, vocab_size, tokenizer, report)
            encoding = Encoding(
                partial / TOKENIZER_DIRECTORY / "tokenizer.json",
                encoder.eos_token_id,
                "uint16" if vocabulary_size(encoder) <= 2**16 else "uint32",
                parse_special_tokens=parse_special_tokens,
            )
            finished, left_out = _encode(partial, job, found, encoding, report)
        report("writing shards", 0, 0)
        return _finish(
            partial, out, job, encoder, encoding, finished, left_out, overwrite=overwrite
        )


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_fractions(fractions: dict[str, float]) -> None:
    for name, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise UserError(f"{name}_fraction: got {fraction}; expected at least 0 and below 1")
    if sum(fractions.values()) >= 1:
        raise UserError("validation_fraction + test_fraction: expected below 1 together")


@contextmanager
def _partial_directory(
    out: Path, job: Job, vocab_size: int | None, tokenizer: str | Path | None
) -> Iterator[Path]:
    """The folder of unfinished work: that of an earlier process, or an empty one.

    It goes when the work is complete or the input is bad; it stays when the process is stopped, or has
    finished units before it meets bad input. Of another job only units are kept: each says what it is of.
    """
    partial = staging_directory(resolve_output(out), "partial")
    request = {
        "job": job.describe(paths=True),
        "vocab_size": vocab_size,
        "tokenizer": None if tokenizer is None else str(tokenizer),
    }
    with hold_directory(partial, output=out):
        plan = partial / "plan.json"
        text = json.dumps(request, indent=2)
        if not plan.is_file() or plan.read_bytes() != text.encode():
            for path in content_of(partial):
                if path.name != "units":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            (partial / "units").mkdir(exist_ok=True)
            write_text(plan, text)
        try:
            yield partial
            shutil.rmtree(partial)
        except _UnfinishedError:
            raise
        except UserError:
            shutil.rmtree(partial)
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise UserError(
                    f"--out {out}: {error.strerror}; what is finished is kept in {partial}, so free some "
                    "space and give the same command again"
                ) from error
            raise


class _UnfinishedError(UserError):
    """Bad input that was met when units were finished, which are kept."""


@contextmanager
def _keep_finished_units(partial: Path) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        if finished := finished_units(partial / "units"):
            raise _UnfinishedError(
                f"{error}; the {finished:,} units that are finished are kept in {partial}: correct this and "
                "give the same command again, or remove that directory"
            ) from error
        raise


def _tokenizer(
    partial: Path,
    job: Job,
    found: Survey,
    vocab_size: int | None,
    tokenizer: str | Path | None,
    report: Report,
) -> Any:
    """The tokenizer, trained or loaded, kept among the unfinished work."""
    kept = partial / TOKENIZER_DIRECTORY
    if kept.exists():
        return _open(kept)
    if tokenizer is not None:
        encoder = _open(tokenizer)
    else:
        assert vocab_size is not None
        report("training the tokenizer", 0, 0)
        encoder = train_tokenizer(_sample(job, found), vocab_size)
        if len(encoder) < vocab_size:
            warnings.warn(
                f"vocab_size: the text yields only {len(encoder)} of {vocab_size} tokens",
                LPAWarning,
                stacklevel=4,
            )
    temporary = partial / "tokenizer.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    encoder.save_pretrained(temporary)
    os.replace(temporary, kept)
    return _open(kept)


def _open(path: str | Path) -> Any:
    return plain_tokenizer(path) or load_tokenizer(path)


def _sample(job: Job, found: Survey) -> Iterator[str]:
    """Training text for the tokenizer: the first of each source, as much of each as of the others."""
    share = SAMPLE_CHARACTERS // len(job.given["train"])
    assignment = Assignment(job.given["train"], job.fractions, found)
    for piece in assignment.pieces(Cutter(None), limit=share):
        if piece.split == "train":
            yield piece.text


# Split -> the numbers of its units, in order.
Finished = dict[str, list[int]]


def _pieces(
    job: Job,
    found: Survey,
    cutter: Cutter,
    advance: Callable[[int], None],
    left_out: AllLeftOut,
) -> Iterator[Assigned]:
    """The text of all splits, in an order that is always the same."""
    training = Assignment(job.given["train"], job.fractions, found)
    yield from training.pieces(cutter, advance, left_out=left_out["train"])
    for split in ("validation", "test"):
        none = {"validation": 0.0, "test": 0.0}
        held_out = Assignment(job.given[split], none, Survey())
        for piece in held_out.pieces(cutter, advance, left_out=left_out[split]):
            yield piece._replace(split=split)


def _encode(
    partial: Path, job: Job, found: Survey, encoding: Encoding, report: Report
) -> tuple[Finished, AllLeftOut]:
    """Encode all units that are not finished; returns the numbers of all, and what is left out."""
    total, done = job.size(), 0
    repeated = any(listed.source.weight > 1 for listed in job.given["train"])
    left_out = job.left_out()

    def advance(size: int) -> None:
        nonlocal done
        done += size
        report("encoding", done, 0 if repeated else total)

    folder = partial / "units"
    pieces = _pieces(job, found, Cutter(encoding.text_encoder()), advance, left_out)
    finished: Finished = {split: [] for split in SPLITS}

    def unfinished() -> Iterator[Item]:
        for number, group in enumerate(units(pieces)):
            for split, of_split in _by_split(group):
                finished[split].append(number)
                unit = load_unit(folder, split, number)
                if unit is None or unit.digest != encoding.digest(of_split):
                    yield number, split, of_split

    arguments = (encoding, folder)
    if total < _ALONE_BYTES or job.workers == 1:
        alone = Encoder(*arguments)
        for item in unfinished():
            alone.encode(*item)
    else:
        _encode_in_processes(unfinished(), job.workers, arguments)
    return finished, left_out


# The number of a unit, one of its splits, and the pieces of that split.
Item = tuple[int, str, list[Assigned]]


def _encode_in_processes(items: Iterator[Item], workers: int, arguments: tuple[Any, ...]) -> None:
    """Encode units in processes, a few more at a time than there are, so that memory stays bounded."""
    with ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),  # threads of this process make forking unsafe
        initializer=start_worker,
        initargs=arguments,
    ) as pool:
        running: set[Future] = set()
        try:
            for item in items:
                running.add(pool.submit(encode_in_worker, *item))
                if len(running) >= workers + 2:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
            for future in running:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _by_split(group: list[Assigned]) -> list[tuple[str, list[Assigned]]]:
    pieces = {split: [piece for piece in group if piece.split == split] for split in SPLITS}
    return [(split, of_split) for split, of_split in pieces.items() if of_split]


def _finish(
    partial: Path,
    out: Path,
    job: Job,
    encoder: Any,
    encoding: Encoding,
    finished: Finished,
    left_out: AllLeftOut,
    *,
    overwrite: bool,
) -> Manifest:
    """Put the units together, write the manifest, and move the result to its place."""
    result = partial / "result"
    shutil.rmtree(result, ignore_errors=True)
    result.mkdir()
    shutil.copytree(partial / TOKENIZER_DIRECTORY, result / TOKENIZER_DIRECTORY)
    manifest = Manifest(
        tokenizer_sha256=tokenizer_hash(encoder),
        vocab_size=vocabulary_size(encoder),
        dtype=encoding.dtype,
        eos_token_id=encoding.eos_token_id,
        splits={
            split: _assemble(partial / "units", result, split, finished[split], encoding.dtype)
            for split in SPLITS
            if split == "train" or job.given[split] or job.fractions[split]
        },
        source=job.describe_with(left_out),
        parse_special_tokens=encoding.parse_special_tokens,
    )
    for split, contents in manifest.splits.items():
        if contents.tokens == 0:
            raise UserError(
                f"{split}: no text is left for it; give more text, a file of its own, or "
                f"a --{split}-fraction of 0"
            )
    manifest.save(result)
    seal_directory(result, KIND)
    check_output(out, KIND, overwrite=overwrite)  # another process may have been faster
    replace_directory(result, resolve_output(out))
    return manifest


def _assemble(folder: Path, result: Path, split: str, numbers: list[int], dtype: str) -> Split:
    """The units of a split, one after another, as shards; one unit at a time in memory."""
    total = Split(shards=[], tokens=0, documents=0, bytes=0, words=0)
    for number in numbers:
        unit = load_unit(folder, split, number)
        assert unit is not None
        total.tokens += unit.tokens
        total.documents += unit.documents
        total.bytes += unit.bytes
        total.words += unit.words
        total.special_tokens_in_text += unit.special_tokens_in_text
    tokens = (np.load(unit_name(folder, split, n).with_suffix(".npy")) for n in numbers)
    rest = np.empty(0, dtype=dtype)

    def next_tokens(count: int) -> Iterator[np.ndarray]:
        nonlocal rest
        while count:
            if len(rest) == 0:
                rest = next(tokens)
            taken, rest = rest[:count], rest[count:]
            count -= len(taken)
            yield taken

    for start in range(0, total.tokens, SHARD_TOKENS):
        length = min(SHARD_TOKENS, total.tokens - start)
        path = result / shard_name(split, len(total.shards))
        write_array(path, next_tokens(length), length, dtype)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.shards.append(Shard(path.name, length, digest))
    return total
