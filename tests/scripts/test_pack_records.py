"""scripts/pack_records, on the committed records of studies."""

import json
import runpy
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from lpa.study.results.study_results import find_studies

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "docs" / "records" / "studies.tar.xz"


def pack(monkeypatch, directory, archive):
    script = str(ROOT / "scripts" / "pack_records")
    monkeypatch.setattr(sys, "argv", [script, str(directory), str(archive)])
    runpy.run_path(script, run_name="__main__")


@pytest.fixture
def studies(tmp_path):
    """A study with what its runs leave beside the records, and data under an absolute path."""
    directory = tmp_path / "studies"
    with tarfile.open(RECORDS) as records:
        members = [entry for entry in records if entry.name.startswith("long/")]
        records.extractall(directory, members, filter="data")
    index = directory / "long" / "placement-pico.json"
    runs = sorted((directory / "long" / "runs").iterdir())
    for path in (index, *(run / "config.yaml" for run in runs)):
        text = path.read_text()
        place = '"data": "' if path == index else "path: "
        assert place + "data" in text
        path.write_text(text.replace(place + "data", f"{place}/home/someone/data"))
    (runs[0] / "scores").mkdir()
    (runs[0] / "scores" / "minimal-pairs.json").write_text('{"accuracy": 0.75}')
    (runs[0] / "final").mkdir()
    (runs[0] / "final" / "model.safetensors").write_bytes(b"\xff")
    # Data that has moved since a run, to a place whose name begins like that of the index.
    moved = runs[3] / "config.yaml"
    moved.write_text(moved.read_text().replace("/home/someone/data", "/home/someone/data-2/nano"))
    # Of two runs that are not finished, one diverged.
    (runs[1] / "test.json").unlink()
    (runs[2] / "test.json").unlink()
    (directory / "long" / "logs").mkdir()
    (directory / "long" / "logs" / f"{runs[2].name}.failure").write_text(
        f"exit code 2: {directory.resolve()}/long/recipes/{runs[2].name}.yaml: diverged"
    )
    (directory / "rates.yaml").write_text("dense: {optim.lr: 0.004}\n")
    return directory


def test_the_report_of_packed_studies_is_the_same(studies, tmp_path, monkeypatch, capsys):
    pack(monkeypatch, studies, tmp_path / "one.tar.xz")
    pack(monkeypatch, studies, tmp_path / "two.tar.xz")
    assert (tmp_path / "one.tar.xz").read_bytes() == (tmp_path / "two.tar.xz").read_bytes()
    runs = len(list((studies / "long" / "runs").iterdir()))
    assert f"one.tar.xz: 1 studies, {runs - 2} finished runs" in capsys.readouterr().out
    with tarfile.open(tmp_path / "one.tar.xz") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (result,) = find_studies([studies / "long"])
    (unpacked,) = find_studies([tmp_path / "unpacked" / "long"])
    found = json.dumps(result.table()).replace(str(studies.resolve()), "studies")
    assert json.dumps(unpacked.table()) == found
    assert any(row.scores for row in unpacked.rows)
    assert any(row.failed for row in unpacked.rows)
    assert (tmp_path / "unpacked" / "rates.yaml").is_file()


def test_packed_records_have_no_models_and_no_place_of_the_machine(studies, tmp_path, monkeypatch):
    pack(monkeypatch, studies, tmp_path / "one.tar.xz")
    with tarfile.open(tmp_path / "one.tar.xz") as archive:
        files = {entry.name: archive.extractfile(entry).read() for entry in archive}
    assert not any("final" in name for name in files)
    assert not any(b"/home/someone" in content for content in files.values())
    assert not any(str(tmp_path).encode() in content for content in files.values())
    assert '"data": "data"' in files["long/placement-pico.json"].decode()
    paths = {
        yaml.safe_load(content)["data"]["path"]
        for name, content in files.items()
        if name.endswith("config.yaml")
    }
    assert paths == {"data", "nano"}


def test_a_finished_run_without_some_of_its_files_is_packed(studies, tmp_path, monkeypatch):
    first, *_ = sorted((studies / "long" / "runs").iterdir())
    (first / "metrics.jsonl").unlink()
    (first / "config.yaml").unlink()
    pack(monkeypatch, studies, tmp_path / "one.tar.xz")
    with tarfile.open(tmp_path / "one.tar.xz") as archive:
        names = [Path(name).name for name in archive.getnames() if first.name in name]
    assert sorted(names) == ["minimal-pairs.json", "result.json", "test.json"]
