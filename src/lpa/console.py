"""What people see on the terminal: progress bars and tables, on standard error unless said otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Progress", "TaskID", "hide_other_progress", "progress", "stderr"]

# Standard output belongs to results (and to `--json`); everything said along the way goes here.
stderr = Console(stderr=True)


@contextmanager
def progress(*, transient: bool = False) -> Iterator[Progress]:
    """A progress display on standard error; tasks may set a `status` field shown at the end of the line."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=stderr,
        transient=transient,
        refresh_per_second=4,
    ) as display:
        yield display


def hide_other_progress() -> None:
    """Switch off the bars that transformers draws while it reads and writes files."""
    from transformers.utils import logging

    logging.disable_progress_bar()
