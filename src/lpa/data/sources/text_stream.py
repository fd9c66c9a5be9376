"""Files of text as a stream of characters: decompressed, decoded, and refused where they are damaged."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lpa.errors import UserError, first_line

# Called with the bytes read on disk since the last call.
Advance = Callable[[int], None]

_BLOCK = 2**20
# Of compressed input at a time, as it may grow a thousandfold.
_COMPRESSED_BLOCK = 2**15
# What `zstd --long=31` makes; memory for it is taken only where a file asks for it.
_ZSTD_WINDOW = 2**31


@contextmanager
def open_text(
    path: Path, *, errors: str, newline: str | None, on_bytes: Advance
) -> Iterator[io.TextIOWrapper]:
    """A file as UTF-8 text without the byte order mark at its beginning.

    Args:
        path: what to read; `.gz` and `.zst` are looked through.
        errors, newline: as of `open`.
        on_bytes: called with the bytes read on disk since the last call.
    """
    with open(path, "rb", buffering=0) as file:
        binary = _decompressed(io.BufferedReader(_Counted(file, on_bytes), _BLOCK), path)
        yield io.TextIOWrapper(binary, encoding="utf-8-sig", errors=errors, newline=newline)


@contextmanager
def one_line_errors(path: Path, kind: str) -> Iterator[None]:
    """Turns what goes wrong while a file is read into a `UserError` that names the file.

    Args:
        path: what is read.
        kind: as what.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"{path}: cannot be read as {kind}: line {_undecodable_line(path)}: byte 0x{byte:02x} is not "
            "UTF-8; expected UTF-8, or errors=replace"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as {kind}: {first_line(error)}") from error


def _undecodable_line(path: Path) -> int:
    """The number of the first line that is not UTF-8."""
    line = 1
    with open_text(
        path, errors="surrogateescape", newline=None, on_bytes=lambda size: None
    ) as text:
        while part := text.readline(_BLOCK):
            if not part.isascii() and any("\ud800" <= character <= "\udfff" for character in part):
                break
            line += part.endswith("\n")
    return line


class _Counted(io.RawIOBase):
    """A file that says how much is read of it."""

    def __init__(self, file: io.FileIO, on_bytes: Advance) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._file.readinto(buffer)
        if size:
            self._on_bytes(size)
        return size


def _decompressed(binary: Any, path: Path) -> Any:
    """What a file holds, decompressed where its name says that it is compressed."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=binary)
    if suffix == ".zst":
        return io.BufferedReader(_Blocks(_zstd_blocks(binary)), _BLOCK)
    return binary


def _zstd_blocks(raw: BinaryIO) -> Iterator[bytes]:
    """Decompressed parts of all frames; a stream reader of `zstandard` would end quietly within a frame."""
    import zstandard

    frame = None
    try:
        while block := raw.read(_COMPRESSED_BLOCK):
            while block:
                if frame is None:
                    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
                    frame = decompressor.decompressobj()
                if part := frame.decompress(block):
                    yield part
                block = b""
                if frame.eof:
                    block, frame = frame.unused_data, None
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error
    if frame is not None:
        raise EOFError("Compressed file ended before the end of its last frame")


class _Blocks(io.RawIOBase):
    """Blocks of bytes as a stream."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._blocks, b""))
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
