"""Every rename and every flush of a run fails once, as on a file system that loses its server or its disk.

No such file system can be had here, so the calls themselves are made to fail.
"""

import errno
import os
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lpa.cli import main
from lpa.data import prepare
from lpa.train.checkpoint.store import resumable_checkpoints
from lpa.train.logging.metrics_file import read_metrics


class Calls:
    """Counts the calls of `os.replace` and `os.fsync` below a folder, and lets one of them fail.

    Attributes:
        seen: call and path -> how often.
        failing: which one of `seen` fails, at which of its calls, with which error.
    """

    def __init__(self, monkeypatch, root: Path) -> None:
        self.seen: Counter[str] = Counter()
        self.failing: tuple[str, int, int] | None = None
        self._root = root
        replace, fsync = os.replace, os.fsync

        def failing_replace(source, target):
            self._note("replace", Path(target))
            replace(source, target)

        def failing_fsync(descriptor):
            self._note("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")))
            fsync(descriptor)

        monkeypatch.setattr(os, "replace", failing_replace)
        monkeypatch.setattr(os, "fsync", failing_fsync)

    def _note(self, call: str, path: Path) -> None:
        if not path.is_relative_to(self._root):
            return
        name = re.sub(r"[0-9a-f]{8}|\d+\.tmp", "#", str(path.relative_to(self._root)))
        key = f"{call} {name}"
        self.seen[key] += 1
        if self.failing is not None and self.failing[:2] == (key, self.seen[key]):
            raise OSError(self.failing[2], os.strerror(self.failing[2]), str(path))


@pytest.fixture
def data(tmp_path) -> Path:
    """So little of it that a whole run is done in half a second."""
    for split, lines in (("train", 200), ("validation", 10)):
        (tmp_path / f"{split}.txt").write_text("a few words on a line\n" * lines)
    prepare(
        [tmp_path / "train.txt"],
        tmp_path / "data",
        vocab_size=260,
        validation=[tmp_path / "validation.txt"],
    )
    return tmp_path / "data"


@pytest.fixture
def train(data, tiny):
    """Run `lpa train` in this process; its exit code."""

    def run(out: Path, *more: str) -> int:
        options = [
            "--train.steps",
            "2",
            "--checkpoint.every",
            "1",
            "--checkpoint.keep_latest_k",
            "1",
        ]
        options += ["--train.eval_every", "1", "--train.eval_tokens", "64"]
        options += [
            "--checkpoint.keep_best",
            "true",
            "--train.loggers",
            "[]",
            "--train.log_every",
            "1",
        ]
        try:
            main(["train", "--data.path", str(data), *tiny, *options, "--out", str(out), *more])
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final" / "model.safetensors")


def first_and_last_of_each_folder(seen: Counter[str]) -> dict[str, int]:
    """What lies between them in a folder is written by the same loop."""
    by_folder: dict[str, list[str]] = {}
    for key in seen:
        by_folder.setdefault(str(Path(key).parent), []).append(key)
    kept = {key for keys in by_folder.values() for key in (keys[0], keys[-1])}
    return {key: times for key, times in seen.items() if key in kept}


@pytest.mark.slow
def test_no_failing_call_is_a_traceback_or_loses_the_run(train, tmp_path, monkeypatch, capsys):
    calls = Calls(monkeypatch, tmp_path / "whole")
    whole = tmp_path / "whole" / "run"
    assert train(whole) == 0
    assert {"replace run/final", "fsync run/checkpoints", "replace run/result.json"} <= set(
        calls.seen
    )
    for number, (key, times) in enumerate(first_and_last_of_each_folder(calls.seen).items()):
        run = tmp_path / str(number) / "run"
        failing = Calls(monkeypatch, run.parent)
        failing.failing = (key, times, errno.ESTALE if key.startswith("replace") else errno.EIO)
        capsys.readouterr()
        code, said = train(run), capsys.readouterr().err
        assert failing.seen[key] >= times, key
        # `best/` alone may be missing from a run that ends well.
        assert code == (0 if "best" in key else 2), (key, said)
        assert said.count("lpa: error: ") == (0 if code == 0 else 1), (key, said)
        assert "Traceback" not in said, (key, said)

        failing.failing = None
        again = "--resume" if resumable_checkpoints(run) else "--overwrite"
        assert train(run, again) == 0, (key, capsys.readouterr().err)
        ours, theirs = weights(run), weights(whole)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), key
        scored = [record["step"] for record in read_metrics(run) if "validation_loss" in record]
        assert scored == [1, 2], key
        left = [path.name for path in run.rglob("*") if ".tmp" in path.name or "old" in path.name]
        assert left == [], key
