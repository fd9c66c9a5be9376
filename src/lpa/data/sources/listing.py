"""Which files a source means, and which others are left out."""

import errno
import glob
import os
import stat
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from lpa.data.manifest import MANIFEST_FILE
from lpa.data.sources.source import Source, escape_undecodable
from lpa.errors import LPAWarning, UserError
from lpa.storage.outputs import resolve_output, staging_directory
from lpa.storage.run_directory import CHECKPOINTS_DIRECTORY, CONFIG_FILE, METRICS_FILE

# File name ending -> how such a file is read.
FORMATS = {
    ".txt": "text",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = (".gz", ".zst")
# These are read out of order, and are compressed inside.
_NEVER_COMPRESSED = ("parquet", "arrow")
_MANIFEST_HEAD = 2**16
# What the library datasets writes beside tables, and what it lies beside then.
_OF_DATASETS = {
    "dataset_info.json": "*.arrow",
    "dataset_infos.json": "*.arrow",
    "state.json": "*.arrow",
    "dataset_dict.json": "*/*.arrow",
    "cache-*.arrow": "dataset_info.json",  # the result of an earlier `map`
}


class LeftOut:
    """What is not read of a source: for each reason how many, and which was the first.

    Args:
        earlier: what to count on from.
    """

    def __init__(self, earlier: "LeftOut | None" = None) -> None:
        self._counts: dict[str, int] = dict(earlier._counts) if earlier else {}
        self._first: dict[str, str] = dict(earlier._first) if earlier else {}

    def add(self, reason: str, name: str) -> None:
        self._counts[reason] = self._counts.get(reason, 0) + 1
        self._first.setdefault(reason, escape_undecodable(name))

    def describe(self) -> dict[str, dict[str, Any]]:
        """Reason -> its `count` and the name of the `first`, as a manifest holds it."""
        return {
            reason: {"count": count, "first": self._first[reason]}
            for reason, count in sorted(self._counts.items())
        }

    def __str__(self) -> str:
        return format_left_out(self.describe())


def format_left_out(described: Mapping[str, Mapping[str, Any]]) -> str:
    """What `LeftOut.describe` gives as part of a sentence; nothing where nothing is left out."""
    return ", ".join(
        f"{of['count']:,} {reason} ({of['first']}{', …' if of['count'] > 1 else ''})"
        for reason, of in described.items()
    )


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source in sorted order, listed once, and what is left out of them."""

    source: Source
    files: tuple[Path, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)


def format_of(path: Path) -> str | None:
    """How a file is read: by the ending of its name, in upper or lower case; None if unknown."""
    name = Path(path.name.lower())
    if name.suffix not in COMPRESSIONS:
        return FORMATS.get(name.suffix)
    inner = FORMATS.get(Path(name.stem).suffix)
    return None if inner in _NEVER_COMPRESSED else inner


def list_files(
    source: Source,
    *,
    output: Path | None = None,
    held_out: Collection[str] = (),
    elsewhere: Collection[str] = (),
) -> SourceFiles:
    """The files that a source means.

    A path that exists is that path; only what does not exist is a pattern. A file that is named is read
    or refused. Of what a directory or a pattern brings along, hidden entries, files that cannot be read
    as documents, second names of a file, and outputs of this package are left out.

    Args:
        source: what the user named.
        output: the directory that the command is going to write; nothing in it is a source.
        held_out: files of splits that are held out from this one, which a directory or a pattern
            leaves out; as `os.path.realpath` names them.
        elsewhere: files that other sources of this split read; likewise.

    Raises:
        UserError: there is no file, or what is named cannot be a source.
    """
    if source.on_hub:
        return SourceFiles(source)
    location = source.path
    if os.path.lexists(location) and not os.path.isdir(location):
        if reason := _unfit(location):
            raise UserError(f"{location}: {reason.message}")
        if output is not None and _is_within(location, output):
            raise UserError(
                f"--out {output}: holds the source {location}; choose another directory"
            )
        if os.path.realpath(location) in held_out:
            warnings.warn(
                f"{location}: is text of two splits at once, so a model is tested on text that it was "
                "trained or chosen with",
                LPAWarning,
                stacklevel=2,
            )
        return SourceFiles(source, (Path(location),))

    search = _Search(output, held_out, elsewhere)
    if os.path.isdir(location):
        if reason := search.closed(location):
            raise UserError(f"{location}: {reason.message}; expected text")
        search.add_directory(location)
    else:
        matches = _expand(Path(location))
        if not matches:
            raise UserError(f"{location}: no such file")
        for name in sorted(matches):
            search.add_match(name, _fixed_part(Path(location)))
    files = search.files()
    if not files:
        left_out = str(search.left_out)
        raise UserError(
            f"{location}: holds no file that ends in {', '.join(FORMATS)}"
            + (f"; left out: {left_out}" if left_out else "")
        )
    return SourceFiles(source, files, search.left_out)


class _Reason(NamedTuple):
    """Why something is no source: what such things are called in a count, and of one alone."""

    kind: str
    message: str


class _Search:
    """Collects the files below directories and those that a pattern matches."""

    def __init__(
        self, output: Path | None, held_out: Collection[str], elsewhere: Collection[str]
    ) -> None:
        self.left_out = LeftOut()
        self._found: set[str] = set()
        self._output = output
        self._held_out = held_out
        self._elsewhere = elsewhere
        self._entered: set[str] = set()
        self._closed: dict[str, _Reason | None] = {}

    def files(self) -> tuple[Path, ...]:
        """What was found, in sorted order; a file that a link names too goes by its own name."""
        kept: dict[str, str] = {}
        for name in sorted(self._found, key=lambda name: (os.path.islink(name), name)):
            if os.path.islink(name) and os.path.realpath(name) in kept:
                self._leave_out("links to files that are read", name)
            else:
                kept[os.path.realpath(name)] = name
        return tuple(sorted(Path(name) for name in kept.values()))

    def add_match(self, name: str, top: Path) -> None:
        """What a pattern matches: a file, or a directory with all that is in it.

        Args:
            name: of the match.
            top: the part of the pattern that is no pattern; what is above it does not matter.
        """
        folders = [folder for folder in Path(name).parents if folder.is_relative_to(top)]
        if any(self._left_out_directory(str(folder)) for folder in folders):
            return
        if os.path.isdir(name):
            self.add_directory(name)
        else:
            self._add_file(name)

    def add_directory(self, top: str) -> None:
        for folder, directories, files in _walk(top, self._enter):
            for name in directories:
                if _is_hidden(name) and not self._is_unfinished_output(folder, name):
                    self._leave_out("hidden directories", name)
            for name in files:
                if _is_hidden(name):
                    self._leave_out("hidden files", name)
                else:
                    self._add_file(os.path.join(folder, name))

    def _is_unfinished_output(self, folder: str, name: str) -> bool:
        """Whether a directory is the work of an earlier, killed process on the same output."""
        if self._output is None:
            return False
        partial = staging_directory(resolve_output(self._output), "partial")
        return os.path.realpath(os.path.join(folder, name)) == os.path.realpath(partial)

    def _add_file(self, name: str) -> None:
        if reason := _unfit(name):
            self._leave_out(reason.kind, name)
        elif _is_of_datasets(Path(name)):
            self._leave_out("metadata and cache of datasets", name)
        elif os.path.realpath(name) in self._held_out:
            self._leave_out("files of another split", name)
        elif os.path.realpath(name) in self._elsewhere:
            self._leave_out("files of another source", name)
        else:
            self._found.add(name)

    def _leave_out(self, kind: str, name: str) -> None:
        self.left_out.add(kind, os.path.basename(name))

    def _enter(self, folder: str) -> bool:
        real = os.path.realpath(folder)
        if real in self._entered or self._left_out_directory(folder):
            return False
        self._entered.add(real)
        return True

    def _left_out_directory(self, folder: str) -> bool:
        if folder not in self._closed:
            self._closed[folder] = reason = self.closed(folder)
            if reason:
                self._leave_out(reason.kind, folder)
        return self._closed[folder] is not None

    def closed(self, folder: str) -> _Reason | None:
        """Why nothing below a directory is a source, if so."""
        if self._output is not None and _is_within(folder, self._output):
            return _Reason("output directories", f"is written by --out {self._output}")
        if _is_prepared(folder):
            return _Reason("prepared data directories", "is a prepared data directory")
        if _is_run(folder):
            return _Reason("run directories", "is a run directory")
        return None


def _walk(top: str, enter: Callable[[str], bool]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Directories from `top` on that may be entered, with the names of the directories and files in each.

    Hidden directories are not entered. Links are followed last, so that what they lead to goes by its
    own name if it is below `top` itself.
    """
    pending = [top]
    while pending:
        for folder, directories, files in os.walk(pending.pop(0), onerror=_refuse):
            if not enter(folder):
                directories.clear()
                continue
            directories.sort()
            yield folder, directories, sorted(files)
            directories[:] = [name for name in directories if not _is_hidden(name)]
            paths = [os.path.join(folder, name) for name in directories]
            pending += [path for path in paths if os.path.islink(path)]


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _expand(pattern: Path) -> set[str]:
    """What a pattern matches; `**` enters each directory once, where `glob` would follow loops of links."""
    if "**" not in pattern.parts:
        return set(glob.glob(str(pattern)))
    at = pattern.parts.index("**")
    rest = pattern.parts[at + 1 :] or ("*",)
    found: set[str] = set()
    for top in filter(os.path.isdir, _expand(Path(*pattern.parts[:at]))):
        entered: set[str] = set()

        def enter(folder: str, entered: set[str] = entered) -> bool:
            real = os.path.realpath(folder)
            new = real not in entered
            entered.add(real)
            return new

        for folder, _, _ in _walk(top, enter):
            found |= _expand(Path(glob.escape(str(Path(folder))), *rest))
    return found


def _fixed_part(pattern: Path) -> Path:
    """The directory that a pattern names before its first part with a wildcard."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _unfit(name: str) -> _Reason | None:
    """Why a file cannot be read as documents, if so."""
    try:
        status = os.stat(name)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise UserError(f"{name}: cannot be read: {error.strerror}") from error
        return _Reason("broken links", f"is a broken link: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return _Reason("special files", "is not a file")
    if format_of(Path(name)) is None:
        compressed = [end for end, kind in FORMATS.items() if kind not in _NEVER_COMPRESSED]
        return _Reason(
            "files with another ending",
            f"unknown ending; expected one of {', '.join(FORMATS)}, or one of "
            f"{', '.join(compressed)} with {' or '.join(COMPRESSIONS)}",
        )
    if status.st_size == 0:
        return _Reason("empty files", "is empty; expected text")
    return None


def _is_of_datasets(path: Path) -> bool:
    return any(
        fnmatchcase(path.name, kind) and any(path.parent.glob(beside))
        for kind, beside in _OF_DATASETS.items()
    )


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _is_within(name: str, directory: Path) -> bool:
    real = os.path.realpath(directory)
    return os.path.commonpath([os.path.realpath(name), real]) == real


def _is_prepared(folder: str) -> bool:
    """Whether a directory holds a manifest of ours, as others call their files `manifest.json` too."""
    try:
        with open(os.path.join(folder, MANIFEST_FILE), "rb") as file:
            return b'"tokenizer_sha256"' in file.read(_MANIFEST_HEAD)
    except OSError:
        return False


def _is_run(folder: str) -> bool:
    """Whether a directory holds what `lpa train` writes."""
    return os.path.isfile(os.path.join(folder, CONFIG_FILE)) and (
        os.path.isfile(os.path.join(folder, METRICS_FILE))
        or os.path.isdir(os.path.join(folder, CHECKPOINTS_DIRECTORY))
    )
