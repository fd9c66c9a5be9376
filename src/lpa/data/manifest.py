"""The manifest of a prepared data directory."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lpa.errors import UserError, expected_one_of
from lpa.storage.files import write_json
from lpa.storage.records import Count, parse_value, read_json

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
TOKENIZER_DIRECTORY = "tokenizer"
SPLITS = ("train", "validation", "test")


def shard_name(split: str, number: int) -> str:
    """The file name of a shard; the order of shards is that of their numbers."""
    return f"{split}-{number:05d}.npy"


@dataclass
class Shard:
    """A flat `.npy` file of token ids."""

    name: str
    tokens: Count
    sha256: str


@dataclass
class Split:
    """One split: its shards in order, and how much text they came from.

    `tokens` counts one end-of-text token after each document, and one beginning-of-sequence token before it
    where there is one; `bytes` (of UTF-8) and `words` (runs without whitespace) count the text itself,
    `special_tokens_in_text` the places in it that spell a special token.
    """

    shards: list[Shard]
    tokens: Count
    documents: Count
    bytes: Count
    words: Count
    special_tokens_in_text: Count = 0


@dataclass
class Manifest:
    """Describes a prepared data directory; written as `manifest.json` in it.

    `vocab_size` is the highest token id + 1; `bos_token_id` is the token before each document, None where
    there is none; `parse_special_tokens` says whether text that spells a special token became that token.
    """

    tokenizer_sha256: str
    vocab_size: Count
    dtype: str
    eos_token_id: Count
    splits: dict[str, Split]
    source: dict[str, Any]
    parse_special_tokens: bool = False
    bos_token_id: Count | None = None
    schema_version: int = SCHEMA_VERSION

    def save(self, directory: Path) -> None:
        write_json(directory / MANIFEST_FILE, asdict(self))

    @classmethod
    def load(cls, directory: Path) -> "Manifest":
        """Read and check the manifest of a prepared data directory.

        Raises:
            UserError: no such directory, not a prepared one, or of another schema version.
        """
        path = directory / MANIFEST_FILE
        if not path.exists():
            what = f"has no {MANIFEST_FILE}" if directory.is_dir() else "no such directory"
            raise UserError(f"data {directory}: {what}; expected the output of `lpa prepare`")
        fields = read_json(path, dict[str, Any])
        version = fields.get("schema_version")
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{path}: schema_version {version}; this version reads {SCHEMA_VERSION}"
            )
        manifest = parse_value(fields, cls, where=path)
        manifest.check(path)
        return manifest

    def check(self, path: Path) -> None:
        """Refuse what cannot be of `lpa prepare`.

        Raises:
            UserError: a dtype too small for the vocabulary, another split, shards out of their order, or
                counts that contradict each other.
        """
        widest = {"uint16": 2**16, "uint32": 2**32}
        if self.vocab_size > widest.get(self.dtype, 0):
            raise UserError(
                f"{path}: dtype {self.dtype!r} cannot hold a vocabulary of {self.vocab_size}; expected "
                f"{'uint16' if self.vocab_size <= 2**16 else 'uint32'}"
            )
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(self, name)
            if token is not None and token >= self.vocab_size:
                raise UserError(
                    f"{path}: {name}: got {token}; expected one below vocab_size ({self.vocab_size})"
                )
        for name, split in self.splits.items():
            if name not in SPLITS:
                raise UserError(
                    f"{path}: splits: got {name!r}; expected some of {', '.join(SPLITS)}"
                )
            in_shards = sum(shard.tokens for shard in split.shards)
            if split.tokens != in_shards:
                raise UserError(
                    f"{path}: splits.{name}.tokens: got {split.tokens}; expected {in_shards}, those of its "
                    "shards"
                )
            for number, shard in enumerate(split.shards):
                if shard.name != shard_name(name, number):
                    raise UserError(
                        f"{path}: {name} has shard {shard.name!r} where {shard_name(name, number)} belongs"
                    )

    @property
    def held_out_split(self) -> str:
        """What scores a model unless another split is named: test, else validation.

        Raises:
            UserError: there is neither.
        """
        for name in ("test", "validation"):
            if name in self.splits:
                return name
        raise UserError(
            "split: the data has only 'train', which would score a model on what it was trained on; name "
            "the split if that is meant, or prepare the data again with held-out text"
        )

    def split(self, name: str) -> Split:
        """A split by name.

        Raises:
            UserError: the data has no such split, or an empty one.
        """
        if name not in self.splits or not self.splits[name].tokens:
            present = [key for key, split in self.splits.items() if split.tokens]
            raise UserError(f"split: the data has no {name!r}; {expected_one_of(name, present)}")
        return self.splits[name]
