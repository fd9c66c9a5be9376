"""Documents to a prepared data directory: tokenizer, token shards, manifest.

Work is kept beside the output in `.<name>.partial/` until it is complete: jobs of some megabytes, each
finished or not. A process that was killed or met a bad row leaves them, and the same command
resumes from there and produces the same bytes, even where the text has been corrected in between.
"""

import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lpa.callbacks import ProgressCallback
from lpa.data.document_limits import document_bos_token
from lpa.data.manifest import SPLITS, TOKENIZER_DIRECTORY, Manifest
from lpa.data.preparation.chunking import Chunker
from lpa.data.preparation.encode_jobs import Encoding
from lpa.data.preparation.encode_splits import Finished, encode_all
from lpa.data.preparation.prepare_config import AllLeftOut, PrepareConfig, TokenizerChoice
from lpa.data.preparation.shards import write_shards
from lpa.data.preparation.splitting import SourceScan, SplitAssigner, scan_sources
from lpa.data.preparation.tokenizer_text import tokenizer_training_text
from lpa.data.preparation.work_directory import (
    RESULT_DIRECTORY,
    keep_finished_jobs,
    recover_output,
    work_directory,
)
from lpa.data.sources.documents import read_fragments
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
from lpa.storage.outputs import (
    check_output_directory,
    finish_directory,
    replace_directory,
    resolve_output,
    written_files,
)

# What the marker of an output directory calls it.
KIND = "a prepared data directory"
_VALIDATION_FRACTION = 0.01

OneOrSeveral = str | Path | Source | Sequence[str | Path | Source]


def prepare(
    sources: OneOrSeveral,
    out: str | Path,
    *,
    vocab_size: int | None = None,
    tokenizer: str | Path | None = None,
    chat_template: str | None = None,
    validation: OneOrSeveral = (),
    test: OneOrSeveral = (),
    validation_fraction: float | None = None,
    test_fraction: float | None = None,
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
        sources: training text, one or several: files, directories, globs or datasets on the hub (see
            `Source.parse`).
        out: the directory to make.
        vocab_size: the size of a byte-level BPE to train on the training documents; or give `tokenizer`.
        tokenizer: an existing tokenizer to use instead (see `load_tokenizer`).
        chat_template: give the tokenizer that is trained this template of conversations and its special
            tokens: `chatml`.
        validation: separate held-out text to validate with.
        test: separate held-out text to test with.
        validation_fraction: the fraction of `sources` to hold out (see `SplitAssigner`); by default 0.01,
            or 0 with `validation`.
        test_fraction: likewise for the test; by default 0.
        boundary: where a document of a text file ends: `file`, `blank` or `line`. This and the next two
            apply to sources that do not set them (see `Source`).
        column: the field that holds the text, where documents are rows.
        errors: how to read bytes that are not UTF-8: `strict` refuses the file, `replace` puts U+FFFD.
        deduplicate: leave out training documents equal to an earlier one.
        parse_special_tokens: let text that spells a special token become that token (see `TextEncoder`).
        workers: processes that encode; by default one per core.
        overwrite: replace what `out` holds.
        on_progress: called as the work progresses.

    Returns:
        The manifest: vocabulary, and tokens and documents of each split.

    Raises:
        UserError: bad input, named; nothing is left behind but jobs that were finished before it was
            met. Or no space left; what is finished stays.

    Example:
        manifest = lpa.prepare(["train.txt"], "data", vocab_size=4096, validation=["valid.txt"])
    """
    if (vocab_size is None) == (tokenizer is None):
        given = "neither" if tokenizer is None else "both"
        raise UserError(f"--vocab-size, --tokenizer: got {given}; expected exactly one of them")
    if chat_template is not None and tokenizer is not None:
        raise UserError("--chat-template: works only with --vocab-size; a tokenizer has its own")
    sources, validation, test = map(_several, (sources, validation, test))
    if not sources:
        raise UserError("SOURCE: got no file; expected at least one")
    if workers is not None and workers < 1:
        raise UserError(f"--workers: got {workers}; expected at least 1")
    out = Path(out)
    recover_output(out)
    check_output_directory(out, KIND, overwrite=overwrite)
    defaults = {"boundary": boundary, "column": column, "errors": errors}

    config = PrepareConfig(
        sources_by_split=_list_splits(
            {
                split: [
                    source if isinstance(source, Source) else Source.parse(source, **defaults)
                    for source in given
                ]
                for split, given in (("train", sources), ("validation", validation), ("test", test))
            },
            out,
        ),
        fractions={
            "validation": _held_out_fraction(
                "validation", validation, validation_fraction, default=_VALIDATION_FRACTION
            ),
            "test": _held_out_fraction("test", test, test_fraction, default=0.0),
        },
        deduplicate=deduplicate,
        workers=workers or _available_cores(),
    )
    _check_fractions(config.fractions)
    tokenizer_choice = TokenizerChoice(
        vocab_size, None if tokenizer is None else str(tokenizer), chat_template
    )
    with work_directory(out, config, tokenizer_choice) as partial, keep_finished_jobs(partial):
        _check_held_out_sources(config)
        scan = scan_sources(
            config.sources_by_split["train"], config.fractions, deduplicate=deduplicate
        )
        if scan.documents == 0:
            raise UserError(f"{', '.join(map(str, sources))}: no text")
        _check_text_left(config, scan)
        encoder = _get_tokenizer(partial, config, scan, tokenizer_choice, on_progress)
        config.check_unchanged()
        encoding = Encoding(
            partial / TOKENIZER_DIRECTORY / "tokenizer.json",
            document_bos_token(encoder),
            encoder.eos_token_id,
            "uint16" if vocabulary_size(encoder) <= 2**16 else "uint32",
            parse_special_tokens=parse_special_tokens,
        )
        finished, left_out = encode_all(partial, config, scan, encoding, on_progress)
        config.check_unchanged()
        on_progress("writing shards", 0, 0)
        return _finalize(
            partial, out, config, encoder, encoding, finished, left_out, overwrite=overwrite
        )


def _several(sources: OneOrSeveral) -> Sequence[str | Path | Source]:
    return [sources] if isinstance(sources, str | Path | Source) else sources


def _list_splits(sources: dict[str, list[Source]], out: Path) -> dict[str, list[SourceFiles]]:
    """Split -> its sources with their files.

    A directory or a pattern leaves out what is held out from its split: of training all held-out text, of
    validation that of the test, and of the test the files that are named for validation.
    """
    named = _named_files(sources["validation"])
    test = _list_split("test", sources["test"], out, named)
    validation = _list_split("validation", sources["validation"], out, _real_files(test) - named)
    held_out = _real_files(validation) | _real_files(test)
    train = _list_split("train", sources["train"], out, held_out)
    return {"train": train, "validation": validation, "test": test}


def _list_split(
    split: str, sources: list[Source], out: Path, held_out: set[str]
) -> list[SourceFiles]:
    """The sources of a split with their files.

    A directory or a pattern leaves out what another source of the split names, and what an earlier
    one reads the same column of.

    Raises:
        UserError: a file or a dataset on the hub is named twice.
    """
    named = _named_files(sources)
    places: set[tuple[str, ...]] = set()
    read: dict[str, set[str]] = {}  # column -> files that another source reads
    listed = []
    for source in sources:
        elsewhere = read.setdefault(source.column, set(named))
        files = list_files(source, output=out, held_out=held_out, elsewhere=elsewhere)
        real = os.path.realpath(source.path)
        if source.on_hub or real in named:
            place = (real, str(source.name), source.split, source.column)
            if place in places:
                raise UserError(
                    f"{source.path}: is named twice for {split}; expected once (with a weight of 2, "
                    "training text is read twice)"
                )
            places.add(place)
        elsewhere |= _real_files([files])
        listed.append(files)
    return listed


def _named_files(sources: list[Source]) -> set[str]:
    return {os.path.realpath(of.path) for of in sources if os.path.isfile(of.path)}


def _real_files(listed: list[SourceFiles]) -> set[str]:
    return {os.path.realpath(file) for of in listed for file in of.files}


def _available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _held_out_fraction(
    split: str, sources: Sequence[Any], given: float | None, *, default: float
) -> float:
    """The fraction of the training sources to hold out, which separate sources take the place of."""
    if sources and given:
        raise UserError(f"--{split}-fraction: got {given:g} beside --{split}; expected one of them")
    return (0.0 if sources else default) if given is None else given


def _check_fractions(fractions: dict[str, float]) -> None:
    for name, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise UserError(f"--{name}-fraction: got {fraction}; expected at least 0 and below 1")
    if sum(fractions.values()) >= 1:
        total = sum(fractions.values())
        raise UserError(
            f"--validation-fraction, --test-fraction: got {total:g} in all; expected below 1"
        )


def _check_held_out_sources(config: PrepareConfig) -> None:
    """Refuse held-out sources without text before all other text is encoded."""
    for split in ("validation", "test"):
        listed = config.sources_by_split[split]
        if listed and not any(True for of in listed for _ in read_fragments(of)):
            names = ", ".join(of.source.path for of in listed)
            raise UserError(f"--{split} {names}: no text")


def _check_text_left(config: PrepareConfig, scan: SourceScan) -> None:
    """Refuse splits for which the training sources leave no text before all text is encoded.

    Whether whole documents leave any to hold out shows only when all are read.
    """
    for split, fraction in config.fractions.items():
        if fraction and scan.parts is not None and not any(getattr(of, split) for of in scan.parts):
            raise _no_text_left(split)
    assigner = SplitAssigner(config.sources_by_split["train"], config.fractions, scan)
    chunks = assigner.chunks(Chunker(None), lambda size: None, config.left_out()["train"])
    if not any(chunk.split == "train" for chunk in chunks):
        raise _no_text_left("train")


def _no_text_left(split: str) -> UserError:
    instead = (
        "smaller fractions to hold out, or a larger weight"
        if split == "train"
        else f"a separate file, or a --{split}-fraction of 0"
    )
    return UserError(f"{split}: no text is left for it; give more text, {instead}")


def _get_tokenizer(
    partial: Path,
    config: PrepareConfig,
    scan: SourceScan,
    choice: TokenizerChoice,
    on_progress: ProgressCallback,
) -> Any:
    """The tokenizer, trained or loaded, kept among the unfinished work."""
    tokenizer_directory = partial / TOKENIZER_DIRECTORY
    if choice.tokenizer is not None:
        encoder = _open_tokenizer(choice.tokenizer)
    elif tokenizer_directory.exists():
        return _open_tokenizer(tokenizer_directory)
    else:
        vocab_size = choice.vocab_size
        assert vocab_size is not None
        text = tokenizer_training_text(config, scan, on_progress)
        on_progress("training the tokenizer", 0, 0)
        encoder = train_tokenizer(text, vocab_size, choice.chat_template)
        if len(encoder) < vocab_size:
            warnings.warn(
                f"--vocab-size: the text yields only {len(encoder)} of {vocab_size} tokens",
                LPAWarning,
                stacklevel=4,
            )
    temporary = partial / "tokenizer.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    with written_files(temporary):
        encoder.save_pretrained(temporary)
    if tokenizer_directory.exists():
        if changed := _changed_files(tokenizer_directory, temporary):
            warnings.warn(
                f"tokenizer {choice.tokenizer}: {', '.join(changed)} has changed since this preparation was "
                "started; what the old one encoded is encoded again",
                LPAWarning,
                stacklevel=4,
            )
        shutil.rmtree(tokenizer_directory)
    os.replace(temporary, tokenizer_directory)
    return _open_tokenizer(tokenizer_directory)


def _changed_files(old: Path, new: Path) -> list[str]:
    """The names of files that differ between two directories."""
    contents = [
        {
            str(file.relative_to(directory)): file.read_bytes()
            for file in directory.rglob("*")
            if file.is_file()
        }
        for directory in (old, new)
    ]
    names = sorted(contents[0].keys() | contents[1].keys())
    return [name for name in names if contents[0].get(name) != contents[1].get(name)]


def _open_tokenizer(path: str | Path) -> Any:
    return load_fast_tokenizer(path) or load_tokenizer(path)


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
    """Put the jobs together, write the manifest, and move the result to its place."""
    result = partial / RESULT_DIRECTORY
    shutil.rmtree(result, ignore_errors=True)
    result.mkdir()
    with written_files(result):
        shutil.copytree(partial / TOKENIZER_DIRECTORY, result / TOKENIZER_DIRECTORY)
    manifest = Manifest(
        tokenizer_sha256=tokenizer_hash(encoder),
        vocab_size=vocabulary_size(encoder),
        dtype=encoding.dtype,
        bos_token_id=encoding.bos_token_id,
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
            raise _no_text_left(split)
    manifest.save(result)
    finish_directory(result, KIND)
    check_output_directory(out, KIND, overwrite=overwrite)  # another process may have been faster
    replace_directory(result, resolve_output(out))
    return manifest
