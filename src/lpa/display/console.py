"""What people see on the terminal: progress bars and tables, on standard error unless said otherwise.

It includes names and paths of users, so all text is shown as it is: `[bold]` and `:smile:` are no markup,
and what would steer the terminal is escaped.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.status import Status
from rich.text import Text

from lpa.callbacks import ProgressCallback
from lpa.display.escape import escape_unprintable
from lpa.display.units import format_count, format_duration

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "Progress",
    "TaskID",
    "bar_per_task",
    "new_table",
    "progress_display",
    "silence_transformers",
    "stderr",
    "stdout",
]


class _Console(Console):
    def __init__(self, **options: Any) -> None:
        if Console().is_jupyter:
            # Rich's display in a notebook sends its own output back to itself; plain text it is.
            options |= {"force_jupyter": False, "force_terminal": False}
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(escape_unprintable(text), **options)

    def status(self, status: Any, **options: Any) -> Status:
        return super().status(Text(escape_unprintable(status)), **options)


class _Text(TextColumn):
    def render(self, task: Task) -> Text:
        return Text(escape_unprintable(self.text_format.format(task=task)))


class _Done(ProgressColumn):
    """Steps done of all, where these are known."""

    def render(self, task: Task) -> Text:
        done = format_count(task.completed) if task.completed or task.total is not None else ""
        return Text(done if task.total is None else f"{done}/{format_count(task.total)}")


class _TimeLeft(ProgressColumn):
    """The time that is left; once there is none, or where it is not known, the time that passed."""

    def render(self, task: Task) -> Text:
        left = None if task.finished else task.time_remaining
        if left is not None:
            return Text(f"{format_duration(left)} left")
        return Text(format_duration(task.finished_time or task.elapsed or 0))


# Standard output belongs to results (and to `--json`); everything said along the way goes here.
stderr = _Console(stderr=True)


def stdout(*, width: int = 0) -> Console:
    """Standard output for tables, at least so many columns wide."""
    console = _Console()
    if width > console.width:
        console.width = width
    return console


def new_table(title: str | None = None, **options: Any) -> "Table":
    """A table that is narrow enough for 80 columns: no frame, and one line below its headings."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        **options,
    )


@contextmanager
def progress_display(*, transient: bool = False, visible: bool = True) -> Iterator[Progress]:
    """A progress display on standard error; tasks may set a `status` field shown at the end of the line."""
    display = _Progress(
        SpinnerColumn(),
        _Text("{task.description}"),
        BarColumn(bar_width=12),
        _Done(),
        _TimeLeft(),
        _Text("{task.fields[status]}"),
        console=stderr,
        transient=transient,
        refresh_per_second=4,
        disable=not visible,
    )
    try:
        yield display
    finally:
        if display.live.is_started:
            display.stop()


class _Progress(Progress):
    """A display that begins with its first task, so that an error before it stays the only line."""

    def add_task(self, *args: Any, **kwargs: Any) -> TaskID:
        self.start()
        return super().add_task(*args, **kwargs)


def bar_per_task(display: Progress) -> ProgressCallback:
    """A function to report with, `(what, done, total)`, that gives each task its own bar."""
    bars: dict[str, TaskID] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in bars:
            bars[what] = display.add_task(what, total=total, status="")
        display.update(bars[what], completed=done)

    return report


def silence_transformers() -> None:
    """Switch off the bars and reports that transformers prints while it reads and writes files."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
