"""Command lines: every option of every command with every value of a table."""

import argparse
import importlib
from collections.abc import Iterator, Sequence

from fuzz.material import LINES
from lpa.cli import COMMANDS

VALUES = [
    *("", " ", "-", "--", "x", "null", "true", "~", "nan", "inf", "-inf", "1e308", "-1e308", "1e-320"),
    *("0", "-1", "1", "2", "3", "0.5", "1.0", "1e2", "0x10", "1_0", "٣", "2147483647", "2147483648"),
    *("9223372036854775807", "9223372036854775808", "1e400", "1" * 30, "9" * 5000),
    *("[]", "[1]", "[null]", "[-1]", "{}", "{a: 1}", "{q_proj: 4}", "a: b: c", "[" * 2000, "!!python/none"),
    "[" * 2000 + "]" * 2000,
    *("none", "all", "a,b", "a=b", "=", "#", "#x=y", "data#", "*", "[", "(", "\\", "%s", "$\\frac$", "<b>&"),
    *("[bold]", "é日本🙂", "\udcff", "a\nb", "a\tb", "\x1b[31m", "'", '"', "a" * 300, "a/" * 3000),
    *(".", "..", "missing", "missing/x", "loop", "dangling", "empty", "hf:", "hf:x", "cuda", "meta"),
    *("data", "run", "stopped", "merged", "studies", "recipe.yaml", "notes.txt", "model.gguf"),
]  # fmt: skip

# What takes long where it is accepted, as it should: what of the table is then tried.
REFUSED_PATHS = [
    "",
    ".",
    "\udcff",
    "a" * 300,
    "a/" * 3000,
    "loop",
    "data",
    "run",
    "notes.txt",
    "notes.txt/x",
]
SLOW: dict[tuple[str, str], list[str]] = {
    ("bench", "compile"): [],
    ("bench", "rounds"): [value for value in VALUES if value != "2147483647"],
    ("demo", "out"): REFUSED_PATHS,
    # A name of a task makes lm-eval read all of its tasks.
    ("eval harness", "tasks"): [
        "task.yaml",
        "recipe.yaml",
        "missing.yaml",
        "data/x.yaml",
        "a" * 300 + ".yaml",
    ],
    ("train", "train.compile"): ["", "x", "null", "false", "0"],
}


def option_cases() -> Iterator[tuple[str, list[str]]]:
    """A name, and the arguments, of every case."""
    for command in COMMANDS:
        base = LINES[command].split()
        parser = importlib.import_module(COMMANDS[command][0]).build_parser()
        for action in parser._actions:
            if action.dest in ("help", "print_config") or isinstance(action, argparse._HelpAction):
                continue
            for value in _values(command, action):
                arguments = _with(command, base, action, value)
                shown = "" if value is None else f"={value!a}"
                yield f"option: {command} {action.dest}{shown}", arguments


def _values(command: str, action: argparse.Action) -> Sequence[str | None]:
    return SLOW.get((command, action.dest), [None] if action.nargs == 0 else VALUES)


def _with(command: str, base: list[str], action: argparse.Action, value: str | None) -> list[str]:
    """The line of a command with one value added, or put in the place of the one that it has."""
    if not action.option_strings:  # the first positional argument; one more where there are several
        start = len(command.split())
        at = start + (action.dest == "b")  # the second of `eval compare`
        return [*base[:at], str(value), *base[at + 1 :]]
    option = action.option_strings[-1]
    if value is None:
        return [*base, option]
    if option in base:
        at = base.index(option)
        return [*base[:at], f"{option}={value}", *base[at + 2 :]]
    return [*base, f"{option}={value}"]
