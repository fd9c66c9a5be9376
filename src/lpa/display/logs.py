"""Lines of the logger `lpa` on standard error, as the commands show them.

The library itself only logs: whoever imports it decides what becomes of the lines.
"""

import logging
import sys
from typing import TextIO

from lpa.display.escape import escape_unprintable

LEVELS = ("debug", "info", "warning", "error")


class _StandardError(logging.StreamHandler):
    """Writes to what is standard error at the time, which a progress bar may have replaced."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(_Formatter())

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, logging's name
        """Drop a line that cannot be written: no run ends because nobody reads its log."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr


class _Formatter(logging.Formatter):
    """`2026-01-31 12:00:00 step …` for what happens, `lpa: warning: …` for what needs attention."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno > logging.INFO:
            return f"lpa: {record.levelname.lower()}: {escape_unprintable(record.getMessage())}"
        return escape_unprintable(super().format(record))


_handler = _StandardError()


def log_to_stderr(level: str | None = None, *, quiet: bool = False) -> None:
    """Show the lines of the logger `lpa` on standard error.

    Args:
        level: one of `LEVELS`. By default `info` where standard error is no terminal (a file of Slurm,
            of nohup or of CI), and `warning` on a terminal, which has progress bars.
        quiet: make `warning` the default everywhere.
    """
    if level is None:
        level = "warning" if quiet or sys.stderr.isatty() else "info"
    logger = logging.getLogger("lpa")
    logger.setLevel(level.upper())
    logger.propagate = False  # or a library's handlers at the root would repeat each line
    if _handler not in logger.handlers:
        logger.addHandler(_handler)
