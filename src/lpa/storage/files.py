"""Files that appear whole or not at all."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Make what a file holds, or the names in a directory, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """The SHA-256 of what a file holds, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part."""
    write_files({path: text.encode()})


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together: all of them, or none where one cannot be written.

    Each is replaced as a whole, in the order given, once all are on the disk.
    """
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    folders = dict.fromkeys(path.parent for path in contents)
    with created_directories(*folders):
        try:
            for path, content in contents.items():
                with open(temporaries[path], "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            for path, temporary in temporaries.items():
                os.replace(temporary, path)
        except BaseException:
            for temporary in temporaries.values():
                temporary.unlink(missing_ok=True)
            raise
    for folder in folders:
        sync(folder)


@contextmanager
def created_directories(*directories: Path) -> Iterator[None]:
    """Make directories with their parents; if the body raises, those that were made and are empty go."""
    chains = [path for directory in directories for path in (directory, *directory.parents)]
    missing = sorted({path for path in chains if not path.exists()}, reverse=True)
    try:
        for directory in directories:
            directory.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for made in missing:  # those within others first
            with suppress(OSError):
                made.rmdir()
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value over several lines, as `write_text_atomic` writes text."""
    write_text_atomic(path, json.dumps(value, indent=2) + "\n")
