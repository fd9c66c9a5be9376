"""The code blocks of the documents, with what the comments above them say about their test.

A comment is a line `<!-- test: {…} -->` directly above a block, which readers of the page do not see:

    fresh: true where the block and those below run in a new folder
    given: names of `doc_material.py` that the block finds in its folder
    parse: why the commands of the block are only parsed, by their own parsers
    skip: why the block is not run at all
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])

_COMMENT = "<!-- test:"


@dataclass
class Block:
    """A fenced or indented code block.

    Attributes:
        language: as the fence says; empty for an indented block.
        where: page and line, for messages.
        fresh, given, parse, skip: see the module.
    """

    language: str
    code: str
    where: str
    fresh: bool = False
    given: tuple[str, ...] = ()
    parse: str = ""
    skip: str = ""


def blocks(page: Path) -> list[Block]:
    """All code blocks of a page, in order."""
    tokens = MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))
    found = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            where = f"{page.relative_to(ROOT)}:{token.map[0] + 1}"
            comment = before.content.strip() if before and before.type == "html_block" else ""
            found.append(Block(token.info.strip(), token.content, where, **_directives(comment)))
    return found


def _directives(comment: str) -> dict[str, Any]:
    if not comment.startswith(_COMMENT):
        return {}
    values = yaml.safe_load(comment.removeprefix(_COMMENT).removesuffix("-->"))
    unknown = set(values) - {"fresh", "given", "parse", "skip"}
    assert not unknown, f"{comment}: unknown {unknown}"
    if "given" in values:
        values["given"] = tuple(values["given"])
    return values
