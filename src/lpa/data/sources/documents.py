"""Documents out of files: text, JSON Lines and CSV; tables are read in `tables`.

A column of text is read as text and nothing else: no value of it is taken for a number, a date or a gap.
"""

import csv
import io
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lpa.data.sources.listing import LeftOut, SourceFiles, format_of, list_files
from lpa.data.sources.source import Source
from lpa.data.sources.tables import Row, column_index, no_column, read_arrow, read_hub, read_parquet
from lpa.data.sources.text_stream import Advance, one_line_errors, open_text
from lpa.errors import LPAWarning, UserError

_BLOCK = 2**20
# The longest that the parser of CSV takes on every platform; by default it refuses 131,072 characters.
_LONGEST_FIELD = 2**31 - 1
_SURROGATE = re.compile("[\ud800-\udfff]")


class Fragment(NamedTuple):
    """A part of a document, and whether the document ends with it."""

    text: str
    is_last: bool


def read_documents(sources: Iterable[Source | Path]) -> Iterator[str]:
    """The documents of some sources, whole, in order; those without any text are left out."""
    for source in sources:
        listed = list_files(source if isinstance(source, Source) else Source.parse(source))
        if left_out := str(listed.left_out):
            warnings.warn(f"{listed.source.path}: left out: {left_out}", LPAWarning, stacklevel=2)
        parts: list[str] = []
        for fragment in read_fragments(listed):
            parts.append(fragment.text)
            if fragment.is_last:
                yield "".join(parts)
                parts = []


def read_fragments(
    listed: SourceFiles,
    on_bytes: Advance = lambda size: None,
    left_out: LeftOut | None = None,
) -> Iterator[Fragment]:
    """The documents of a source in order, long ones in parts; those without any text are left out.

    Args:
        listed: where to read.
        on_bytes: called with the bytes read on disk since the last call.
        left_out: counts documents and files without text.

    Raises:
        UserError: a file that cannot be read as what its ending says, or has no such column.
    """
    left_out = LeftOut() if left_out is None else left_out
    source = listed.source
    if source.on_hub:
        yield from _of_rows(read_hub(source), source.hub_name, left_out)
    for path in listed.files:
        empty = True
        for fragment in _read_file(path, source, on_bytes, left_out):
            empty = False
            yield fragment
        if empty:
            left_out.add("files without text", path.name)


def _read_file(
    path: Path, source: Source, on_bytes: Advance, left_out: LeftOut
) -> Iterator[Fragment]:
    kind = format_of(path)
    assert kind is not None
    with one_line_errors(path, kind):
        if kind in ("parquet", "arrow"):
            read = read_parquet if kind == "parquet" else read_arrow
            yield from _of_rows(read(path, source, on_bytes), path.name, left_out)
            return
        # Within JSON a line end is never text; in the other formats it is kept as it is.
        newline = None if kind == "json" else ""
        with open_text(path, errors=source.errors, newline=newline, on_bytes=on_bytes) as text:
            if kind == "text":
                yield from _split_text(text, source.boundary)
            elif kind == "json":
                yield from _of_rows(_json_rows(text, path, source), path.name, left_out)
            else:
                yield from _of_rows(_csv_rows(text, path, source.column), path.name, left_out)


def _of_rows(rows: Iterable[Row], name: str, left_out: LeftOut) -> Iterator[Fragment]:
    for unit, number, text in rows:
        if text is None or not text or text.isspace():
            left_out.add("documents without text", f"{name}, {unit} {number}")
        else:
            yield Fragment(text, is_last=True)


def _split_text(text: io.TextIOWrapper, boundary: str) -> Iterator[Fragment]:
    if boundary == "file":
        # One block behind, so that the last one is known to be last; whitespace waits for text.
        started, pending = False, ""
        while block := text.read(_BLOCK):
            if pending.strip():
                yield Fragment(pending, is_last=False)
                started, pending = True, ""
            pending += block
        if started or pending.strip():
            yield Fragment(pending, is_last=True)
    elif boundary == "line":
        for line in text:
            if line.strip():
                yield Fragment(line.rstrip("\r\n"), is_last=True)
    else:
        paragraph: list[str] = []
        for line in text:
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                yield Fragment("".join(paragraph).rstrip("\r\n"), is_last=True)
                paragraph = []
        if paragraph:
            yield Fragment("".join(paragraph).rstrip("\r\n"), is_last=True)


def _json_rows(text: io.TextIOWrapper, path: Path, source: Source) -> Iterator[Row]:
    """The rows of JSON Lines, or of a file that is one array of objects or one object over many lines."""
    # Numbers are not text. As floats they cost least, and none has too many digits.
    decode = json.JSONDecoder(parse_int=float).decode
    decode_once = json.JSONDecoder(parse_int=float, object_pairs_hook=_Once(source.column)).decode
    name = json.dumps(source.column, ensure_ascii=False)
    reading = False
    for number, line in enumerate(text, 1):
        if line.isspace():
            continue
        if not reading and _is_beginning(line):
            yield from _whole_json(line + text.read(), number, decode_once, path, source)
            return
        reading = True
        try:
            row = decode(line) if line.count(name) < 2 else decode_once(line)
        except (ValueError, RecursionError) as error:
            raise _unreadable(path, f"line {number}", error) from error
        yield "line", number, _json_text(row, f"line {number}", "\\u" in line, path, source)


def _is_beginning(line: str) -> bool:
    """Whether a first line is not JSON yet, but can become so with the lines after it."""
    line = line.rstrip()
    if line.lstrip().startswith("["):
        return True
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line)
    except (ValueError, RecursionError):
        pass  # for the reader of rows to name
    return False


def _whole_json(
    content: str, start: int, decode: Callable[[str], Any], path: Path, source: Source
) -> Iterator[Row]:
    try:
        value = decode(content)
    except json.JSONDecodeError as error:
        raise _unreadable(path, f"line {start + error.lineno - 1}", error) from error
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"from line {start} on", error) from error
    rows = value if isinstance(value, list) else [value]
    for number, row in enumerate(rows, 1):
        yield "row", number, _json_text(row, f"row {number}", True, path, source)


class _Once:
    """Makes an object of JSON in which a name occurs once, as which of two values counts is not defined."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if sum(name == self._name for name, _ in pairs) > 1:
            raise ValueError(f"an object has {self._name!r} twice")
        return dict(pairs)


def _json_text(row: Any, position: str, escaped: bool, path: Path, source: Source) -> str | None:
    """The text of a row.

    Args:
        row: decoded.
        position: where it is.
        escaped: whether it may hold surrogates, which only `\\u` can write.
        path, source: what it belongs to.
    """
    if not isinstance(row, dict):
        raise UserError(
            f"{path}: cannot be read as json: {position}: is {_JSON_KINDS[type(row)]}; expected an object"
        )
    if source.column not in row:
        raise no_column(path, row, source.column, position)
    value = row[source.column]
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError(
            f"{path}: {position}: column {source.column!r} is {_JSON_KINDS[type(value)]}; expected text"
        )
    if escaped and (found := _SURROGATE.search(value)):
        if source.errors == "strict":
            raise UserError(
                f"{path}: {position}: column {source.column!r} has a lone surrogate "
                f"\\u{ord(found[0]):x}, which "
                "is no character; expected text, or errors=replace"
            )
        return _SURROGATE.sub("\ufffd", value)
    return value


_JSON_KINDS = {
    dict: "an object",
    list: "an array",
    float: "a number",
    bool: "true or false",
    str: "a string",
    type(None): "null",
}


def _unreadable(path: Path, position: str, error: Exception) -> UserError:
    reason = str(error)
    if isinstance(error, json.JSONDecodeError):
        reason = f"{error.msg} at column {error.colno}"
    elif isinstance(error, RecursionError):
        reason = "is nested too deeply"
    return UserError(f"{path}: cannot be read as json: {position}: {reason}")


def _csv_rows(text: io.TextIOWrapper, path: Path, column: str) -> Iterator[Row]:
    """The cells of a column as they are written, in a table whose first line names its columns."""
    csv.field_size_limit(_LONGEST_FIELD)
    rows = csv.reader(text, strict=True)
    header: list[str] = []
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise UserError(f"{path}: cannot be read as csv: line {line}: {error}") from error
        if row is None:
            return
        if not row:
            continue
        if not header:
            header, index = row, column_index(path, row, column)
        elif len(row) == len(header):
            yield "line", line, row[index]
        else:
            raise UserError(
                f"{path}: cannot be read as csv: line {line}: has {len(row)} fields where the header has "
                f"{len(header)}; a text with a comma, quote or line end belongs in quotes"
            )
