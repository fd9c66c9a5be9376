"""Where text comes from: files, directories, globs and data sets of the hub, as documents in order."""

import glob
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from lpa.errors import UserError

# File name ending -> builder of `datasets`; text is read here, as it needs no parser.
FORMATS = {
    ".txt": "text",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = (".gz", ".zst")
BOUNDARIES = ("file", "blank", "line")
ENCODING_ERRORS = ("strict", "replace")

_HUB = "hf:"
_BLOCK = 2**20
_ROWS = 256


class Fragment(NamedTuple):
    """A part of a document, and whether the document ends with it."""

    text: str
    last: bool


@dataclass(frozen=True)
class Source:
    """Documents from one place.

    Attributes:
        place: a file, a directory, a glob, or `hf:NAME` for a data set of the Hugging Face hub.
        boundary: where a document of a text file ends: with the `file`, at a `blank` line, or with
            each `line`.
        column: the field that holds the text where documents are rows.
        weight: how often a training document is taken; 0.5: every other one, 2: twice.
        errors: what bytes that are not UTF-8 do: `strict` refuses the file, `replace` puts U+FFFD.
        name, split: of a data set of the hub.
    """

    place: str
    boundary: str = "file"
    column: str = "text"
    weight: float = 1.0
    errors: str = "strict"
    name: str | None = None
    split: str = "train"

    def __post_init__(self) -> None:
        for field, accepted in (("boundary", BOUNDARIES), ("errors", ENCODING_ERRORS)):
            if getattr(self, field) not in accepted:
                raise UserError(
                    f"{field}: got {getattr(self, field)!r}; expected one of {', '.join(accepted)}"
                )
        if not 0 < self.weight < float("inf"):
            raise UserError(f"weight: got {self.weight}; expected a number above 0")

    @classmethod
    def parse(cls, text: str | Path, **defaults: Any) -> "Source":
        """A source as the command line writes it: `PLACE` or `PLACE#key=value,key=value`.

        Raises:
            UserError: an unknown key, or a value that is not accepted.
        """
        source = cls("", **defaults)
        if Path(text).exists():  # a `#` may be part of a name
            return replace(source, place=str(text))
        place, _, options = str(text).partition("#")
        changes: dict[str, Any] = {}
        for option in filter(None, options.split(",")):
            key, _, value = option.partition("=")
            if key not in ("boundary", "column", "weight", "errors", "name", "split"):
                raise UserError(
                    f"{text}: unknown key {key!r}; expected boundary, column, weight, errors, name or split"
                )
            changes[key] = value
        if "weight" in changes:
            try:
                changes["weight"] = float(changes["weight"])
            except ValueError as error:
                raise UserError(f"{text}: weight {changes['weight']!r} is not a number") from error
        return replace(source, place=place, **changes)

    @property
    def on_hub(self) -> bool:
        return self.place.startswith(_HUB)

    def files(self) -> list[Path]:
        """The files that the place means, in sorted order.

        Raises:
            UserError: there is none, one is empty, or its ending is unknown.
        """
        path = Path(self.place)
        if self.on_hub:
            return []
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and _format(p) in FORMATS)
            if not found:
                raise UserError(f"{path}: holds no file that ends in {', '.join(FORMATS)}")
        elif path.exists():
            found = [path]
        else:
            found = sorted(Path(name) for name in glob.glob(self.place, recursive=True))
            if not found:
                raise UserError(f"{self.place}: no such file")
        for file in found:
            _check_file(file)
        return found


def bundled_corpus(split: str) -> Path:
    """The file of a split (`train`, `validation` or `test`) of the corpus that the package carries."""
    return Path(__file__).parent / "corpus" / f"{split}.jsonl.gz"


def _format(path: Path) -> str:
    """The ending that tells the format; a compressing one is looked through."""
    return path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: is not a file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty; expected text")
    if _format(path) not in FORMATS:
        raise UserError(
            f"{path}: unknown ending; expected one of {', '.join(FORMATS)}, also with "
            f"{' or '.join(COMPRESSIONS)}"
        )


def read_documents(sources: Iterable[Source | Path]) -> Iterator[str]:
    """The documents of some sources, whole, in order; those without any text are left out."""
    for source in sources:
        parts: list[str] = []
        for fragment in read_fragments(
            source if isinstance(source, Source) else Source.parse(source)
        ):
            parts.append(fragment.text)
            if fragment.last:
                yield "".join(parts)
                parts = []


def read_fragments(
    source: Source, advance: Callable[[int], None] = lambda size: None
) -> Iterator[Fragment]:
    """The documents of a source in order, long ones in parts; those without any text are left out.

    Args:
        source: where to read.
        advance: called with the bytes read on disk since the last call.

    Raises:
        UserError: a file that cannot be read as what its ending says, or has no such column.
    """
    if source.on_hub:
        yield from _read_rows(source, source.place.removeprefix(_HUB), "hub")
        return
    for path in source.files():
        kind = FORMATS[_format(path)]
        if kind == "text":
            yield from _read_text(source, path, advance)
        else:
            yield from _read_rows(source, str(path), kind)
            advance(path.stat().st_size)


def _read_text(source: Source, path: Path, advance: Callable[[int], None]) -> Iterator[Fragment]:
    try:
        with open(path, "rb") as raw, _decompressed(raw, path) as binary:
            text = io.TextIOWrapper(binary, encoding="utf-8", errors=source.errors, newline="")
            done = 0
            for fragment in _split_text(text, source.boundary):
                yield fragment
                if (place := raw.tell()) > done:
                    advance(place - done)
                    done = place
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: cannot be read as text: {error.reason}; expected UTF-8, or errors=replace"
        ) from error
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from error
    # zstandard's own error derives from Exception alone.
    except Exception as error:
        if type(error).__module__.startswith("zstandard"):
            raise UserError(f"{path}: cannot be read as text: {error}") from error
        raise


def _decompressed(raw: Any, path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if path.suffix == ".zst":
        import zstandard

        return zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    return raw


def _split_text(text: io.TextIOWrapper, boundary: str) -> Iterator[Fragment]:
    if boundary == "file":
        # One block behind, so that the last one is known to be last; white space waits for text.
        begun, held = False, ""
        while block := text.read(_BLOCK):
            if held.strip():
                yield Fragment(held, last=False)
                begun, held = True, ""
            held += block
        if begun or held.strip():
            yield Fragment(held, last=True)
    elif boundary == "line":
        for line in text:
            if line.strip():
                yield Fragment(line.rstrip("\r\n"), last=True)
    else:
        paragraph: list[str] = []
        for line in text:
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                yield Fragment("".join(paragraph).rstrip("\r\n"), last=True)
                paragraph = []
        if paragraph:
            yield Fragment("".join(paragraph).rstrip("\r\n"), last=True)


def _read_rows(source: Source, place: str, kind: str) -> Iterator[Fragment]:
    """Rows of a table or of JSON Lines, through `datasets`, streamed where they lie."""
    from datasets import load_dataset
    from datasets.utils import logging

    logging.set_verbosity(logging.CRITICAL)  # what goes wrong is said below, in one line
    try:
        if kind == "hub":
            rows = load_dataset(place, source.name, split=source.split, streaming=True)
        else:
            rows = load_dataset(kind, data_files=place, split="train", streaming=True)
        for batch in rows.iter(batch_size=_ROWS):
            if source.column not in batch:
                raise UserError(
                    f"{place}: no text in column {source.column!r}; its columns are {', '.join(batch)}"
                )
            for text in batch[source.column]:
                if not isinstance(text, str):
                    raise UserError(
                        f"{place}: no text in column {source.column!r}: one of its rows holds {text!r}"
                    )
                if text.strip():
                    yield Fragment(text, last=True)
    except UserError:
        raise
    # Whatever its readers raise, ArrowInvalid, StopIteration and errors of the network among it.
    except Exception as error:
        raise UserError(
            f"{place}: cannot be read as {kind}: {_reason(error, place, kind)}"
        ) from error


def _reason(error: Exception, place: str, kind: str) -> str:
    """What is wrong, in one line; of JSON Lines with the line where it is."""
    if kind == "json":
        path, number = Path(place), 0
        try:
            with open(path, "rb") as raw:
                for line in _decompressed(raw, path):
                    number += 1
                    if line.strip():
                        json.loads(line)
        except ValueError as bad:
            return f"line {number}: {bad}"
        except OSError as bad:
            return str(bad)
    reason = str(error).strip().splitlines()
    return reason[0] if reason else "no content"
