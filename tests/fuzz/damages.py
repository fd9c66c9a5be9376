"""Files that we read back: every file of the material with every damage of a table."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from fuzz.material import LINES, READERS

# A damage gets the file's path and content and changes the file.
Damage = Callable[[Path, bytes], object]

_INSTEAD: list[Any] = [None, [], {}, "x", "", -1, 0, 1.5, 1e308, float("nan"), 2**40, 2**70, True]


# What takes more than a second, and reads by the same functions as others: for what no other reads.
COSTLY = ("analyze", "bench", "eval harness", "report")


def _nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


ANY_FILE: dict[str, Damage] = {
    "missing": lambda path, _: path.unlink(),
    "empty": lambda path, _: path.write_bytes(b""),
    "half": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "one byte less": lambda path, content: path.write_bytes(content[:-1]),
    "one byte more": lambda path, content: path.write_bytes(content + b"\0"),
    "zeros": lambda path, content: path.write_bytes(bytes(len(content))),
    "noise": lambda path, content: path.write_bytes(random.Random(0).randbytes(len(content))),
    "not UTF-8": lambda path, content: path.write_bytes(content[:10] + b"\xff\xfe" + content[10:]),
    "byte order mark": lambda path, content: path.write_bytes(b"\xef\xbb\xbf" + content),
    "a flipped byte": lambda path, content: path.write_bytes(
        content[: len(content) // 3] + bytes(byte ^ 1 for byte in content[len(content) // 3 :][:1])
        + content[len(content) // 3 + 1 :]
    ),
    "a directory": lambda path, _: (path.unlink(), path.mkdir()),
    "a circle of links": lambda path, _: (path.unlink(), path.symlink_to(path.name)),
    "null": lambda path, _: path.write_bytes(b"null"),
    "a list": lambda path, _: path.write_bytes(b"[]"),
    "an object": lambda path, _: path.write_bytes(b"{}"),
    "text": lambda path, _: path.write_bytes(b'"x"'),
    "a number": lambda path, _: path.write_bytes(b"1" * 5000),
    "deep": lambda path, _: path.write_bytes(_nested(100_000)),
}  # fmt: skip


def damage_cases(material: Path) -> Iterator[tuple[str, list[str], str, Damage]]:
    """The name, arguments, damaged file and damage of every case."""
    costly = [LINES[command] for command in COSTLY]
    lines = [line for line in (*LINES.values(), *READERS) if line not in costly]
    for path in sorted(material.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        name = str(path.relative_to(material))
        readers = [line for line in lines if _reads(line.split(), name)]
        readers = readers or [line for line in costly if _reads(line.split(), name)]
        damages = {**ANY_FILE, **_inner_damages(path)}
        for kind, damage in damages.items():
            for line in readers:
                yield f"damage: {name}: {kind}: lpa {line}", line.split(), name, damage


def _reads(line: list[str], name: str) -> bool:
    """Whether a line names the file or a directory above it."""
    parts = name.split("/")
    return any("/".join(parts[:n]) in line for n in range(1, len(parts) + 1))


def _inner_damages(path: Path) -> dict[str, Damage]:
    if path.suffix == ".json" or path.name == "metadata.json":
        return _damages_of_values(path, json.loads(path.read_bytes()), json.dumps)
    if path.suffix == ".yaml":
        return _damages_of_values(path, yaml.safe_load(path.read_bytes()), yaml.safe_dump)
    if path.suffix == ".jsonl":
        return _damages_of_lines(path)
    if path.suffix == ".safetensors":
        return _damages_of_header(path)
    return {}


def _damages_of_values(path: Path, value: Any, dump: Callable[[Any], str]) -> dict[str, Damage]:
    """Every key gone or with each of some other values, and one key more."""
    damages: dict[str, Damage] = {}
    for keys in _keys(value):
        where = ".".join(map(str, keys))
        for other in _INSTEAD:
            damages[f"{where}={other!r}"] = _writes(value, keys, other, dump)
        damages[f"{where} missing"] = _writes(value, keys, ..., dump)
    if isinstance(value, dict):
        damages["one key more"] = lambda path, _: path.write_text(dump({**value, "surplus": 1}))
    return damages


def _writes(value: Any, keys: tuple[Any, ...], other: Any, dump: Callable[[Any], str]) -> Damage:
    return lambda path, _: path.write_text(dump(_replaced(value, keys, other)))


def _keys(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value, through the first items of long lists and mappings, such as a vocabulary."""
    if len(above) < 5 and isinstance(value, dict | list):
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
        for key, item in items[:40] if isinstance(value, dict) and len(items) < 100 else items[:2]:
            yield (*above, key)
            yield from _keys(item, (*above, key))


def _replaced(value: Any, keys: tuple[Any, ...], other: Any) -> Any:
    """A copy with another value at the end of the way, or without it where that is `...`."""
    first, *rest = keys
    copy = dict(value) if isinstance(value, dict) else list(value)
    if rest:
        copy[first] = _replaced(value[first], tuple(rest), other)
    elif other is ...:
        del copy[first]
    else:
        copy[first] = other
    return copy


def _damages_of_lines(path: Path) -> dict[str, Damage]:
    """Each value of the first line, and the last line in other ways."""
    lines = path.read_bytes().splitlines(keepends=True)
    damages: dict[str, Damage] = {}
    for number, line in ((1, lines[0]), (len(lines), lines[-1])):

        def with_line(new: bytes, at: int = number - 1) -> Damage:
            return lambda path, _: path.write_bytes(b"".join([*lines[:at], new, *lines[at + 1 :]]))

        for new in (
            b"null\n",
            b"[]\n",
            b"{}\n",
            b"1\n",
            b"{\n",
            b"\xff\n",
            b"\0\n",
            b"\n",
            line * 2,
        ):
            damages[f"line {number}: {new[:8]!r}"] = with_line(new)
        value = json.loads(line)
        for keys in _keys(value):
            for other in (*_INSTEAD, ...):
                changed = json.dumps(_replaced(value, keys, other)).encode() + b"\n"
                damages[f"line {number}: {'.'.join(map(str, keys))}={other!r}"] = with_line(changed)
    return damages


def _damages_of_header(path: Path) -> dict[str, Damage]:
    """A safetensors file is the length of a JSON header, that header, and bytes."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]

    def with_header(changed: Any) -> Damage:
        text = json.dumps(changed).encode()
        return lambda path, _: path.write_bytes(len(text).to_bytes(8, "little") + text + body)

    first, second = [name for name in header if name != "__metadata__"][:2]
    one = header[first]
    changes: dict[str, Any] = {
        "a tensor missing": {k: v for k, v in header.items() if k != first},
        "a tensor renamed": {f"x.{k}" if k == first else k: v for k, v in header.items()},
        "a tensor twice": {**header, "surplus": one},
        "two tensors swapped": {**header, first: header[second], second: one},
    }
    for field, others in {
        "dtype": ["F16", "I64", "X", None, 1],
        "shape": [[], [1], [0], [-1], [2**40, 2**40], one["shape"][::-1], "x", None],
        "data_offsets": [[0, 0], [0, 2**60], [10, 4], [-1, 4], [], None, "x"],
    }.items():
        for other in others:
            changes[f"{field}={other!r}"] = {**header, first: {**one, field: other}}
    damages = {kind: with_header(changed) for kind, changed in changes.items()}
    for size in (0, 2**62, 2**64 - 1):
        damages[f"header of {size}"] = lambda path, content, size=size: path.write_bytes(
            size.to_bytes(8, "little") + content[8:]
        )
    return damages
