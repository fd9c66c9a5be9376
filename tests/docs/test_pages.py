"""The documents as text: width of lines, links, and what they name."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from doc_markdown import PAGES, ROOT
from markdown_it import MarkdownIt

MAX_COLUMNS = 100
SITE = sorted((ROOT / "docs").rglob("*.md"))
BESIDE_THE_SITE = [page for page in PAGES if page not in SITE]


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


TEXTS = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]


@pytest.mark.parametrize("page", TEXTS, ids=relative)
def test_lines_fit_a_screen(page):
    long = [
        number
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > MAX_COLUMNS and not line.startswith(("|", "<!--"))
    ]
    assert not long


@pytest.mark.parametrize("page", BESIDE_THE_SITE, ids=relative)
def test_links_lead_somewhere(page):
    """Of pages that mkdocs does not see; it checks those of the site itself."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    titles = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def test_every_file_of_an_output_is_described(prepared, run):
    """The first column of the tables of files names each, by its beginning up to `…`."""
    page = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    for title, directory in (("## Prepared data", prepared), ("## Run", run)):
        section = page.split(title)[1].split("\n## ")[0]
        cells = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
        named = [re.split("…|/", name)[0] for cell in cells for name in re.findall("`(.+?)`", cell)]
        kinds = {re.sub(r"-\d{5}\.npy$", "-00000.npy", file.name) for file in directory.iterdir()}
        assert not {kind for kind in kinds if not kind.startswith(tuple(named))}
