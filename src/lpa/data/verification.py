"""Which shards have been verified before, so that no run reads all of a large data set only for that."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from lpa.data.manifest import Shard
from lpa.errors import UserError
from lpa.storage.files import write_json
from lpa.storage.records import Count, read_json

# Beside the shards; no part of the data, as its name says (see `lpa.storage.outputs`).
VERIFIED_FILE = ".lpa.verified.json"


@dataclass
class VerifiedShard:
    """What a shard was like when its checksum was compared.

    Attributes:
        bytes, mtime_ns, inode: of the file; one that has changed since, or is a copy, is verified again.
        sha256: the checksum that it had.
    """

    bytes: Count
    mtime_ns: Count
    inode: Count
    sha256: str

    @classmethod
    def of(cls, directory: Path, shard: Shard) -> "VerifiedShard | None":
        """A shard as it is now, taken to be intact; None where there is no such file."""
        path = directory / shard.name
        if not path.is_file():
            return None
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, shard.sha256)


def unverified_shards(directory: Path, shards: list[Shard]) -> list[Shard]:
    """The shards that are not known to be intact."""
    known = _read(directory)
    return [
        shard
        for shard in shards
        if shard.name not in known or known[shard.name] != VerifiedShard.of(directory, shard)
    ]


def remember_verified(directory: Path, shards: list[Shard]) -> None:
    """Note that shards are intact; without access to write they are verified again next time."""
    known = _read(directory)
    for shard in shards:
        if (found := VerifiedShard.of(directory, shard)) is not None:
            known[shard.name] = found
    with suppress(OSError):
        write_json(
            directory / VERIFIED_FILE, {name: asdict(found) for name, found in known.items()}
        )


def _read(directory: Path) -> dict[str, VerifiedShard]:
    """None are known where the record is missing or damaged."""
    with suppress(UserError):
        return read_json(directory / VERIFIED_FILE, dict[str, VerifiedShard])
    return {}
