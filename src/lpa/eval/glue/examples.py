"""Examples of a GLUE task: from the files as distributed, or from the hub."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpa.errors import LPAWarning, UserError, expected_one_of, first_line
from lpa.eval.glue.tasks import Task

_HUB = "nyu-mll/glue"
_MOST_BROKEN = 0.001  # of the rows of a file; more of them are a file of another kind


@dataclass
class Examples:
    """One split.

    Attributes:
        texts: per example the text, or the two.
        labels: per example the number of its label, or its score.
    """

    texts: list[tuple[str, ...]]
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.labels)


def load_examples(name: str, task: Task, data: Path | None) -> dict[str, Examples]:
    """The `train` split of a task and its dev splits by name.

    Args:
        name: of the task on the hub.
        data: the folder of GLUE, with a folder for each task, or that of the task; None: the hub.

    Raises:
        UserError: a file is missing, or a row is not what it should be; the line is named.
    """
    if data is None:
        return _from_hub(name, task)
    folder = data / task.title if (data / task.title).is_dir() else data
    files = {"train": "train.tsv", **dict(task.dev)}
    return {split: read_tsv(folder / file, task) for split, file in files.items()}


def read_tsv(path: Path, task: Task) -> Examples:
    """A file as GLUE distributes it: split at tabs, without quoting; rows end with a line feed.

    Rows with another number of columns are left out, with a warning, where at most one in a thousand is so.

    Raises:
        UserError: as `load_examples`.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; expected the folder of GLUE or of {task.title} as distributed"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error.reason})") from error
    # Not splitlines: that breaks at separators which occur inside sentences.
    rows = [line.removesuffix("\r").split("\t") for line in text.split("\n")]
    if rows[-1] == [""]:
        rows.pop()
    header = list(task.header) if task.header else (rows.pop(0) if rows else [])
    first = 1 if task.header else 2  # the line of the first row
    if not rows:
        raise UserError(f"{path}: holds no example")
    column_indices = []
    for column in (*task.columns, task.label_column):
        if column not in header:
            raise UserError(
                f"{path}: has no column {column!r}; its columns are {', '.join(header)}"
            )
        column_indices.append(header.index(column))
    _check_widths(path, rows, len(header), first)
    examples = Examples([], [])
    for number, row in enumerate(rows, first):
        if len(row) != len(header):
            continue
        *texts, label = (row[where] for where in column_indices)
        examples.texts.append(tuple(texts))
        examples.labels.append(_label(label, task, f"{path}: line {number}"))  # type: ignore[arg-type]
    return examples


def _check_widths(path: Path, rows: list[list[str]], columns: int, first: int) -> None:
    """Warn of the few broken rows that GLUE itself has, in QQP, and refuse a file with more of them."""
    broken = [number for number, row in enumerate(rows, first) if len(row) != columns]
    if not broken:
        return
    got = f"line {broken[0]}: got {len(rows[broken[0] - first])} columns; expected {columns}"
    if len(broken) > _MOST_BROKEN * len(rows):
        raise UserError(f"{path}: {got}")
    others = f", and {len(broken) - 1:,} more like it" if len(broken) > 1 else ""
    warnings.warn(
        f"{path}: left out {len(broken):,} of {len(rows):,} rows: {got}{others}",
        LPAWarning,
        stacklevel=2,
    )


def _label(value: str, task: Task, where: str) -> int | float:
    if task.labels:
        if value not in task.labels:
            raise UserError(f"{where}: got label {value!r}; {expected_one_of(value, task.labels)}")
        return task.labels.index(value)
    try:
        return float(value)
    except ValueError as error:
        raise UserError(f"{where}: got label {value!r}; expected a number") from error


def _from_hub(name: str, task: Task) -> dict[str, Examples]:
    from datasets import load_dataset
    from datasets.utils import logging

    logging.set_verbosity(logging.CRITICAL)  # what goes wrong is said below, in one line
    try:
        found = {
            split: load_dataset(_HUB, name, split=split)
            for split in ("train", *(split for split, _ in task.dev))
        }
    # Whatever its readers raise, errors of the network among it.
    except Exception as error:
        raise UserError(
            f"{_HUB}: {name} cannot be loaded from the hub ({first_line(error)}); give the files: --data DIR"
        ) from error
    return {split: _from_rows(rows, task) for split, rows in found.items()}


def _from_rows(rows: Any, task: Task) -> Examples:
    texts = list(zip(*(rows[column] for column in task.hub_columns), strict=True))
    return Examples(texts, list(rows["label"]))
