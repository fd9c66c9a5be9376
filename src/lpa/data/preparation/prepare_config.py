"""What `lpa prepare` is asked to do: sources with their files, fractions to hold out, workers."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lpa.data.sources.listing import LeftOut, SourceFiles
from lpa.data.sources.source import escape_undecodable, source_changed

# Split -> what is left out of each of its sources.
AllLeftOut = dict[str, list[LeftOut]]


@dataclass
class TokenizerChoice:
    """Which tokenizer to use: one that is trained, or one that exists.

    Attributes:
        vocab_size: of the one to train; None where it exists.
        tokenizer: where it is.
        chat_template: of the one to train (see `lpa.data.tokenizer.CHAT_TEMPLATES`).
    """

    vocab_size: int | None
    tokenizer: str | None
    chat_template: str | None


class _FileState(NamedTuple):
    """The size of a file in bytes, and when it was written; both -1 where there is none."""

    size: int
    mtime_ns: int


def _file_state(file: Path) -> _FileState:
    try:
        status = file.stat()
    except FileNotFoundError:
        return _FileState(-1, -1)
    return _FileState(status.st_size, status.st_mtime_ns)


@dataclass
class PrepareConfig:
    """What to prepare, and from what.

    Attributes:
        sources_by_split: split -> its sources with their files; a split without any is held out of
            the training
            sources.
        fractions: held-out split -> fraction of the training sources.
        deduplicate: leave out training documents equal to an earlier one.
        workers: processes that encode.

    Sizes and times of the files are those that they have when this is made.
    """

    sources_by_split: dict[str, list[SourceFiles]]
    fractions: dict[str, float]
    deduplicate: bool
    workers: int

    def __post_init__(self) -> None:
        self._states = {
            file: _file_state(file)
            for sources in self.sources_by_split.values()
            for listed in sources
            for file in listed.files
        }

    def check_unchanged(self) -> None:
        """Refuse what was read if a file has changed since.

        Raises:
            UserError: a file has another size or time, or is gone.
        """
        for file, state in self._states.items():
            if _file_state(file) != state:
                raise source_changed(file)

    def size(self) -> int:
        """Bytes on disk of all files."""
        return sum(
            self._states[file].size
            for sources in self.sources_by_split.values()
            for listed in sources
            for file in listed.files
        )

    def reads_hub(self) -> bool:
        """Whether any source is a dataset on the hub, which has no files here."""
        return any(
            listed.source.on_hub for sources in self.sources_by_split.values() for listed in sources
        )

    def describe(self, *, paths: bool) -> dict[str, Any]:
        """What decides the output; with `paths`, where and when the files were written too."""
        described: dict[str, Any] = {}
        for split, sources in self.sources_by_split.items():
            described[split] = []
            for listed in sources:
                fields = asdict(listed.source)
                fields["files"] = [
                    [str(f.resolve()), *self._states[f]]
                    if paths
                    else [escape_undecodable(f.name), self._states[f].size]
                    for f in listed.files
                ]
                if not paths and not listed.source.on_hub:
                    del fields["path"]
                described[split].append(fields)
        return {"sources": described, "fractions": self.fractions, "deduplicate": self.deduplicate}

    def left_out(self) -> AllLeftOut:
        """What the listing left out, for readers to add to."""
        return {
            split: [LeftOut(listed.left_out) for listed in sources]
            for split, sources in self.sources_by_split.items()
        }

    def describe_with(self, left_out: AllLeftOut) -> dict[str, Any]:
        """The description for the manifest, in which each source says what was left out of it."""
        described = self.describe(paths=False)
        for split, sources in described["sources"].items():
            for source, counts in zip(sources, left_out[split], strict=True):
                source["left_out"] = counts.describe()
        return described
