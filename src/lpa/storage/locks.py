"""Locks on directories that live on, so that two commands never write into one."""

import errno
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock

from lpa.errors import LPAWarning, UserError
from lpa.storage.files import created_directories, write_json
from lpa.storage.outputs import read_marker, resolve_output
from lpa.storage.records import read_json

_PREFIX = ".lpa."

# What a file system answers that has no locks, or no service for them.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@dataclass
class LockHolder:
    """Who holds a lock.

    Attributes:
        host, process: where it runs, and its id there.
        since: local time.
    """

    host: str
    process: int
    since: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"


@contextmanager
def lock_directory(
    directory: Path,
    *,
    part: str | None = None,
    output: Path | None = None,
    wait_seconds: float = 0.0,
) -> Iterator[None]:
    """Lock a directory for this process; the system frees it when the process ends, however it ends.

    A directory that does not exist is made, and is removed where nothing was written into it.

    Args:
        part: what of the directory to lock, where several processes may write into it; by default all.
        output: what the user named, where that is not `directory`.
        wait_seconds: how long to wait for another process to end.

    Raises:
        UserError: another process holds it, named.
    """
    target = resolve_output(directory)
    with created_directories(target):
        prefix = _PREFIX if part is None else f"{_PREFIX}{part}."
        path, holder = target / f"{prefix}lock", target / f"{prefix}holder.json"
        is_new, marker = not path.exists(), read_marker(target)
        try:
            lock = acquire_lock(path, wait_seconds=wait_seconds)
        except filelock.Timeout as error:
            raise UserError(
                f"--out {output or directory}: is in use by {_describe(holder)}; wait for it to end or "
                "choose another directory"
            ) from error
        try:
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            write_json(holder, asdict(LockHolder(socket.gethostname(), os.getpid(), now)))
            yield
        except BaseException:
            if is_new and read_marker(target) == marker:
                path.unlink(missing_ok=True)  # this process wrote nothing beside it
            raise
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def acquire_lock(path: Path, *, wait_seconds: float = -1) -> filelock.BaseFileLock:
    """Lock a file until `release`; warns, and locks nothing, where the file system has no locks.

    Args:
        wait_seconds: how long to wait for another process to release it; as long as it takes if negative.

    Raises:
        filelock.Timeout: another process holds it.
    """
    # A file that only says that it is locked would outlive a process that is killed.
    lock = filelock.FileLock(path, timeout=wait_seconds, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{path.parent}: the file system has no locks (flock); start one process at a time",
            LPAWarning,
            stacklevel=2,
        )
    return lock


def read_holder(directory: Path) -> LockHolder | None:
    """Who holds the lock on a directory, as this process sees it; None where nobody does."""
    return _read(resolve_output(directory) / f"{_PREFIX}holder.json")


def _read(holder: Path) -> LockHolder | None:
    try:
        return read_json(holder, LockHolder)
    except UserError:
        return None


def _describe(holder: Path) -> str:
    return str(_read(holder) or "another process")
