"""Fixtures that every test may use."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"

# A model and a run so small that a step takes milliseconds.
TINY = [
    *("--data.context", "32"),
    *("--model.hidden_size", "32", "--model.intermediate_size", "64"),
    *("--model.num_hidden_layers", "2", "--model.num_attention_heads", "2", "--model.rank", "8"),
    *("--train.batch_size", "4", "--train.threads", "1", "--train.device", "cpu"),
    *("--optim.warmup_steps", "2"),
]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and golden vectors beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED.name}/ beside the checkout")
    return SHARED


@dataclass
class Finished:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


class _CommandServer:
    """See command_server.py."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("command_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        )

    def __call__(
        self,
        *arguments: object,
        script: Path | None = None,
        processes: int = 0,
        cwd: Path | None = None,
    ) -> Finished:
        """Run a command, or a script as so many ranks."""
        files = self._folder / "stdout", self._folder / "stderr"
        for file in files:
            file.write_bytes(b"")
        request = {
            "script": script and str(script),
            "processes": processes,
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd or Path.cwd()),
            "stdout": str(files[0]),
            "stderr": str(files[1]),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        code = int(self._process.stdout.readline())
        return Finished(code, *(file.read_text(encoding="utf-8") for file in files))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="session")
def lpa(tmp_path_factory) -> Iterator[Callable[..., Finished]]:
    """Run the real command line in a process of its own: `lpa("train", …) -> Finished`."""
    server = _CommandServer(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def run_ranks(lpa) -> Callable[..., Any]:
    """Run a script of tests/train/workers as so many processes of one world, where torchrun itself does not
    matter; what they wrote as JSON to the path that they were given last."""

    def run(processes: int, name: str, *arguments: object) -> Any:
        script = Path(__file__).parent / "train" / "workers" / name
        finished = lpa(*arguments, script=script, processes=processes)
        assert finished.code == 0, finished.stderr
        return json.loads(Path(str(arguments[-1])).read_text())

    return run


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options of `lpa train` for a tiny model."""
    return TINY


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """The bundled speeches of the test split, prepared with a small vocabulary."""
    from lpa.data import bundled_corpus, prepare

    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare(
        [bundled_corpus("test")],
        out,
        vocab_size=300,
        validation=[bundled_corpus("validation")],
        test_fraction=0.1,
    )
    return out


@pytest.fixture(scope="session")
def run(tmp_path_factory, prepared, lpa) -> Path:
    """A finished run of a tiny model."""
    out = tmp_path_factory.mktemp("run") / "run"
    finished = lpa(
        *("train", "--data.path", prepared, "--out", out, "--train.steps", 8, *TINY),
        *("--train.eval_every", 4, "--train.eval_tokens", 500),
    )
    assert finished.code == 0, finished.stderr
    return out


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory, prepared) -> Path:
    """Where a study of dense and LPA, two seeds each, was run to its end."""
    from study_runs import start_study

    out = tmp_path_factory.mktemp("study") / "out"
    assert start_study(out, prepared).wait(timeout=300) == 0
    return out
