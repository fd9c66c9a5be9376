"""The argument parser that every command shares: one-line errors and examples under `--help`."""

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse

from lpa.train.field_types import TYPE_NAMES

# How jsonargparse says that a value is not of the declared type, or of none of several.
_MISTYPED = (
    re.compile(r'Parser key "(?P<key>\S+)": Expected a (?P<kinds>.*?)\. Got value: (?P<value>.*)'),
    re.compile(
        r'Parser key "(?P<key>\S+)": .* Subtypes: \[(?P<kinds>.*)\] Errors: .* Given value: (?P<value>.*)'
    ),
)


def one_line(message: str) -> str:
    """Fold a message of several lines into one."""
    return " ".join(message.split())


def fail(message: str) -> NoReturn:
    """End the process as a user's mistake ends: one line on standard error, exit code 2."""
    print(f"lpa: error: {one_line(message)}", file=sys.stderr)
    raise SystemExit(2)


class Parser(jsonargparse.ArgumentParser):
    """A jsonargparse parser whose errors are one line and whose epilog keeps its line breaks."""

    def __init__(
        self, command: str, *, description: str, examples: str, usage: str | None = None
    ) -> None:
        super().__init__(
            prog=f"lpa {command}",
            usage=usage,
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=_HelpFormatter,
        )

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(self._say_what_is_accepted(one_line(message)))

    def _say_what_is_accepted(self, message: str) -> str:
        """A message of jsonargparse as: the field, what it got, what it accepts."""
        if found := re.search(r"unrecognized arguments: (.*)", message):
            return f"unknown option {found[1]}; `{self.prog} --help` lists what is accepted"
        if found := re.search(r"Group '(\S+)' does not accept option '(\S+)'", message):
            return (
                f"unknown key {found[1]}.{found[2]}; expected one of {self._keys(found[1] + '.')}"
            )
        if found := re.search(r"Option '(\S+)' is not accepted", message):
            return f"unknown key {found[1]}; expected one of {self._keys('')}"
        for mistyped in _MISTYPED:
            if found := mistyped.search(message):
                return f"{found['key']}: got {found['value']}; expected {_in_words(found['kinds'])}"
        return message

    def _keys(self, prefix: str) -> str:
        """The keys below a prefix, or the sections where there is none."""
        names = [action.dest for action in self._actions if "." in action.dest]
        if prefix:
            keys = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        else:
            keys = [name.split(".")[0] for name in names]
        return ", ".join(dict.fromkeys(keys))


def _in_words(kinds: str) -> str:
    """The types in a message of jsonargparse as errors name them: `<class 'int'>` is a whole number."""
    for kind, name in TYPE_NAMES.items():
        kinds = kinds.replace(f"{kind}, ", f"{name} or ").replace(str(kind), name)
    return re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", kinds)


class _HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's with the epilog left as written, and types that users know."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return argparse.RawDescriptionHelpFormatter._fill_text(self, text, width, indent)

    def _expand_help(self, action: argparse.Action) -> str:
        return super()._expand_help(action).replace("<class 'Path'>", "path")


def add_json_flag(parser: Any) -> None:
    """The flag by which a command prints one JSON object on standard output and nothing else there."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def json_text(value: Any) -> str:
    """JSON in which a number that is none is null, as JSON knows no nan."""
    return json.dumps(_without_nan(value))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def add_overwrite_flag(parser: Any) -> None:
    """The flag without which no command replaces what is there."""
    parser.add_argument("--overwrite", action="store_true", help="replace what --out holds")


def add_output_arguments(parser: Any, what: str = "directory") -> None:
    """Where a command writes, whether it may replace what is there, and how it reports."""
    parser.add_argument("--out", type=Path, required=True, help=f"the {what} to make")
    add_overwrite_flag(parser)
    add_json_flag(parser)


def add_model_arguments(parser: Any) -> None:
    """Which trained model, and on what it runs."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a run directory or a Hugging Face directory"
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, …")


def add_data_argument(parser: Any) -> None:
    """Which prepared data directory."""
    parser.add_argument(
        "data", type=Path, metavar="DIR", help="a prepared data directory, from `lpa prepare`"
    )
