"""The argument parser that every command shares: one-line errors, and help in full sentences."""

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any, NoReturn

import jsonargparse
from jsonargparse.typing import extend_base_type, register_type

from lpa.cli.help_format import HelpFormatter, continue_line
from lpa.cli.process import exit_with_error, one_line
from lpa.cli.suggestions import (
    explain_expression,
    explain_recipe,
    explain_section,
    suggest_option,
)
from lpa.display.logs import LEVELS, log_to_stderr
from lpa.errors import UserError, expected_one_of
from lpa.storage.records import describe_type, suggest_choice

# What torch, NumPy and Python count with somewhere; no machine has room for more of anything counted here.
_MAX = 2**31 - 1

# What errors say that a type of this module accepts, by the type's name.
_ACCEPTED = {"Path": "a path"}


def _number_type(name: str, base: type, fits: Callable[[Any], bool], accepted: str) -> Any:
    """A type for `add_argument`: numbers of a range, whose errors have the value and nothing else."""

    def check(kind: Any, value: Any) -> None:
        try:
            if not isinstance(value, bool) and fits(base(value)):
                return
        except (TypeError, ValueError):
            pass
        raise ValueError(value)

    _ACCEPTED[name] = accepted
    return extend_base_type(name, base, check)


def _whole(name: str, least: int, most: int, *, shown: str | None = None) -> Any:
    accepted = f"a whole number from {least} to {shown or format(most, ',')}"
    return _number_type(name, int, lambda value: least <= value <= most, accepted)


Count = _whole("Count", 1, _MAX)
CountOrZero = _whole("CountOrZero", 0, _MAX)
VocabSize = _whole("VocabSize", 1, 2**22)  # tokenizers makes room for all of it
Seed = _whole("Seed", 0, 2**63 - 1, shown="2^63 - 1")
Seeds = _whole("Seeds", 1, 1000)  # how many, each a run
Workers = _whole("Workers", 1, 1024)
Threads = _whole("Threads", 0, 1024)
PositiveNumber = _number_type(
    "PositiveNumber", float, lambda value: 0 < value <= 1e6, "a number above 0, at most 1,000,000"
)
NumberFromZero = _number_type(
    "NumberFromZero", float, lambda value: 0 <= value <= 1e6, "a number from 0 to 1,000,000"
)


def _path(value: str | Path) -> Path:
    if str(value) == "":
        raise ValueError("nothing")  # which Path takes for the working directory
    return Path(value)


for _kind in (Path, PosixPath):
    register_type(_kind, str, _path, type_check=isinstance)

# How jsonargparse says that a value is not of the declared type, or of none of several.
_MISTYPED = (
    re.compile(r'Parser key "(?P<key>\S+?)"(?: \w+ \S+)?: Not of type \w+: ?(?P<value>.*)'),
    re.compile(r'Parser key "(?P<key>\S+)": Expected a .*?\. Got value: ?(?P<value>.*)'),
    re.compile(
        r'Parser key "(?P<key>\S+)": .* Subtypes: \[.*\] Errors: .* Given value: ?(?P<value>.*)'
    ),
)
# How it says that a section of a recipe was given a value that is none.
_SECTION = re.compile(r"Parser key \"(?P<key>\w+)\": Unable to load config '(?P<value>.*?)' - ")


class Parser(jsonargparse.ArgumentParser):
    """A jsonargparse parser whose errors are one line and whose epilog keeps its line breaks."""

    def __init__(
        self, command: str, *, description: str, examples: str, usage: str | None = None
    ) -> None:
        super().__init__(
            prog=f"lpa {command}",
            usage=usage,
            description=description,
            epilog="examples:\n" + "\n".join(map(continue_line, examples.splitlines())),
            formatter_class=HelpFormatter,
            allow_abbrev=False,  # other code looks for options by their whole names
            print_config=None,  # which would print what was parsed, and no recipe
        )
        self.arguments = self._positionals
        self.arguments.title = "arguments"
        self.add_argument(
            "--log-level",
            choices=LEVELS,
            help="what to report on standard error along the way; by default warning on a terminal and "
            "with --json, otherwise info",
        )

    def parse_args(self, args: Any = None, *argv: Any, **options: Any) -> Any:
        """Parse as argparse does; text that is no Unicode is refused, numbers are plain int and float."""
        _refuse_what_is_no_text(list(sys.argv[1:] if args is None else args))
        try:
            arguments = super().parse_args(args, *argv, **options)
        except UserError:
            raise
        # What YAML's reader raises beside its own errors, of a value that it takes to be a section.
        except (ValueError, RecursionError) as error:
            exit_with_error(f"an argument cannot be read ({error}); expected values as in YAML")
        for key, value in list(arguments.items()):
            _refuse_what_is_no_text(value, key)
            arguments[key] = _plain(value)
        log_to_stderr(arguments.log_level, quiet=bool(arguments.get("json")))
        return arguments

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        exit_with_error(self._say_what_is_accepted(one_line(message)))

    def _say_what_is_accepted(self, message: str) -> str:
        """A message of jsonargparse as: the option or key, what it got, what it accepts."""
        if found := re.search(r"unrecognized arguments: (.*)", message):
            return self._unknown_option(found[1])
        if found := re.search(r"Group '(\S+)' does not accept option '(\S+)'", message):
            return self._unknown_key(found[1], found[2])
        if found := re.search(r"the following arguments are required: (.*)", message):
            return self._missing(found[1].split(", "))
        if found := re.search(
            r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", message
        ):
            choices = found[3].replace("'", "").split(", ")
            return f"{found[1]}: got {found[2]}; {expected_one_of(found[2], choices)}"
        if found := re.search(r"argument (\S+): expected (at least )?one argument", message):
            return self._without_value(found[1].split("/")[-1].rstrip("+"))
        if found := _SECTION.search(message):
            return explain_section(found["key"], found["value"] or "", self._actions)
        for mistyped in _MISTYPED:
            if found := mistyped.search(message):
                key = found["key"]  # one of a recipe, with a dot, may stand in the file
                name = key if "." in key else self._shown(key)
                value = found["value"]
                accepted = self._accepted(key, value) + explain_expression(value)
                return f"{name}: got {value or 'nothing'}; expected {accepted}"
        return message

    def _accepted(self, key: str, given: str) -> str:
        """What an argument accepts, by its declared type."""
        [action] = [action for action in self._actions if action.dest == key]
        if action.choices:
            return f"one of {', '.join(map(str, action.choices))}"
        kind = getattr(action, "_typehint", None) or action.type
        if kind is None:
            return str(action.metavar)
        named = _ACCEPTED.get(getattr(kind, "__name__", ""))
        return named or describe_type(kind) + suggest_choice(given, kind)

    def _without_value(self, option: str) -> str:
        """An option with nothing after it."""
        action = self._option_string_actions[option]
        if type(action).__name__ == "_ActionConfigLoad":
            return explain_section(action.dest, "", self._actions)
        return f"{option}: got nothing; expected {self._accepted(action.dest, '')}"

    def _unknown_option(self, given: str) -> str:
        option = given.split("=")[0].split()[0]
        if not option.startswith("-"):
            hint = explain_recipe(option) if "--config" in self._option_string_actions else ""
            return f"unexpected argument {given}; `{self.prog} --help` lists what is accepted{hint}"
        meant = suggest_option(option, self._actions)
        return f"unknown option {given}; `{self.prog} --help` lists what is accepted{meant}"

    def _unknown_key(self, section: str, key: str) -> str:
        """A key of a recipe that the section does not have."""
        names = [action.dest.partition(".") for action in self._actions]
        keys = [name for of_section, _, name in names if of_section == section and name]
        return f"unknown key {section}.{key}; {expected_one_of(key, keys)}"

    def _missing(self, destinations: list[str]) -> str:
        actions = {action.dest: action for action in self._actions}
        named = [
            f"{self._shown(name)} ({str(actions[name].help).rstrip('.')})"
            if name in actions
            else name
            for name in destinations
        ]
        return f"got no {self._shown(destinations[0])}; expected {', '.join(named)}"

    def _shown(self, key: str) -> str:
        """What the user knows an argument by: its option, or the name of a positional argument in usage."""
        for action in self._actions:
            if action.dest == key:
                positional = str(action.metavar or key)
                return action.option_strings[-1] if action.option_strings else positional
        return key


def _refuse_what_is_no_text(value: Any, key: str | None = None) -> None:
    """Bytes of an argument that are not UTF-8, or a zero in a text of a recipe, reach no library."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for item in value:
            _refuse_what_is_no_text(item, key)
    text = str(value) if isinstance(value, str | Path) else ""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        where = "" if key is None else f"{key}: "
        exit_with_error(f"{where}got {text!a}; expected text in UTF-8")


def _plain(value: Any) -> Any:
    """A number of a type of this module as its base type, which every writer of files knows."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    for base in (int, float):
        if isinstance(value, base) and type(value).__name__ in _ACCEPTED:
            return base(value)
    return value


def add_json_flag(parser: Any) -> None:
    """The flag by which a command prints one JSON object on standard output and nothing else there."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def to_json(value: Any) -> str:
    """JSON in which a number that is none is null, as JSON knows no nan."""
    return json.dumps(_without_nan(value))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def add_overwrite_flag(parser: Any, replaced: str = "what --out holds") -> None:
    """The flag without which no command replaces what is there."""
    parser.add_argument("--overwrite", action="store_true", help=f"replace {replaced}")


# Here too, so that --help needs none of the library; a test compares them with the model's.
PLACEMENTS = ("none", "attention", "ffn", "all")


def add_placement_argument(parser: Any, help: str, **options: Any) -> None:
    """Which projections are low-rank."""
    parser.add_argument("--placement", choices=PLACEMENTS, help=help, **options)


def add_output_arguments(parser: Any, what: str = "directory") -> None:
    """Where a command writes, whether it may replace what is there, and how it reports."""
    parser.add_argument("--out", type=Path, required=True, help=f"the {what} to write")
    add_overwrite_flag(parser)
    add_json_flag(parser)


def add_model_arguments(parser: Any) -> None:
    """Which trained model, and on what it runs."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a run directory or a Hugging Face directory"
    )
    add_device_argument(parser)
    add_dtype_argument(parser)


def add_device_argument(parser: Any) -> None:
    """What computes; see `lpa.device.resolve_device`."""
    parser.add_argument(
        "--device",
        type=str,
        default="auto",
        help="the device that computes, such as cpu or cuda; auto prefers a GPU",
    )


def add_dtype_argument(parser: Any) -> None:
    """In which precision; see `lpa.device.resolve_dtype`."""
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="float32",
        help="the precision of the arithmetic; auto is bfloat16 on a GPU or CPU that supports it "
        "natively, otherwise float32",
    )


def add_data_argument(parser: Any) -> None:
    """Which prepared data directory."""
    parser.add_argument(
        "data", type=Path, metavar="DIR", help="a prepared data directory, from `lpa prepare`"
    )
