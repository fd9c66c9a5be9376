"""What files of every kind do to the commands that read text."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lpa.data import Manifest

WORDS = [f"document {n} has some words of number {n * n}, {n + 1}" for n in range(400)]
JSON_LINES = "".join(json.dumps({"text": text}) + "\n" for text in WORDS).encode()


def write_bad(folder: Path) -> dict[str, str]:
    """Sources that cannot be read -> what the error names."""
    (folder / "null.jsonl").write_text("null")
    (folder / "null.json").write_text("null\n")
    (folder / "nulls").mkdir()
    (folder / "nulls" / "a.json").write_text("null")
    (folder / "late.jsonl").write_bytes(JSON_LINES + b'{"text": 1}\n')
    (folder / "a.csv").write_text("text\nHello, world\n")
    os.symlink("loop", folder / "loop")
    for name, compress in (
        ("truncated.txt.zst", zstandard.compress),
        ("truncated.jsonl.gz", gzip.compress),
    ):
        (folder / name).write_bytes(compress(JSON_LINES)[:-9])
    return {
        "null.jsonl": "null.jsonl: cannot be read as json: line 1: is null; expected an object",
        "null.json": "null.json: cannot be read as json: line 1: is null",
        "nulls": "a.json: cannot be read as json: line 1: is null",
        "late.jsonl": "late.jsonl: line 401: column 'text' is a number; expected text",
        "a.csv": "a.csv: cannot be read as csv: line 2: has 2 fields where the header has 1",
        "loop": "loop: is a broken link",
        "truncated.txt.zst": "truncated.txt.zst: cannot be read as text: ",
        "truncated.jsonl.gz": "truncated.jsonl.gz: cannot be read as json: ",
    }


def test_what_cannot_be_read_is_one_line_in_every_command_that_reads_text(lpa, tmp_path, run):
    bad = write_bad(tmp_path)
    (tmp_path / "good.jsonl").write_bytes(JSON_LINES)
    commands = {
        "source": lambda name: ["prepare", name, "--vocab-size", 300, "--out", "data"],
        "validation": lambda name: [
            *("prepare", "good.jsonl", "--validation", name, "--vocab-size", 300, "--out", "data")
        ],
        "perplexity": lambda name: ["eval", "perplexity", run, "--data", name],
        "calibrate": lambda name: [
            *(
                "convert",
                "factorize",
                run / "final",
                "--rank-fraction",
                0.5,
                "--calibration-data",
                name,
            ),
            *("--placement", "ffn", "--seq-len", 16, "--out", "out"),
        ],
    }
    before = sorted(tmp_path.rglob("*"))
    for name, message in bad.items():
        everywhere = name in ("null.jsonl", "nulls", "truncated.jsonl.gz")
        for of in commands if everywhere else ["source"]:
            command = commands[of]
            finished = lpa(*command(name), cwd=tmp_path)
            assert finished.code == 2, (name, of, finished.stderr)
            [line] = [line for line in finished.stderr.splitlines() if "lpa: error: " in line]
            assert message in line, (name, of)
            assert "Traceback" not in finished.stderr
            assert sorted(tmp_path.rglob("*")) == before, (name, of)


def test_a_corpus_can_be_prepared_from_within(lpa, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(JSON_LINES)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "notes.pdf").write_text("no text")
    (tmp_path / ".hidden").mkdir()
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write('{"text": null}\n{"text": ""}\n')
    command = ["prepare", ".", "--vocab-size", 300, "--validation-fraction", 0.1, "--out", "data"]
    first = lpa(*command, cwd=tmp_path)
    assert first.code == 0, first.stderr
    assert (
        "left out: 2 documents without text (a.jsonl, line 401, …), 1 empty files (empty.txt), "
        "1 files with another ending (notes.pdf), 1 hidden directories (.hidden)"
    ) in first.stdout
    manifest = Manifest.load(tmp_path / "data")
    [source] = manifest.source["sources"]["train"]
    assert source["files"] == [["a.jsonl", (tmp_path / "a.jsonl").stat().st_size]]
    assert source["left_out"]["documents without text"] == {
        "count": 2,
        "first": "a.jsonl, line 401",
    }
    again = lpa(*command, "--overwrite", cwd=tmp_path)
    assert again.code == 0, again.stderr
    assert "1 output directories (data)" in again.stdout
    assert Manifest.load(tmp_path / "data").splits == manifest.splits


def test_a_source_is_never_overwritten(lpa, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_bytes(JSON_LINES)
    for source in ("corpus", "corpus/a.jsonl", "corpus/*.jsonl"):
        finished = lpa(
            *("prepare", source, "--vocab-size", 300, "--out", "corpus", "--overwrite"),
            cwd=tmp_path,
        )
        assert finished.code == 2, finished.stderr
        assert "--overwrite: corpus is not a prepared data directory" in finished.stderr
        assert (tmp_path / "corpus" / "a.jsonl").read_bytes() == JSON_LINES


@pytest.mark.parametrize("home", ["/dev/null/home", None])
def test_files_are_prepared_without_a_home_to_write_to(tmp_path, prepared, home):
    (tmp_path / "a.jsonl").write_bytes(JSON_LINES)
    (tmp_path / "a.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in WORDS))
    pq.write_table(pa.table({"text": WORDS}), tmp_path / "a.parquet")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "XDG_")) and name != "HOME"
    }
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "lpa", "prepare", "a.jsonl", "a.csv", "a.parquet", "--out"),
            *("data", "--tokenizer", prepared / "tokenizer", "--validation-fraction", "0.1"),
        ],
        cwd=tmp_path,
        env=environment | ({"HOME": home} if home else {}),
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    splits = Manifest.load(tmp_path / "data").splits.values()
    assert sum(split.documents for split in splits) == 3 * len(WORDS)
