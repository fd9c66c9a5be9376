"""The page of what works names tests that there are."""

import ast
import re

from doc_markdown import ROOT

PAGE = ROOT / "docs" / "huggingface.md"


def test_every_row_names_a_test_that_there_is():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE.read_text(encoding="utf-8"))
    rows = [line for line in PAGE.read_text().splitlines() if "| `tests/" in line]
    assert len(rows) == len(named) > 20
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert not name or name in functions, (path, name)
