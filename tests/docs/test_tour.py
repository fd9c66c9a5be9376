"""The notebook of the documents runs from its first cell to its last."""

import nbformat
import pytest
from doc_markdown import ROOT
from nbclient import NotebookClient

pytestmark = pytest.mark.xdist_group("docs")


def test_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    [settings] = [cell for cell in notebook.cells if "STEPS = 60" in cell.source]
    settings.source = settings.source.replace("STEPS = 60", "STEPS = 2")
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    for words in ("tokens in", "parameters", "LPA", "q_proj", "largest difference of logits"):
        assert words in printed


def test_notebook_is_stored_without_outputs():
    notebook = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs, "jupyter nbconvert --clear-output --inplace docs/tour.ipynb"
            assert cell.execution_count is None
