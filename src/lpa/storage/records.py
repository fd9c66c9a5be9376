"""Files that are read back, checked against a declared type: JSON, JSON Lines and YAML.

Whatever is wrong with a file becomes one line that names the file, the field, what was found and what is
accepted. A type is declared as any other in Python: dataclasses, `dict[str, int]`, `Literal`, `Annotated`
with bounds of `annotated_types`. Types are strict: true is no number and "4" is no 4. A whole number may
stand for a float. Fields that a dataclass does not have are refused.
"""

import json
import math
import os
import re
import reprlib
import stat
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import annotated_types
import yaml

from lpa.errors import UserError, did_you_mean, expected_one_of

T = TypeVar("T")

Count = Annotated[int, annotated_types.Ge(0)]
Finite = Annotated[float, annotated_types.Predicate(math.isfinite)]

# No file of ours is as large; reading what is would fill the memory.
_MAX_BYTES = {"JSON": 2**28, "YAML": 2**20}
_MAX_BYTES_IN_LINE = 2**20
# An alias of YAML stands for all that it refers to, so that a short file can hold endlessly much.
_MAX_VALUES = 1_000_000
_DEEPEST = 64

# What errors call a type.
_TYPE_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    types.NoneType: "null",
    list: "a list",
    dict: "a mapping",
    Any: "a value",
}


def read_json(path: Path, kind: type[T]) -> T:
    """The content of a JSON file.

    Raises:
        UserError: it cannot be read, is no JSON, or is not what `kind` declares.
    """
    return parse_value(_parsed(path, "JSON", _parse_json), kind, where=path)


def read_yaml(path: Path, kind: type[T]) -> T:
    """The content of a YAML file.

    Raises:
        UserError: it cannot be read, is no YAML of plain values, or is not what `kind` declares.
    """
    value = load_yaml(path, YamlLoader)
    if _expanded(value, {}) > _MAX_VALUES:
        raise UserError(f"{path}: holds too much; expected at most {_MAX_VALUES:,} values")
    return parse_value(value, kind, where=path)


def load_yaml(path: Path, loader: type[yaml.SafeLoader]) -> Any:
    """The content of a YAML file as a loader makes it, unchecked.

    Raises:
        UserError: it cannot be read, or is no YAML.
    """
    return _parsed(path, "YAML", lambda text: yaml.load(text, loader))


def read_json_lines(path: Path, kind: type[T]) -> list[T]:
    """The records of a JSON Lines file; a last line without its end, as a kill leaves it, is dropped.

    Raises:
        UserError: it cannot be read, or a line is no JSON or not what `kind` declares, by its number.
    """
    records = []
    for number, line in _lines(path):
        if not line.endswith(b"\n"):
            break
        where = f"{path}: line {number}"
        try:
            value = _parse_json(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: is not JSON ({_reason(error)})") from error
        records.append(parse_value(value, kind, where=where))
    return records


def parse_value(value: Any, kind: type[T], *, where: object = "", field: str = "") -> T:
    """What plain values, as JSON and YAML hold them, stand for as `kind` declares it.

    Args:
        where: the file or line that errors name.
        field: what errors call the value itself.

    Raises:
        UserError: it is not what `kind` declares.
    """
    from pydantic import ValidationError

    declared: Any = kind
    prefix = f"{where}: " if where else ""
    problem = _not_plain(value, field)
    if problem is None:
        try:
            # In the form of JSON, as pydantic is strict without refusing a mapping for a dataclass there.
            checked: list[T] = _adapter(declared).validate_json(
                json.dumps([value], default=os.fspath)
            )
            return checked[0]
        except ValidationError as error:
            problem = _in_one_line(error, value, kind, field)
    raise UserError(prefix + problem)


def describe_type(declared: Any) -> str:
    """What errors call a declared type, such as "a whole number or null"."""
    if get_origin(declared) is Annotated:
        declared, *bounds = get_args(declared)
        if annotated_types.Ge(0) in bounds:
            return f"{describe_type(declared)} from 0"
        return "a finite number" if declared is float else describe_type(declared)
    if get_origin(declared) in (Union, types.UnionType):
        options = get_args(declared)
        named = [option for option in options if option is not int or float not in options]
        return " or ".join(map(describe_type, named))
    if get_origin(declared) is Literal:
        return "one of " + ", ".join(map(str, get_args(declared)))
    if get_origin(declared) is tuple:
        return f"a list of {len(get_args(declared))}"
    if is_dataclass(declared):
        return "a mapping"
    return _TYPE_NAMES[get_origin(declared) or declared]


def suggest_choice(given: Any, declared: Any) -> str:
    """The end of an error: what was probably meant, where the declared type has choices."""
    choices = [declared, *get_args(declared)]
    names = [name for kind in choices if get_origin(kind) is Literal for name in get_args(kind)]
    return did_you_mean(given, map(str, names))


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    # A dataclass takes its configuration from what it stands in, so it stands in a list.
    return TypeAdapter(list[kind], config=ConfigDict(strict=True, extra="forbid"))


def _parsed(path: Path, language: str, parse: Callable[[str], Any]) -> Any:
    content = _bytes(path, _MAX_BYTES[language])
    if not content.strip():
        raise UserError(f"{path}: is empty; expected {language}")
    try:
        # PyYAML's constructors of tags such as `!!int` raise whatever they stumble over.
        return parse(content.decode("utf-8-sig"))
    except Exception as error:
        raise UserError(f"{path}: is not {language} ({_reason(error)})") from error


def _bytes(path: Path, most: int) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a plain file"
            raise UserError(f"{path}: is {what}; expected a file")
        if status.st_size > most:
            raise UserError(
                f"{path}: has {status.st_size:,} bytes; expected at most {most:,} in such a file"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, in little memory."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: is not a plain file; expected JSON Lines")
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(_MAX_BYTES_IN_LINE):
                number += 1
                if len(line) == _MAX_BYTES_IN_LINE or line.startswith(b"\0"):
                    raise UserError(f"{path}: line {number}: is not JSON (damaged)")
                yield number, line
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_doubles)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return found


# What YAML 1.1, which PyYAML reads, takes for a number or date, but YAML 1.2 does not.
_OF_YAML_1_1 = ("int", "float", "timestamp")


class YamlLoader(yaml.SafeLoader):
    """Plain values alone, no key twice.

    As in YAML 1.2, `1e-3` is a number; a date, `1:30` (in YAML 1.1 a number of base 60) and `0100` (octal
    there) are text, which no field for numbers accepts.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012, PyYAML's own attribute
        first: [
            (tag, form) for tag, form in resolvers if tag.rpartition(":")[2] not in _OF_YAML_1_1
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and names.count((key.tag, key.value)) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)


for _tag, _form in (
    ("int", r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    (
        "float",
        r"[-+]?(([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"
        r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$",
    ),
):
    YamlLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(_form), list("-+.0123456789")
    )


def _is_unicode(text: str) -> bool:
    """Whether a text has no half of a pair of surrogates, which no file could hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _expanded(value: Any, known: dict[int, float]) -> float:
    """How many values there are where each alias is written out; endless where one refers to itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf  # until all below is counted
        below = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_expanded(item, known) for item in below)
    return known[id(value)]


def _reason(error: Exception) -> str:
    """Why a text could not be parsed, in one line."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} at byte {error.start:,}"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    if not isinstance(error, ValueError | yaml.YAMLError):
        return "a value that its tag does not fit"
    return " ".join(str(error).split())


def _not_plain(value: Any, field: str) -> str | None:
    """What is wrong with values where they are none that JSON knows, or nested too deeply."""
    # Values still to be looked at, each with its name and depth.
    rest = [(value, field, 0)]
    while rest:
        item, name, depth = rest.pop()
        said = f"{name}: " if name else ""
        if depth > _DEEPEST:
            return f"nested too deeply; expected at most {_DEEPEST} levels"
        if isinstance(item, Mapping):
            for key, below in item.items():
                if not isinstance(key, str) or not _is_unicode(key):
                    return f"{said}got key {_shown(key)}; expected text"
                rest.append((below, _joined(name, key), depth + 1))
        elif isinstance(item, list | tuple):
            rest += [(below, f"{name}[{i}]", depth + 1) for i, below in enumerate(item)]
        elif isinstance(item, str | os.PathLike):
            if not _is_unicode(os.fspath(item)):
                return f"{said}got {_shown(item)}; expected text of whole characters"
        elif isinstance(item, int) and not -(2**63) <= item < 2**63:
            return (
                f"{said}got a whole number of {item.bit_length()} bits; expected one of at most 63"
            )
        elif not isinstance(item, int | float | types.NoneType):
            return f"{said}got {_shown(item)}; expected text, a number, a list or a mapping"
    return None


def _in_one_line(error: Any, value: Any, kind: Any, field: str) -> str:
    """The first of a validation's errors, in the words of the declared type."""
    first = error.errors(include_url=False, include_input=False)[0]
    if isinstance(cause := first.get("ctx", {}).get("error"), UserError):
        return str(cause)  # of a dataclass's own checks, which name the field
    name, found, declared = field, value, kind
    for step in first["loc"][1:]:
        declared_below = _below(declared, step)
        if first["type"] == "unexpected_keyword_argument" and declared_below is None:
            accepted = sorted(known.name for known in fields(_single(declared)))
            return f"{_joined(name, step)}: unknown field; {expected_one_of(step, accepted)}"
        if first["type"] == "missing" and isinstance(found, Mapping) and step not in found:
            return f"{_joined(name, step)}: is missing; expected {describe_type(declared_below)}"
        # Within a choice of types, which is named as a whole, or a list of another length.
        if declared_below is None or (isinstance(found, list) and step >= len(found)):
            break
        name, found, declared = _joined(name, step), found[step], declared_below
    said = f"{name}: " if name else ""
    return f"{said}got {_shown(found)}; expected {describe_type(declared)}{suggest_choice(found, declared)}"


def _below(declared: Any, step: str | int) -> Any:
    """The declared type of an entry; None where a value of that type has none of this name."""
    declared = _single(declared)
    if is_dataclass(declared):
        return get_type_hints(declared, include_extras=True).get(str(step))
    arguments = get_args(declared)
    if get_origin(declared) is dict:
        return arguments[1]
    if get_origin(declared) is list:
        return arguments[0]
    if get_origin(declared) is tuple:
        return arguments[int(step)]
    return None


def _single(declared: Any) -> Any:
    """A type without its bounds, and without the null that may stand in its place."""
    if get_origin(declared) is Annotated:
        return _single(get_args(declared)[0])
    if get_origin(declared) in (Union, types.UnionType):
        options = [option for option in get_args(declared) if option is not types.NoneType]
        return _single(options[0]) if len(options) == 1 else declared
    return declared


def _joined(name: str, step: str | int) -> str:
    if isinstance(step, int):
        return f"{name}[{step}]"
    return f"{name}.{step}" if name else step


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def _shown(value: Any) -> str:
    """A value as errors quote it."""
    return "null" if value is None else _short.repr(value)
