"""How `--help` reads: full sentences in 80 columns, without the types and defaults of a parser."""

import argparse
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

import jsonargparse
from jsonargparse import ActionConfigFile

_COLUMNS = 80


class HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """jsonargparse's, with a short usage line and sentences that name a default only where there is one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options["width"] = min(_COLUMNS, shutil.get_terminal_size().columns) - 2
        super().__init__(*args, **options)

    def add_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], *args: Any, **options: Any
    ) -> None:
        """Name what a command needs; the options follow below anyway."""
        if usage is None:
            needed = [self._needed(action) for action in actions if action.required]
            lines = textwrap.wrap(" ".join([self._prog, *needed, "[options]"]), self._width - 7)
            usage = "\n       ".join(lines)  # below what follows "usage: "
        super().add_usage(usage, actions, *args, **options)

    def _needed(self, action: argparse.Action) -> str:
        values = self._format_args(action, self._get_default_metavar_for_optional(action))
        return " ".join([*action.option_strings[:1], values.replace("...", "…")])

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrap paragraphs, and leave those of several lines as they are: lists and examples."""
        return "\n\n".join(
            paragraph if "\n" in paragraph else textwrap.fill(paragraph, width)
            for paragraph in text.split("\n\n")
        )

    def start_section(self, heading: str | None) -> None:
        super().start_section(heading and textwrap.fill(heading, self._width - 1))

    def _format_action(self, action: argparse.Action) -> str:
        # The file of a single section, which jsonargparse offers beside that of all sections.
        if type(action).__name__ == "_ActionConfigLoad":
            return ""
        return super()._format_action(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, ActionConfigFile):
            return f"{action.metavar}, --{action.dest} {action.metavar}"
        return super()._format_action_invocation(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        return f"{_sentence(action.help or '')}{_default(action)}"


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "?")) else f"{text}."


def _default(action: argparse.Action) -> str:
    """A sentence on the default, where it says more than that nothing is given."""
    value = action.default
    if not action.option_strings or action.nargs == 0 or value in (argparse.SUPPRESS, None, ""):
        return ""
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return f" Default: {value}." if value != "" and value != {} else ""


def continue_line(line: str) -> str:
    """A command of an example, continued on indented lines where it is longer than a terminal."""
    if len(line) <= _COLUMNS - 2:
        return line
    end = line.rfind(" --", 0, _COLUMNS - 4)
    if end <= 0 or not line[:end].strip():
        end = line.rfind(" ", 0, _COLUMNS - 4)
    return f"{line[:end]} \\\n{continue_line('      ' + line[end:].strip())}"
