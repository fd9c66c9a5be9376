"""Locks on directories that live on, so that two commands never write into one."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock

from lpa.errors import UserError
from lpa.files import write_json
from lpa.outputs import created_directories, read_marker, resolve_output
from lpa.records import read_json

_LOCK_FILE = ".lpa.lock"
_HOLDER_FILE = ".lpa.holder.json"


@dataclass
class Holder:
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
def hold_directory(
    directory: Path, *, output: Path | None = None, wait_seconds: float = 0.0
) -> Iterator[None]:
    """Keep a directory for this process; the system frees it when the process ends, however it ends.

    A directory that does not exist is made, and goes again where nothing was written into it.

    Args:
        output: what the user named, where that is not `directory`.
        wait_seconds: how long to wait for another process to end.

    Raises:
        UserError: another process holds it, named.
    """
    resolve_output(directory)
    with created_directories(directory):
        path = directory / _LOCK_FILE
        is_new = not path.exists()
        lock = filelock.FileLock(path, timeout=wait_seconds)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise UserError(
                f"--out {output or directory}: is in use by {_holder(directory)}; wait for it to end or "
                "choose another directory"
            ) from error
        try:
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            write_json(
                directory / _HOLDER_FILE, asdict(Holder(socket.gethostname(), os.getpid(), now))
            )
            yield
        except BaseException:
            if is_new and read_marker(directory) is None:
                path.unlink(missing_ok=True)  # nothing of ours was written beside it
            raise
        finally:
            (directory / _HOLDER_FILE).unlink(missing_ok=True)
            lock.release()


def _holder(directory: Path) -> str:
    with suppress(UserError):
        return str(read_json(directory / _HOLDER_FILE, Holder))
    return "another process"
