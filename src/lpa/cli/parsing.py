"""The argument parser that every command shares: one-line errors and examples under `--help`."""

import argparse
import sys
from typing import Any, NoReturn

import jsonargparse


def one_line(message: str) -> str:
    """Fold a message of several lines into one."""
    return " ".join(message.split())


def fail(message: str) -> NoReturn:
    """End the process as a user's mistake ends: one line on standard error, exit code 2."""
    print(f"lpa: error: {one_line(message)}", file=sys.stderr)
    raise SystemExit(2)


class Parser(jsonargparse.ArgumentParser):
    """A jsonargparse parser whose errors are one line and whose epilog keeps its line breaks."""

    def __init__(self, command: str, *, description: str, examples: str) -> None:
        super().__init__(
            prog=f"lpa {command}",
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=_HelpFormatter,
        )

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(message)


class _HelpFormatter(
    jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter
):  # jsonargparse's with the epilog left as written
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return argparse.RawDescriptionHelpFormatter._fill_text(self, text, width, indent)


def add_json_flag(parser: Any) -> None:
    """The flag by which a command prints one JSON object on standard output and nothing else there."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )
