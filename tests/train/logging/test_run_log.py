"""The log of a run as a file of Slurm or nohup receives it."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import torchrun

STEP = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d step (\d+)/(\d+)  loss \d+\.\d+  lr \d\.\d+e-\d+  "
    r"grad norm \d+\.\d+  [\d,]+ tokens/s  (.+) left$"
)


def steps_of(log: str) -> list[int]:
    return [int(found[1]) for line in log.splitlines() if (found := STEP.match(line))]


@pytest.fixture(scope="module")
def options(prepared, tiny):
    return [
        *("train", "--data.path", prepared, *tiny, "--train.steps", 8, "--train.log_every", 2),
        *("--checkpoint.every", 4, "--train.eval_every", 4, "--train.eval_tokens", 500),
    ]


def test_a_file_receives_a_line_for_each_record(lpa, options, tmp_path):
    finished = lpa(*options, "--out", tmp_path / "run")
    assert finished.code == 0, finished.stderr
    assert steps_of(finished.stderr) == [2, 4, 6, 8]
    lines = [line[20:] for line in finished.stderr.splitlines()]
    names = [line.split()[0] for line in lines[:5]]
    assert names == ["model", "device", "precision", "length", "output"]
    assert re.search(r"8 steps; 128 tokens each, 1,024 in all; about \d+ s$", lines[3])
    assert sum("validation loss" in line for line in lines) == 2
    assert sum("checkpoint saved" in line for line in lines) == 2
    assert lines[-1] == f"finished: the model is in {tmp_path / 'run/final'}"


@pytest.mark.parametrize(
    ("level", "expected"),
    [(["--json"], []), (["--log-level", "warning"], []), (["--json", "--log-level", "info"], [2])],
)
def test_the_level_decides(lpa, options, tmp_path, level, expected):
    finished = lpa(*options, "--train.steps", 2, "--out", tmp_path / "run", *level)
    assert finished.code == 0, finished.stderr
    assert steps_of(finished.stderr) == expected
    assert bool(finished.stderr) == bool(expected)


def test_a_resumed_run_says_what_is_done(lpa, options, tmp_path):
    assert lpa(*options, "--out", tmp_path / "run", "--train.stop_at", 4).code == 0
    resumed = lpa(*options, "--out", tmp_path / "run", "--resume")
    assert "8 steps, 4 of them done" in resumed.stderr
    assert steps_of(resumed.stderr) == [6, 8]


def test_one_process_speaks_for_all(lpa, options, tmp_path):
    launched = torchrun(lpa, 2, *options, "--out", tmp_path / "run")
    code, output = launched.finish()
    assert code == 0, output
    assert steps_of(output) == [2, 4, 6, 8]


def test_a_terminal_shows_a_bar_with_the_names_of_phases_and_no_log(options, tmp_path):
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "lpa", *map(str, options), "--out", "run"],
        cwd=tmp_path,  # a path of any length would be shown whole
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(controller, 4096)
        except OSError:  # the other end is closed
            break
        shown += part
    os.close(controller)
    assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode())
    assert steps_of(text) == []
    for name in ("model ", "device ", "precision ", "length ", "output "):
        assert f"{name}" in text
    assert "training attention" in text
    # The bar stays while others show what comes after the last step, and the checkpoint of that step.
    for phase in ("8/8 .*\n.*evaluating", "8/8 .*\n.*saving the model", "7/8 .*\n.*saving a check"):
        assert re.search(phase, text.replace("\r", "")), phase
    assert re.search(r"\d/8 \d+ s left +loss \d\.\d", text)
    assert all(len(line) <= 80 for part in text.split("\n") for line in part.split("\r"))


LIBRARY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers.small_runs import small_config
from lpa.train.run import train
train(small_config(Path(sys.argv[2]), steps=2, log_every=1), Path("run"))
"""


def test_the_library_alone_writes_nothing(lpa, prepared, tmp_path):
    script = tmp_path / "library.py"
    script.write_text(LIBRARY)
    done = lpa(Path(__file__).parents[2], prepared, script=script, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert done.stdout == ""
    # Torch and transformers speak there of the files that they write.
    assert not re.search(r"step|loss|training|tokens/s", done.stderr)
