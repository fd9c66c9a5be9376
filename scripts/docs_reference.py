"""Writes pages of the site when mkdocs builds it: API, command line, recipe fields and the notebook.

mkdocs loads this file as a hook. Each page comes from what the package itself says (`lpa.__all__`, the
`--help` of every command, the dataclasses of a recipe) or from `docs/tour.ipynb`, so none can differ.
"""

import contextlib
import dataclasses
import io
import json
import os
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages to those of `docs/`."""
    pages = {
        "reference/api.md": api_page(),
        "reference/cli.md": cli_page(),
        "reference/recipe.md": recipe_page(),
        "tour.md": notebook_page(Path(config.docs_dir) / "tour.ipynb"),
    }
    for name, lines in pages.items():
        content = "\n".join(lines) + "\n"
        files.append(File.generated(config, name, content=content))
    return files


def notebook_page(path: Path) -> Iterator[str]:
    """The cells of a notebook as text and code, with a link to the file."""
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        text = "".join(cell["source"])
        yield from (text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```", "")
        if number == 0:
            yield from (f"[Download the notebook]({path.name}).", "")


def api_page() -> Iterator[str]:
    """Every public name of `import lpa`, rendered from its docstring by mkdocstrings."""
    import lpa

    yield from (
        "# Python API",
        "",
        "These are the names that `import lpa` offers. The import takes less than 0.1 seconds:",
        "torch and transformers load when a name is first used.",
        "",
    )
    for name in sorted(lpa.__all__, key=str.lower):
        yield from (f"::: lpa.{name}", "    options:", "      heading_level: 2", "")


def cli_page() -> Iterator[str]:
    """Every command with what its `--help` prints."""
    from lpa.cli import COMMANDS

    yield from (
        "# Command line",
        "",
        "Each section shows what `lpa COMMAND --help` prints.",
        "An error ends a command with one line and exit code 2.",
        "",
    )
    for command in COMMANDS:
        yield from (f"## lpa {command}", "", "```text", help_of(command), "```", "")


def help_of(command: str) -> str:
    """What `lpa COMMAND --help` prints, 88 columns wide."""
    from lpa.cli import main

    printed = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "88"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*command.split(), "--help"])
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns
    return printed.getvalue().rstrip()


def recipe_page() -> Iterator[str]:
    """Every section and field of a recipe with its type, default and meaning."""
    from lpa.train.config import RunConfig

    yield from (
        "# Recipe fields",
        "",
        "A recipe is a YAML file with these sections.",
        "`lpa train` takes each field as an option too, such as `--train.steps 400`.",
        "A field that a recipe does not name has its default.",
        "",
    )
    for section, kind in typing.get_type_hints(RunConfig).items():
        yield from _section(section, kind)


def _section(section: str, kind: Any) -> Iterator[str]:
    from docstring_parser import parse

    parsed = parse(kind.__doc__)
    yield from (f"## {section}", "", parsed.short_description or "", "")
    if parsed.long_description:
        yield from (parsed.long_description, "")
    meanings = {parameter.arg_name: parameter.description or "" for parameter in parsed.params}
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = field.name.rstrip("_")  # `from` is no name that a field can have
        meaning = " ".join(meanings[field.name].split()).removeprefix(
            f"`{section}.{name}` in recipes: "
        )
        yield from (
            f"### `{section}.{name}` {{ data-toc-label='{name}' }}",
            "",
            f"{_sentence(meaning)}",
            "",
            f"Type: {_type(hints[field.name])}. {_default(field)}",
            "",
        )


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def _type(hint: Any) -> str:
    """A type in the words of YAML."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(kind) for kind in inner)
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{value}`" for value in inner)
    if origin is list:
        return f"a list of ({_type(inner[0])})"
    if origin is dict:
        return f"a mapping of ({_type(inner[0])}) to ({_type(inner[1])})"
    names = {int: "int", float: "float", bool: "bool", str: "text", Path: "path"}
    return names.get(hint, "null" if hint is type(None) else str(hint))


def _default(field: Any) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "It must be given."
    words = {None: "null", True: "true", False: "false", "": '""'}
    shown = value if isinstance(value, list) or value not in words else words[value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        shown = value  # 0 and 1 equal False and True
    return f"Default: `{shown}`."
