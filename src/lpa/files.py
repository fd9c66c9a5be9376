"""Files and directories that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lpa.errors import UserError


def fsync_directory(path: Path) -> None:
    """Make a rename inside `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    fsync_directory(path.parent)


def check_output(path: Path, *, overwrite: bool = False, marker: str | None = None) -> None:
    """Refuse an output directory that holds anything, unless it may be replaced.

    Args:
        path: the directory.
        overwrite: replace what it holds.
        marker: the file by which a directory is known as one that this command wrote; only such
            a one is replaced.

    Raises:
        UserError: `path` is a file, or a directory with something in it that may not be replaced.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {path}: is a file; expected a new directory")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not overwrite:
        raise UserError(f"--out {path}: already exists; choose a new directory or pass --overwrite")
    if marker is not None and not (path / marker).exists():
        raise UserError(
            f"--overwrite: {path} was not written by this command (no {marker}); choose another directory"
        )


@contextmanager
def new_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Build a directory under a temporary name and rename it to `path` once it is complete.

    Yields the temporary directory. If the body raises, it is removed and `path` is as before. An
    existing `path` is replaced only with `overwrite`, and only after the new one is complete.

    Raises:
        UserError: as `check_output`.
    """
    check_output(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    temporary.chmod(0o777 & ~_umask())
    try:
        yield temporary
        if path.exists():
            old = temporary.with_suffix(".old")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
        fsync_directory(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
