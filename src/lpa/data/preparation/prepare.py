"""Documents to a prepared data directory: tokenizer, token shards, manifest.

Work is kept beside the output in `.<name>.partial/` until it is complete: units of some megabytes, each
finished or not. A process that was killed or met a bad row leaves them, and the same command
resumes from there and produces the same bytes, even where the text has been corrected in between.
"""

import errno
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

from lpa.callbacks import ProgressCallback
from lpa.data.manifest import SPLITS, TOKENIZER_DIRECTORY, Manifest
from lpa.data.preparation.chunking import Chunker
from lpa.data.preparation.encode_jobs import (
    Encoding,
    JobEncoder,
    encode_in_worker,
    finished_units,
    group_chunks,
    init_worker,
    load_job_stats,
)
from lpa.data.preparation.prepare_config import AllLeftOut, PrepareConfig
from lpa.data.preparation.shards import write_shards
from lpa.data.preparation.splitting import SourceScan, SplitAssigner, SplitChunk, scan_sources
from lpa.data.sources.listing import SourceFiles, list_files
from lpa.data.sources.source import Source
from lpa.data.tokenizer import (
    load_fast_tokenizer,
    load_tokenizer,
    tokenizer_hash,
    train_tokenizer,
    vocabulary_size,
)
from lpa.errors import LPAWarning, UserError
from lpa.storage.files import write_text_atomic
from lpa.storage.locks import hold_directory
from lpa.storage.outputs import (
    check_output_directory,
    content_of,
    finish_directory,
    replace_directory,
    resolve_output,
    staging_directory,
)

# What the marker of an output directory calls it.
KIND = "a prepared data directory"
TOKENIZER_TRAINING_CHARACTERS = 2**28
_SINGLE_PROCESS_BYTES = 2**22  # below this, starting processes takes longer than the work


def prepare(
    sources: Sequence[str | Path | Source],
    out: str | Path,
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
    on_progress: ProgressCallback = lambda what, done, total: None,
) -> Manifest:
    """Turns text into a prepared data directory, complete or not at all.

    Args:
        sources: training text: files, directories, globs or datasets of the hub (see `Source.parse`).
        out: the directory to make.
        vocab_size: train a byte-level BPE of this size on the training documents, or
        tokenizer: use this one (see `load_tokenizer`).
        validation: separate held-out text to validate with.
        test: separate held-out text to test with.
        validation_fraction: the share of `sources` to hold out where `validation` names none (see
            `SplitAssigner`).
        test_fraction: likewise for `test`.
        boundary: of sources that do not say it (see `Source`).
        column: likewise.
        errors: likewise.
        deduplicate: leave out training documents equal to an earlier one.
        parse_special_tokens: let text that spells a special token become that token (see `TextEncoder`).
        workers: processes that encode; by default one per core.
        overwrite: replace what `out` holds.
        on_progress: called as the work progresses.

    Returns:
        The manifest: vocabulary, and tokens and documents of each split.

    Raises:
        UserError: bad input, named; nothing is left behind but units that were finished before a bad
            row was met. Or no space left; what is finished stays.

    Example:
        manifest = lpa.prepare(["train.txt"], "data", vocab_size=4096, validation=["valid.txt"])
    """
    if (vocab_size is None) == (tokenizer is None):
        raise UserError("expected one of --vocab-size and --tokenizer")
    if not sources:
        raise UserError("SOURCE: got no file; expected at least one")
    if workers is not None and workers < 1:
        raise UserError(f"workers: got {workers}; expected at least 1")
    out = Path(out)
    check_output_directory(out, KIND, overwrite=overwrite)
    defaults = {"boundary": boundary, "column": column, "errors": errors}

    def listed(
        given_sources: Sequence[str | Path | Source], held_out: Iterable[Path] = ()
    ) -> list[SourceFiles]:
        parsed = (
            s if isinstance(s, Source) else Source.parse(s, **defaults) for s in given_sources
        )
        return [list_files(source, output=out, held_out=held_out) for source in parsed]

    sources_by_split = {"validation": listed(validation), "test": listed(test)}
    held_out = [
        file
        for split_chunks in sources_by_split.values()
        for of in split_chunks
        for file in of.files
    ]
    config = PrepareConfig(
        sources_by_split={"train": listed(sources, held_out), **sources_by_split},
        fractions={
            "validation": 0.0 if validation else validation_fraction,
            "test": 0.0 if test else test_fraction,
        },
        deduplicate=deduplicate,
        workers=workers or _available_cores(),
    )
    _check_fractions(config.fractions)
    with _work_directory(out, config, vocab_size, tokenizer) as partial:
        with _keep_finished_units(partial):
            scan = scan_sources(
                config.sources_by_split["train"], config.fractions, deduplicate=deduplicate
            )
            if scan.documents == 0:
                raise UserError(f"{', '.join(map(str, sources))}: no text")
            encoder = _get_tokenizer(partial, config, scan, vocab_size, tokenizer, on_progress)
            encoding = Encoding(
                partial / TOKENIZER_DIRECTORY / "tokenizer.json",
                encoder.eos_token_id,
                "uint16" if vocabulary_size(encoder) <= 2**16 else "uint32",
                parse_special_tokens=parse_special_tokens,
            )
            finished, left_out = _encode_all(partial, config, scan, encoding, on_progress)
        on_progress("writing shards", 0, 0)
        return _finalize(
            partial, out, config, encoder, encoding, finished, left_out, overwrite=overwrite
        )


def _available_cores() -> int:
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
def _work_directory(
    out: Path, config: PrepareConfig, vocab_size: int | None, tokenizer: str | Path | None
) -> Iterator[Path]:
    """The folder of unfinished work: that of an earlier process, or an empty one.

    It goes when the work is complete or the input is bad; it stays when the process is stopped, or has
    finished units before it meets bad input. Of another job only units are kept: each says what it is of.
    """
    partial = staging_directory(resolve_output(out), "partial")
    identity = {
        "job": config.describe(paths=True),
        "vocab_size": vocab_size,
        "tokenizer": None if tokenizer is None else str(tokenizer),
    }
    with hold_directory(partial, output=out):
        plan = partial / "plan.json"
        text = json.dumps(identity, indent=2)
        if not plan.is_file() or plan.read_bytes() != text.encode():
            for path in content_of(partial):
                if path.name != "jobs":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            (partial / "jobs").mkdir(exist_ok=True)
            write_text_atomic(plan, text)
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
        if finished := finished_units(partial / "jobs"):
            raise _UnfinishedError(
                f"{error}; the {finished:,} units that are finished are kept in {partial}: correct this and "
                "give the same command again, or remove that directory"
            ) from error
        raise


def _get_tokenizer(
    partial: Path,
    config: PrepareConfig,
    scan: SourceScan,
    vocab_size: int | None,
    tokenizer: str | Path | None,
    on_progress: ProgressCallback,
) -> Any:
    """The tokenizer, trained or loaded, kept among the unfinished work."""
    tokenizer_directory = partial / TOKENIZER_DIRECTORY
    if tokenizer_directory.exists():
        return _open_tokenizer(tokenizer_directory)
    if tokenizer is not None:
        encoder = _open_tokenizer(tokenizer)
    else:
        assert vocab_size is not None
        on_progress("training the tokenizer", 0, 0)
        encoder = train_tokenizer(_tokenizer_training_text(config, scan), vocab_size)
        if len(encoder) < vocab_size:
            warnings.warn(
                f"vocab_size: the text yields only {len(encoder)} of {vocab_size} tokens",
                LPAWarning,
                stacklevel=4,
            )
    temporary = partial / "tokenizer.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    encoder.save_pretrained(temporary)
    os.replace(temporary, tokenizer_directory)
    return _open_tokenizer(tokenizer_directory)


def _open_tokenizer(path: str | Path) -> Any:
    return load_fast_tokenizer(path) or load_tokenizer(path)


def _tokenizer_training_text(config: PrepareConfig, scan: SourceScan) -> Iterator[str]:
    """Training text for the tokenizer: the first of each source, as much of each as of the others."""
    characters_per_source = TOKENIZER_TRAINING_CHARACTERS // len(config.sources_by_split["train"])
    assignment = SplitAssigner(config.sources_by_split["train"], config.fractions, scan)
    for chunk in assignment.chunks(Chunker(None), limit=characters_per_source):
        if chunk.split == "train":
            yield chunk.text


# Split -> the numbers of its units, in order.
Finished = dict[str, list[int]]


def _chunks(
    config: PrepareConfig,
    scan: SourceScan,
    chunker: Chunker,
    on_bytes: Callable[[int], None],
    left_out: AllLeftOut,
) -> Iterator[SplitChunk]:
    """The text of all splits, in an order that is always the same."""
    training = SplitAssigner(config.sources_by_split["train"], config.fractions, scan)
    yield from training.chunks(chunker, on_bytes, left_out=left_out["train"])
    for split in ("validation", "test"):
        none = {"validation": 0.0, "test": 0.0}
        held_out = SplitAssigner(config.sources_by_split[split], none, SourceScan())
        for chunk in held_out.chunks(chunker, on_bytes, left_out=left_out[split]):
            yield chunk._replace(split=split)


def _encode_all(
    partial: Path,
    config: PrepareConfig,
    scan: SourceScan,
    encoding: Encoding,
    on_progress: ProgressCallback,
) -> tuple[Finished, AllLeftOut]:
    """Encode all units that are not finished; returns the numbers of all, and what is left out."""
    total, done = config.size(), 0
    repeated = any(listed.source.weight > 1 for listed in config.sources_by_split["train"])
    left_out = config.left_out()

    def on_bytes(size: int) -> None:
        nonlocal done
        done += size
        on_progress("encoding", done, 0 if repeated else total)

    folder = partial / "jobs"
    chunks = _chunks(config, scan, Chunker(encoding.text_encoder()), on_bytes, left_out)
    finished: Finished = {split: [] for split in SPLITS}

    def unfinished_items() -> Iterator[EncodeItem]:
        for number, chunk_group in enumerate(group_chunks(chunks)):
            for split, split_chunks in _group_by_split(chunk_group):
                finished[split].append(number)
                job = load_job_stats(folder, split, number)
                if job is None or job.digest != encoding.digest(split_chunks):
                    yield number, split, split_chunks

    arguments = (encoding, folder)
    if total < _SINGLE_PROCESS_BYTES or config.workers == 1:
        encoder_here = JobEncoder(*arguments)
        for item in unfinished_items():
            encoder_here.encode(*item)
    else:
        _encode_in_processes(unfinished_items(), config.workers, arguments)
    return finished, left_out


# The number of a unit, one of its splits, and the pieces of that split.
EncodeItem = tuple[int, str, list[SplitChunk]]


def _encode_in_processes(
    items: Iterator[EncodeItem], workers: int, arguments: tuple[Any, ...]
) -> None:
    """Encode units in processes, a few more at a time than there are, so that memory stays bounded."""
    with ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),  # threads of this process make forking unsafe
        initializer=init_worker,
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


def _group_by_split(chunk_group: list[SplitChunk]) -> list[tuple[str, list[SplitChunk]]]:
    chunks = {split: [chunk for chunk in chunk_group if chunk.split == split] for split in SPLITS}
    return [(split, split_chunks) for split, split_chunks in chunks.items() if split_chunks]


def _finalize(
    partial: Path,
    out: Path,
    config: PrepareConfig,
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
            split: write_shards(partial / "jobs", result, split, finished[split], encoding.dtype)
            for split in SPLITS
            if split == "train" or config.sources_by_split[split] or config.fractions[split]
        },
        source=config.describe_with(left_out),
        parse_special_tokens=encoding.parse_special_tokens,
    )
    for split, contents in manifest.splits.items():
        if contents.tokens == 0:
            raise UserError(
                f"{split}: no text is left for it; give more text, a separate file, or "
                f"a --{split}-fraction of 0"
            )
    manifest.save(result)
    finish_directory(result, KIND)
    check_output_directory(out, KIND, overwrite=overwrite)  # another process may have been faster
    replace_directory(result, resolve_output(out))
    return manifest
