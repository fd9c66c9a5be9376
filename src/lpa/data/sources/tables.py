"""The text column of tables: Parquet, Arrow, and datasets of the Hugging Face hub."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lpa.data.sources.source import Source
from lpa.data.sources.text_stream import Advance
from lpa.errors import UserError, first_line

# What the text column holds, and where: `line` or `row`, and its number.
Row = tuple[str, int, str | None]

_ROWS = 256
# How much of the columns an error lists; a table without a header has text for names.
_NAMED_COLUMNS = 20
_NAME_LENGTH = 80
_ARROW_FILE = b"ARROW1"
_CONTINUATION = b"\xff\xff\xff\xff"
_END_OF_STREAM = _CONTINUATION + b"\0\0\0\0"


def column_index(path: Path, columns: list[str], column: str) -> int:
    """Which of the columns is the one of the text.

    Raises:
        UserError: there is none of that name, or more than one.
    """
    if column not in columns:
        raise no_column(path, columns, column)
    if columns.count(column) > 1:
        raise UserError(f"{path}: has {columns.count(column)} columns {column!r}; expected one")
    return columns.index(column)


def no_column(
    path: Path | str, columns: Iterable[str], column: str, position: str | None = None
) -> UserError:
    """What to raise where a table or a row of it has no such column."""
    names = [name[:_NAME_LENGTH] for name in columns]
    more = ", …" if len(names) > _NAMED_COLUMNS else ""
    its_columns = f"its columns are {', '.join(names[:_NAMED_COLUMNS])}{more}"
    where = f"{path}: {position}" if position else str(path)
    return UserError(
        f"{where}: no text in column {column!r}; {its_columns if names else 'it has no columns'}"
    )


def read_parquet(path: Path, source: Source, on_bytes: Advance) -> Iterator[Row]:
    """The text column of a Parquet file, some rows at a time."""
    from pyarrow import parquet

    with open(path, "rb") as file, _one_line_errors(path, "parquet"):
        table = parquet.ParquetFile(file)
        _text_column(path, table.schema_arrow, source.column)
        size, rows, done = path.stat().st_size, table.metadata.num_rows, 0
        for batch in table.iter_batches(_ROWS, columns=[source.column]):
            texts = batch.column(batch.schema.names.index(source.column))
            yield from _rows(path, texts, done, source)
            before, done = done, done + batch.num_rows
            on_bytes(size * done // rows - size * before // rows)
        if not rows:
            on_bytes(size)


def read_arrow(path: Path, source: Source, on_bytes: Advance) -> Iterator[Row]:
    """The text column of an Arrow file or stream, one record batch at a time."""
    from pyarrow import ipc

    with open(path, "rb") as file, _one_line_errors(path, "arrow"):
        if file.read(len(_ARROW_FILE)) == _ARROW_FILE:
            table = ipc.open_file(file)
            batches = map(table.get_batch, range(table.num_record_batches))
        else:
            _check_end_of_stream(path, file)
            table = batches = ipc.open_stream(file)
        index = _text_column(path, table.schema, source.column)
        size, position, done = path.stat().st_size, 0, 0
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS):
                yield from _rows(path, batch.column(index)[start : start + _ROWS], done, source)
                done += min(_ROWS, batch.num_rows - start)
            on_bytes(max(file.tell() - position, 0))
            position = max(file.tell(), position)
        on_bytes(size - position)


def _check_end_of_stream(path: Path, file: BinaryIO) -> None:
    """Refuse a stream that was truncated between two messages, which its reader takes for its end."""
    file.seek(0)
    if file.read(len(_CONTINUATION)) == _CONTINUATION:
        file.seek(-len(_END_OF_STREAM), os.SEEK_END)
        if file.read() != _END_OF_STREAM:
            raise UserError(
                f"{path}: cannot be read as arrow: has no end-of-stream mark at its end, so it is truncated "
                "or its writer was not closed"
            )
    file.seek(0)


def read_hub(source: Source) -> Iterator[Row]:
    """The text column of a dataset on the hub, streamed."""
    if os.path.lexists(source.hub_name):
        raise UserError(
            f"{source.path}: {source.hub_name} exists here and would be read in place of the dataset; "
            "run this in another directory"
        )
    from datasets import load_dataset
    from datasets.utils import logging

    logging.set_verbosity(logging.CRITICAL)  # what goes wrong is said below, in one line
    number = 0
    try:
        rows = load_dataset(source.hub_name, source.name, split=source.split, streaming=True)
        for batch in rows.iter(batch_size=_ROWS):
            if source.column not in batch:
                raise no_column(source.path, batch, source.column)
            for text in batch[source.column]:
                number += 1
                if text is not None and not isinstance(text, str):
                    raise UserError(
                        f"{source.path}: row {number}: column {source.column!r} holds "
                        f"{type(text).__name__}; expected text"
                    )
                yield "row", number, text
    except UserError:
        raise
    # Whatever its readers raise, errors of the network among it.
    except Exception as error:
        raise UserError(f"{source.path}: cannot be read: {first_line(error)}") from error


@contextmanager
def _one_line_errors(path: Path, kind: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as {kind}: {first_line(error)}") from error


def _text_column(path: Path, schema: Any, column: str) -> int:
    """Which column of a schema is the one of the text.

    Raises:
        UserError: there is not one of that name, or what it holds is no text.
    """
    from pyarrow import types

    index = column_index(path, schema.names, column)
    kind = schema.field(index).type
    values = kind.value_type if types.is_dictionary(kind) else kind
    accepted = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    if not any(accepts(values) for accepts in accepted):
        raise UserError(f"{path}: column {column!r} holds {kind}; expected text")
    return index


def _rows(path: Path, texts: Any, done: int, source: Source) -> Iterator[Row]:
    """The rows of a column of an Arrow table, of which `done` came before.

    They are taken as bytes and decoded here, so that bytes that are not UTF-8 are found by row.
    """
    import pyarrow as pa

    if pa.types.is_null(texts.type):
        yield from (("row", done + n, None) for n in range(1, len(texts) + 1))
        return
    if pa.types.is_dictionary(texts.type):
        texts.validate(full=True)
        texts = texts.dictionary_decode()
    if pa.types.is_string_view(texts.type):
        texts.validate(full=True)
        texts = texts.cast(pa.string())
    binary = texts.cast(pa.binary() if pa.types.is_string(texts.type) else pa.large_binary())
    binary.validate(full=True)  # offsets that lead beyond its memory would end the process
    for number, value in enumerate(binary.to_pylist(), done + 1):
        try:
            text = None if value is None else value.decode("utf-8", source.errors)
        except UnicodeDecodeError as error:
            byte = value[error.start]
            raise UserError(
                f"{path}: row {number}: byte 0x{byte:02x} is not UTF-8; expected UTF-8, or errors=replace"
            ) from error
        yield "row", number, text
