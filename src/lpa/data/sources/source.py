"""What a user names as text: a place, and how its documents are read."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lpa.errors import UserError, expected_one_of

BOUNDARIES = ("file", "blank", "line")
ENCODING_ERRORS = ("strict", "replace")

_HUB = "hf:"
_KEYS = ("boundary", "column", "weight", "errors", "name", "split")
_OPTION = re.compile(r"\w+=")


@dataclass(frozen=True)
class Source:
    """Documents from one place.

    Attributes:
        path: a file, a directory, a glob, or `hf:NAME` for a dataset of the Hugging Face hub. A
            path that exists is that path, whatever characters its name has.
        boundary: where a document of a text file ends: with the `file`, at a `blank` line, or with
            each `line`.
        column: the field that holds the text where documents are rows.
        weight: how often a training document is taken; 0.5: every other one, 2: twice.
        errors: what bytes that are not UTF-8 do: `strict` refuses the file, `replace` puts U+FFFD.
        name, split: of a dataset on the hub.
    """

    path: str
    boundary: str = "file"
    column: str = "text"
    weight: float = 1.0
    errors: str = "strict"
    name: str | None = None
    split: str = "train"

    def __post_init__(self) -> None:
        for field, accepted in (("boundary", BOUNDARIES), ("errors", ENCODING_ERRORS)):
            given = getattr(self, field)
            if given not in accepted:
                raise UserError(f"{field}: got {given!r}; {expected_one_of(given, accepted)}")
        for field in ("column", "name", "split"):
            value = getattr(self, field)
            if value is not None and escape_undecodable(value) != value:
                raise UserError(f"{field}: got {value!r}, which is not UTF-8; expected text")
        if not 0 < self.weight < float("inf"):
            raise UserError(f"weight: got {self.weight}; expected a number above 0")

    @classmethod
    def parse(cls, text: str | Path, **defaults: Any) -> "Source":
        """A source as the command line writes it: `PLACE` or `PLACE#key=value,key=value`.

        Raises:
            UserError: an unknown key, or a value that is not accepted.
        """
        source = cls("", **defaults)
        location, options = _split_options(str(text))
        changes: dict[str, Any] = {}
        for option in filter(None, options.split(",")):
            key, _, value = option.partition("=")
            if key not in _KEYS:
                raise UserError(
                    f"{text}: unknown key {key!r}; expected boundary, column, weight, errors, name or split"
                )
            changes[key] = value
        if "weight" in changes:
            try:
                changes["weight"] = float(changes["weight"])
            except ValueError as error:
                raise UserError(f"{text}: weight {changes['weight']!r} is not a number") from error
        return replace(source, path=location, **changes)

    @property
    def on_hub(self) -> bool:
        return self.path.startswith(_HUB) and not os.path.lexists(self.path)

    @property
    def hub_name(self) -> str:
        return self.path.removeprefix(_HUB)


def _split_options(text: str) -> tuple[str, str]:
    """The place and the options of a source; a `#` may be part of a name.

    A path that exists is the place, the longest such path first. Otherwise the place ends at the first
    `#` that a `key=` follows.
    """
    if os.path.lexists(text):
        return text, ""
    splits = [(text[: m.start()], text[m.end() :]) for m in re.finditer("#", text)]
    with_options = [split for split in splits if _OPTION.match(split[1])]
    existing = [split for split in with_options if os.path.lexists(split[0])]
    if existing:
        return existing[-1]
    if with_options:
        return with_options[0]
    named = [split for split in splits if os.path.isfile(split[0])]
    return named[-1] if named else (text, "")


def source_changed(place: str | Path) -> UserError:
    """The error of a file or source that was not the same in two passes over it."""
    return UserError(f"{place}: changed while it was read; expected text that stays as it is")


def escape_undecodable(name: str) -> str:
    """A file name as text: bytes in it that are not UTF-8 become escapes, which JSON can hold."""
    return name.encode(errors="backslashreplace").decode()


def bundled_corpus(split: str) -> Path:
    """The file of a split (`train`, `validation` or `test`) of the corpus that the package carries."""
    return Path(__file__).parents[1] / "corpus" / f"{split}.jsonl.gz"
