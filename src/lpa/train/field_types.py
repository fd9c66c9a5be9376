"""Whether plain values, as YAML and JSON hold them, are what a dataclass declares."""

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lpa.errors import UserError

# What errors call a type.
TYPE_NAMES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    types.NoneType: "null",
    list: "a list",
    dict: "a mapping",
}


def typed_values(section: str, kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a section, with text turned into paths and numbers where these are declared.

    Args:
        section: what errors call it.
        kind: the dataclass.

    Raises:
        UserError: a field that there is not, or a value of another type, named.
    """
    declared = get_type_hints(kind)
    typed = {}
    for name, value in values.items():
        if name not in declared:
            raise UserError(
                f"{section}.{name}: unknown field; expected one of {', '.join(sorted(declared))}"
            )
        try:
            typed[name] = _typed(value, declared[name])
        except ValueError:
            raise UserError(
                f"{section}.{name}: got {value!r}; expected {_in_words(declared[name])}"
            ) from None
    return typed


def _typed(value: Any, declared: Any) -> Any:
    """Raises ValueError where the value is none of that type."""
    if get_origin(declared) in (Union, types.UnionType):
        return _first_that_fits(value, get_args(declared))
    if get_origin(declared) is Literal:
        fits = value in get_args(declared)
    elif declared is float and isinstance(value, int | str) and not isinstance(value, bool):
        return float(value)  # YAML reads 1e-3, without a dot, as text
    elif declared is Path and isinstance(value, str):
        return Path(value)
    elif declared is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    else:
        fits = isinstance(value, get_origin(declared) or declared)
    if not fits:
        raise ValueError
    return value


def _first_that_fits(value: Any, declared: tuple[Any, ...]) -> Any:
    for option in declared:
        try:
            return _typed(value, option)
        except ValueError:
            continue
    raise ValueError


def _in_words(declared: Any) -> str:
    if get_origin(declared) in (Union, types.UnionType):
        return " or ".join(_in_words(option) for option in get_args(declared))
    if get_origin(declared) is Literal:
        return "one of " + ", ".join(get_args(declared))
    return TYPE_NAMES[get_origin(declared) or declared]
