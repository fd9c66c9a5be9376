"""Documents out of files, read by the `datasets` library."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from lpa.errors import UserError

# File name ending -> builder of `datasets`.
FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}

# Where a document of a text file ends -> what `datasets` calls it.
BOUNDARIES = {"file": "document", "blank": "paragraph", "line": "line"}


def bundled_corpus(split: str) -> Path:
    """The file of a split (`train`, `validation` or `test`) of the corpus that the package carries."""
    return Path(__file__).parent / "corpus" / f"{split}.jsonl.gz"


def file_format(path: Path) -> str:
    """The builder for a file, by its ending; a compressing `.gz` is looked through.

    Raises:
        UserError: the file is missing or empty, or its ending is unknown.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if not path.is_file():
        raise UserError(f"{path}: is not a file; name its files one by one")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty; expected text")
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in FORMATS:
        raise UserError(
            f"{path}: unknown ending; expected one of {', '.join(FORMATS)}, or one of them with .gz"
        )
    return FORMATS[suffix]


def read_documents(
    paths: Iterable[Path], *, boundary: str = "file", column: str = "text"
) -> Iterator[str]:
    """The documents of some files, in order; those without any text are left out.

    Args:
        paths: text, JSON Lines or Parquet files, the first two also gzipped.
        boundary: where a document of a text file ends: with the `file`, at a `blank` line, or with
            each `line`.
        column: the field that holds the text in JSON Lines and Parquet.

    Raises:
        UserError: a file that cannot be read as what its ending says, or has no such column.
    """
    if boundary not in BOUNDARIES:
        raise UserError(f"boundary: got {boundary!r}; expected one of {', '.join(BOUNDARIES)}")
    for path in paths:
        yield from _read_file(path, boundary, column)


def _read_file(path: Path, boundary: str, column: str) -> Iterator[str]:
    from datasets import load_dataset
    from datasets.utils import logging

    logging.set_verbosity(logging.CRITICAL)  # what goes wrong is said below, in one line
    kind = file_format(path)
    if kind == "text":
        column, options = "text", {"sample_by": BOUNDARIES[boundary]}
    else:
        options = {}
    try:
        # Streaming reads the file where it lies; otherwise `datasets` would copy it to a cache.
        rows = load_dataset(kind, data_files=str(path), split="train", streaming=True, **options)
        for row in rows:
            if not isinstance(row.get(column), str):
                raise UserError(
                    f"{path}: no text in column {column!r}; its columns are {', '.join(row)}"
                )
            if row[column].strip():
                yield row[column]
    except UserError:
        raise
    # StopIteration: what `datasets` raises on a JSON file that holds nothing.
    except (ValueError, OSError, EOFError, StopIteration) as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{path}: cannot be read as {kind}: {reason[0] if reason else 'no content'}"
        ) from error
