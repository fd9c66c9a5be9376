"""Outputs: complete or not at all, known as ours, and replaced only where they are.

Every directory that a command writes holds a marker, which says what kind of output it is and, where it is
written once, which files belong to it. `--overwrite` replaces a directory with such a marker and nothing
else; a file that the command did not write is never removed.

Work is kept beside the output and renamed over it when it is complete. Where that cannot be, since the
output is a mount point, the working directory or in a directory that cannot be written, the work is kept in
a hidden directory inside the output.
"""

import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from lpa.errors import UserError
from lpa.storage.files import created_directories, sync, write_json
from lpa.storage.records import read_json

MARKER_FILE = ".lpa-output.json"
# What several commands write.
MODEL = "a model directory"
# Names of ours in an output directory that are no part of its content: locks and unfinished work.
_HIDDEN = ".lpa."
# The name of content that is being removed.
_REMOVED = f"{_HIDDEN}removed"
# What a file system itself puts into its root directory.
_SYSTEM_ENTRIES = {"lost+found"}


@dataclass
class Marker:
    """What is known of an output directory.

    Attributes:
        kind: what it holds, such as "a prepared data directory".
        files: the files that belong to it, relative to it; patterns of `fnmatch` where it is a directory that
            grows.
    """

    kind: str
    files: list[str] = field(default_factory=list)

    def save(self, directory: Path) -> None:
        write_json(directory / MARKER_FILE, asdict(self))


def resolve_output(path: Path) -> Path:
    """The directory that an output path means, symbolic links followed.

    Raises:
        UserError: the links lead in a circle, or `path` is no directory.
    """
    target = _follow_links(path, "--out")
    if target.exists() and not target.is_dir():
        raise UserError(f"--out {path}: is a file; expected a new directory")
    return target


def _follow_links(path: Path, option: str) -> Path:
    try:
        target: Path | None = path.resolve()
    except (OSError, RuntimeError):  # up to Python 3.12; from 3.13 on a link is left
        target = None
    if target is None or target.is_symlink():
        raise UserError(f"{option} {path}: its symbolic links form a loop")
    return target


def check_output_file(
    path: Path,
    kind: str,
    is_ours: Callable[[Path], bool],
    *,
    option: str = "--out",
    overwrite: bool,
) -> Path:
    """The file that an output path means, symbolic links followed, if it may be written.

    Args:
        path: what the user named.
        kind: what the command writes, such as "a GGUF file".
        is_ours: whether an existing file is of that kind.
        option: by which the user named it.
        overwrite: replace a file of that kind.

    Raises:
        UserError: the links lead in a circle, or `path` is a directory or a file that may not be replaced.
    """
    target = _follow_links(path, option)
    if target.is_dir():
        raise UserError(f"{option} {path}: is a directory; expected a file to write")
    if not target.exists():
        return target
    if not overwrite:
        raise UserError(f"{option} {path}: already exists; choose a new file or pass --overwrite")
    if not target.is_file() or not is_ours(target):
        raise UserError(
            f"{option} {path}: is not {kind} that this command wrote; choose another file"
        )
    return target


def is_in_use(directory: Path) -> bool:
    """Whether a directory holds anything but locks and unfinished work of ours."""
    return directory.is_dir() and any(content_of(directory))


def check_output_directory(path: Path, kind: str, *, overwrite: bool = False) -> None:
    """Refuse an output directory that holds anything, unless it may be replaced.

    Args:
        path: the directory.
        kind: what the command writes.
        overwrite: replace what it holds, if that is output of the same kind and nothing else.

    Raises:
        UserError: `path` is a file, or a directory with something in it that may not be replaced.
    """
    target = resolve_output(path)
    if not is_in_use(target):
        return
    if not overwrite:
        raise UserError(f"--out {path}: already exists; choose a new directory or pass --overwrite")
    marker = read_marker(target)
    if marker is None or marker.kind != kind:
        found = f"it is {marker.kind}" if marker else f"it has no {MARKER_FILE}"
        raise UserError(
            f"--overwrite: {path} is not {kind} that this command wrote ({found}); choose another directory"
        )
    if foreign := next(_foreign_files(target, marker), None):
        raise UserError(
            f"--overwrite: {path} holds {foreign}, which this command did not write; move it away or choose "
            "another directory"
        )


def read_marker(directory: Path) -> Marker | None:
    """The marker of a directory; None where it has none.

    Raises:
        UserError: it is damaged.
    """
    path = directory / MARKER_FILE
    return read_json(path, Marker) if path.exists() else None


def content_of(directory: Path) -> Iterator[Path]:
    """The entries of a directory that are no locks and no unfinished work of ours."""
    for entry in directory.iterdir():
        if not entry.name.startswith(_HIDDEN) and entry.name not in _SYSTEM_ENTRIES:
            yield entry


def files_of(directory: Path) -> list[str]:
    """All files of a directory, relative to it; links and directories without files count as such."""
    return sorted(_files(directory))


def _files(directory: Path) -> Iterator[str]:
    for entry in content_of(directory):
        if entry.is_dir() and not entry.is_symlink():
            inside = [path for path in entry.rglob("*") if path.is_symlink() or not path.is_dir()]
            for path in inside or [entry]:
                yield path.relative_to(directory).as_posix()
        else:
            yield entry.name


def _foreign_files(directory: Path, marker: Marker) -> Iterator[str]:
    known = set(marker.files)
    for name in files_of(directory):
        if name in known or name == MARKER_FILE:
            continue
        if not any(fnmatchcase(name, pattern) for pattern in marker.files):
            yield name


def staging_directory(target: Path, name: str) -> Path:
    """Where the work for an output directory is kept until it is complete, on the file system of `target`.

    Args:
        target: as `resolve_output` gives it.
        name: of the work.
    """
    if target.exists() and not _can_be_renamed(target):
        return target / f"{_HIDDEN}{name}"
    return target.parent / f".{target.name}.{name}"


def _can_be_renamed(directory: Path) -> bool:
    parent = directory.parent
    return (
        directory not in _mount_points()
        and not os.path.ismount(directory)
        and not Path.cwd().is_relative_to(directory)
        and os.access(parent, os.W_OK | os.X_OK)
    )


def _mount_points() -> set[Path]:
    """Mount points, also those within one file system, as Linux tells them."""
    table = Path("/proc/self/mountinfo")
    if not table.exists():
        return set()
    lines = table.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return {Path(_unescape(line.split()[4])) for line in lines}


def _unescape(text: str) -> str:
    """A path of mountinfo, in which a space is written as `\\040`."""
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), text)


def replace_directory(new: Path, target: Path) -> None:
    """Put a complete directory in the place of `target`; what was there is deleted last.

    Args:
        new: at or below what `staging_directory` says, so on the same file system.
        target: the output directory.
    """
    if new.is_relative_to(target):
        _replace_content(new, target)
        return
    if not target.exists():
        os.replace(new, target)
        sync(target.parent)
        return
    old = _replaced(new, target)
    _rename_all([(target, old), (new, target)])
    sync(target.parent)
    shutil.rmtree(old)


def _replaced(new: Path, target: Path) -> Path:
    """Where what is replaced is kept until the new content is complete."""
    if new.is_relative_to(target):
        return target / f"{_HIDDEN}old"
    return new.with_name(f"{new.name}.old")


def _is_marker(entry: Path) -> bool:
    return entry.name == MARKER_FILE


def _replace_content(new: Path, target: Path) -> None:
    """Replace the entries of a directory that itself stays; the marker is renamed last."""
    old = _replaced(new, target)
    shutil.rmtree(old, ignore_errors=True)
    old.mkdir()
    there = sorted(content_of(target), key=_is_marker)
    coming = sorted(new.iterdir(), key=_is_marker)
    try:
        _rename_all(
            [(entry, old / entry.name) for entry in there]
            + [(entry, target / entry.name) for entry in coming]
        )
    except BaseException:
        with suppress(OSError):
            old.rmdir()
        raise
    sync(target)
    new.rmdir()
    shutil.rmtree(old)


def recover_replaced(new: Path, target: Path) -> None:
    """Undo `replace_directory(new, target)` where the process was killed in it.

    Where it had put the new content in place, what was there before is deleted, as it would have done.
    """
    old = _replaced(new, target)
    if not old.is_dir():
        return
    if new.is_relative_to(target):
        _recover_content(new, target)
    elif target.is_dir() and any(target.iterdir()):
        shutil.rmtree(old)
    else:
        os.replace(old, target)
        sync(target.parent)


def _recover_content(new: Path, target: Path) -> None:
    """Complete or undo `_replace_content`; the markers tell how many entries were renamed."""
    old = _replaced(new, target)
    marker = read_marker(new) if new.is_dir() else None
    if marker is not None:
        if read_marker(target) is None:  # all that was there is in `old`
            names = {Path(name).parts[0] for name in marker.files}
            come = [entry for entry in content_of(target) if entry.name in names]
            _rename_all([(entry, new / entry.name) for entry in come])
        there = sorted(old.iterdir(), key=_is_marker, reverse=True)
        _rename_all([(entry, target / entry.name) for entry in there])
        sync(target)
    shutil.rmtree(old)


def _rename_all(renames: list[tuple[Path, Path]]) -> None:
    """Rename in this order; where one fails, those before it are undone."""
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in renames:
            os.replace(source, target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            with suppress(OSError):
                os.replace(target, source)
        raise


@contextmanager
def atomic_directory(path: Path, kind: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Build a directory apart and put it at `path` once it is complete.

    Yields the directory to write into. If the body raises, it is removed and `path` is as before. What is at
    `path` is replaced only with `overwrite`, and only after the new directory is complete.

    Raises:
        UserError: as `check_output_directory`.
        OSError: a file cannot be written.
    """
    check_output_directory(path, kind, overwrite=overwrite)
    target = resolve_output(path)
    new = staging_directory(target, f"{uuid.uuid4().hex[:8]}.tmp")
    with written_files(path), created_directories(new.parent):
        new.mkdir()
        try:
            yield new
            finish_directory(new, kind)
            check_output_directory(
                path, kind, overwrite=overwrite
            )  # another process may have been faster
            replace_directory(new, target)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise


@contextmanager
def written_files(path: Path) -> Iterator[None]:
    """Turn what libraries raise where a file cannot be written into errors that name `path`.

    safetensors, tokenizers and `shutil.copytree` give the system's number in the message alone.

    Raises:
        OSError: with the system's number.
        UserError: where NumPy does not say why.
    """
    try:
        yield
    except Exception as error:
        if re.fullmatch(r"\d+ requested and \d+ written", str(error)):
            raise UserError(
                f"{path}: could not be written completely; expected a disk with room for it"
            ) from error
        of_copytree = isinstance(error, shutil.Error)
        found = re.search(r"\[Errno (\d+)\]" if of_copytree else r"\(os error (\d+)\)", str(error))
        if found is None or (isinstance(error, OSError) and not of_copytree):
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def finish_directory(directory: Path, kind: str) -> None:
    """Give a complete directory its marker, with all of it on the disk and open to whom the umask allows.

    Some libraries write for the owner alone, others copy the access of what they copy, and none waits for
    the disk.
    """
    mask = _umask()
    for path in (directory, *directory.rglob("*")):
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):  # the bit by which a directory hands on its group stays
            path.chmod((0o777 & ~mask) | (mode & stat.S_ISGID))
        else:
            path.chmod(0o666 & ~mask)
        sync(path)
    Marker(kind, files_of(directory)).save(directory)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def remove(entries: Iterable[Path]) -> None:
    """Remove files, links and whole directories."""
    for entry in list(entries):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def remove_content(directory: Path) -> None:
    """Remove the content of a directory of ours but its marker.

    A process that is killed meanwhile leaves a directory that is still known as ours.
    """
    removed = directory / _REMOVED
    remove(directory.glob(_REMOVED))
    for entry in list(content_of(directory)):
        if entry.name != MARKER_FILE:
            # Whole: a model directory without some of its files would not be known as ours.
            os.replace(entry, removed)
            remove([removed])
