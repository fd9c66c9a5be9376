"""A command reads the manifest of prepared data once, whatever it asks of it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lpa.cli import main
from lpa.data.manifest import MANIFEST_FILE
from lpa.eval.minimal_pairs.pairs import pairs_from_data
from lpa.study import run_study

_watched: list[Path] = []
_opened: list[str] = []


def _watch(event: str, arguments: tuple) -> None:
    if event == "open" and _watched and isinstance(arguments[0], str | Path):
        _opened.append(str(arguments[0]))


sys.addaudithook(_watch)


@contextmanager
def watched(path: Path) -> Iterator[None]:
    _watched.append(path)
    _opened.clear()
    try:
        yield
    finally:
        _watched.clear()


def reads_of(data: Path) -> int:
    return _opened.count(str(data / MANIFEST_FILE))


COMMANDS = {
    "train": ["train", "TINY", "--data.path", "DATA", "--train.steps", "1", "--out", "OUT"],
    "train within documents": [
        *("train", "TINY", "--data.path", "DATA", "--train.steps", "1", "--out", "OUT"),
        *("--data.intra_document_mask", "true"),
    ],
    "train, distilled": [
        *("train", "TINY", "--data.path", "DATA", "--train.steps", "1", "--out", "OUT"),
        *("--distill.teacher", "RUN/final"),
    ],
    "train --dry-run": ["train", "TINY", "--data.path", "DATA", "--dry-run"],
    "eval perplexity": ["eval", "perplexity", "RUN", "--data", "DATA", "--mode", "documents"],
    "eval compare": ["eval", "compare", "RUN", "RUN", "--data", "DATA"],
    "data stats": ["data", "stats", "DATA"],
    "data show": ["data", "show", "DATA"],
    "data verify": ["data", "verify", "DATA"],
    "plan": ["plan", "RUN"],
    "study": ["study", "placement", "--scale", "tiny", "--data", "DATA", "--out", "OUT"],
    "study --dry-run": ["study", "placement", "--scale", "tiny", "--data", "DATA", "--dry-run"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_manifest_is_read_once(name, prepared, run, tiny, tmp_path, capsys, monkeypatch):
    # The runs of a study are separate processes.
    monkeypatch.setattr(run_study, "run_jobs", lambda *_: [])
    words = {"DATA": str(prepared), "OUT": str(tmp_path / "out")}
    line = []
    for word in COMMANDS[name]:
        line += tiny if word == "TINY" else [words.get(word, word.replace("RUN", str(run)))]
    code: object = 0
    with watched(prepared):
        try:
            main(line)
        except SystemExit as ended:
            code = ended.code
    assert not code, capsys.readouterr().err
    assert reads_of(prepared) == (0 if name == "plan" else 1)


def test_text_for_minimal_pairs_reads_it_once(prepared):
    with watched(prepared):
        next(pairs_from_data(prepared, None))
    assert reads_of(prepared) == 1
