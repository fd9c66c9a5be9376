"""Which option was probably meant by one that there is not, or by a section of a recipe with a value."""

import os
import re
from argparse import Action
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from lpa.errors import closest_match
from lpa.storage.records import YamlLoader, parse_value

_STUDY_EXPRESSION = re.compile(r"\d*[dfh](/\d+)?")


def suggest_option(given: str, actions: Iterable[Action]) -> str:
    """The end of an error about an unknown option: the nearest one, or nothing where none is near.

    Near is what has a name spelled alike, the section of a recipe aside, or help that speaks of it; what is
    of the section that was given comes first.

    Args:
        given: such as `--data.dir` or `--lr`.
    """
    known = _leaf_options(actions)
    section, _, name = given.lstrip("-").rpartition(".")
    words = _words(name)
    of_section = {o: a for o, a in known.items() if section and o.startswith(f"--{section}.")}
    found = _named_alike(words, of_section) or _with_help(words, of_section)
    found = found or _named_alike(words, known)
    if not found and " " in words:  # one word alone is in the help of many
        found = _with_help(words, known)
    return f"; did you mean {found[0]}?" if found else ""


def explain_section(section: str, value: str, actions: Iterable[Action]) -> str:
    """An error about `--data DIR` and the like, where `data` is a section of a recipe.

    Args:
        value: what was given; empty: nothing.
    """
    prefix = f"--{section}."
    of_section = {o: a for o, a in _leaf_options(actions).items() if o.startswith(prefix)}
    meant = _accepting(value, of_section) if value else None
    hint = f"; did you mean {meant} {value}?" if meant else ""
    return (
        f"--{section}: got {value or 'nothing'}; {section} is a section of the recipe, so expected one of "
        f"its options, such as {next(iter(of_section))}{explain_recipe(value) or hint}"
    )


def explain_recipe(value: str) -> str:
    """The end of an error about a value, where it is the name of a recipe."""
    is_yaml = Path(value).suffix in (".yaml", ".yml")
    return "; a recipe comes first, without an option" if is_yaml else ""


def explain_expression(value: str) -> str:
    """The end of an error about a number, where an expression of studies was given."""
    if not _STUDY_EXPRESSION.fullmatch(value):
        return ""
    return (
        f"; {value} has a meaning in grids of studies alone, where d is the width (hidden_size, which `lpa "
        "presets` lists)"
    )


def _leaf_options(actions: Iterable[Action]) -> dict[str, Action]:
    """Option -> its action, without those that stand for a whole section."""
    return {
        option: action
        for action in actions
        for option in action.option_strings
        if option.startswith("--")
        and not option.endswith("+")  # which jsonargparse adds to lists
        and type(action).__name__ != "_ActionConfigLoad"
    }


def _words(name: str) -> str:
    return name.replace("-", " ").replace("_", " ")


def _named_alike(words: str, options: Iterable[str]) -> list[str]:
    """The options whose last part is spelled almost so, the nearest first."""
    by_name: dict[str, str] = {}
    for option in options:
        by_name.setdefault(_words(option.lstrip("-").rpartition(".")[2]), option)
    return [by_name[near] for near in closest_match(words, by_name)]


def _with_help(words: str, options: Mapping[str, Action]) -> list[str]:
    """The options in whose help the words are, or words that begin so."""
    pattern = re.compile(rf"\b{re.escape(words)}", re.IGNORECASE)
    return [option for option, action in options.items() if pattern.search(action.help or "")]


def _accepting(value: str, options: Mapping[str, Action]) -> str | None:
    """The first option of a type that accepts a value; paths first, if there is such a path."""
    import yaml

    try:
        parsed = yaml.load(value, YamlLoader)
    # What no reader takes, such as numbers of thousands of digits and lists as deep, is no value of any type.
    except (ValueError, RecursionError, yaml.YAMLError):
        return None
    kinds = {option: getattr(action, "_typehint", None) for option, action in options.items()}
    if os.path.exists(value):  # Path raises where a name is too long
        kinds = dict(sorted(kinds.items(), key=lambda item: not _is_path(item[1])))
    return next((option for option, kind in kinds.items() if _accepts(kind, parsed)), None)


def _is_path(kind: Any) -> bool:
    return Path in (kind, *get_args(kind))


def _accepts(kind: Any, parsed: Any) -> bool:
    try:
        parse_value(parsed, kind)
    except (ValueError, RecursionError):
        return False
    return True
