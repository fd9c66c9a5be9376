"""How commands end when the machine, the shell or the user interferes."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import wait_until

from lpa.cli.process import _OPERATING_SYSTEM, command_process
from lpa.errors import UserError

REFUSALS = [
    *(
        "EACCES",
        "EBUSY",
        "EDQUOT",
        "EFBIG",
        "EIO",
        "ELOOP",
        "EMFILE",
        "ENAMETOOLONG",
        "ENOENT",
        "ENOSPC",
    ),
    *("ENOTDIR", "EROFS", "ESTALE"),
]


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_operating_system_refuses_is_one_line(name, capsys):
    number = getattr(errno, name)
    with pytest.raises(SystemExit) as exit_, command_process():
        raise OSError(number, os.strerror(number), "some/path")
    assert exit_.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"lpa: error: some/path: {os.strerror(number)}; expected ")
    assert line.count("\n") == 1


def test_a_fault_of_the_program_keeps_its_traceback():
    for error in (OSError(errno.EBADF, "Bad file descriptor"), OSError("odd"), KeyError("x")):
        with pytest.raises(type(error)), command_process():
            raise error
    with pytest.raises(RuntimeError, match="shape"), command_process():
        raise RuntimeError("shape '[2]' is invalid")


def test_a_lack_of_memory_is_one_line(capsys):
    import numpy as np
    import torch

    for allocate in (lambda: torch.empty(2**45), lambda: np.empty(2**45), lambda: bytearray(2**60)):
        with pytest.raises(SystemExit) as exit_, command_process():
            allocate()
        assert exit_.value.code == 2
        line = capsys.readouterr().err
        assert line.startswith("lpa: error: not enough memory")
        assert line.count("\n") == 1


def test_a_lack_of_threads_is_one_line(capsys):
    with pytest.raises(SystemExit), command_process():
        raise RuntimeError("can't start new thread")
    assert capsys.readouterr().err.startswith("lpa: error: can't start new thread; expected fewer")


def test_a_mistake_is_one_line_however_it_is_written(capsys):
    with pytest.raises(SystemExit) as exit_, command_process():
        raise UserError("--out x:\n  is\nnothing")
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "lpa: error: --out x: is nothing\n"


@pytest.mark.parametrize(
    "line", ["--out loop", "--out loop/x", "--out " + "a" * 300, "--out /proc/x/y"]
)
def test_an_output_that_cannot_be(lpa, run, tmp_path, line):
    (tmp_path / "loop").symlink_to("loop")
    finished = lpa("convert", "merge", run, *line.split(), cwd=tmp_path)
    assert finished.code == 2
    assert finished.stderr.startswith("lpa: error: ")
    assert finished.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


# A circle of links as a source, a model, a data directory and a task: whatever follows it first refuses it.
@pytest.mark.parametrize(
    "line",
    [
        "prepare loop --vocab-size 300 --out out",
        "data stats loop",
        "train --data.path loop --out out",
        "runs loop",
        "eval glue loop --tasks sst2",
        "eval perplexity loop --data loop",
        "study placement --scale tiny --data loop --out out",
        "report loop",
        "plan loop",
    ],
)
def test_an_input_that_is_a_circle_of_links(lpa, tmp_path, line):
    (tmp_path / "loop").symlink_to("loop")
    finished = lpa(*line.split(), cwd=tmp_path)
    assert finished.code == 2
    assert finished.stderr.startswith("lpa: error: ")
    assert "loop" in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_a_full_device(lpa):
    command = [sys.executable, "-m", "lpa", "presets"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("lpa: error: No space left on device")
    assert ended.stderr.count("\n") == 1


SWALLOWING = """
import sys, time
sys.path.insert(0, sys.argv[1])
later = sys.argv[2] == "True"
from lpa.cli.process import command_process
with command_process():
    import optional_module
    if later:
        time.sleep(9)
        print("lost", flush=True)
"""


@pytest.mark.parametrize("later", [True, False])
def test_an_interrupt_is_not_lost_in_an_import(tmp_path, later):
    (tmp_path / "optional_module.py").write_text(
        "import os, signal, time\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(0.1)\n"
        "except BaseException:\n"
        "    pass\n"
    )
    command = [sys.executable, "-c", SWALLOWING, str(tmp_path), str(later)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "lpa: interrupted\n")


# While modules are imported, while the tokenizer learns, while processes encode.
@pytest.mark.parametrize("sign", ["yaml", "tokenizers", ".data.partial", ".data.partial/tokenizer"])
def test_an_interrupt_ends_in_one_line(tmp_path, sign):
    (tmp_path / "text.txt").write_text("It is a truth universally acknowledged. " * 200_000)
    line = "prepare text.txt --vocab-size 2000 --workers 2 --boundary line --out data"
    process = subprocess.Popen(
        [sys.executable, "-m", "lpa", *line.split()],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    loaded = Path(f"/proc/{process.pid}/maps")
    started = (
        (tmp_path / sign).exists if sign.startswith(".") else lambda: sign in loaded.read_text()
    )
    wait_until(started, process)
    os.killpg(process.pid, signal.SIGINT)  # all that a terminal's Ctrl-C reaches
    _, printed = process.communicate(timeout=60)
    # CPython may end itself by the signal, which a shell tells as 130 too.
    assert process.returncode in (130, -signal.SIGINT), printed
    assert printed.splitlines()[-1] == "lpa: interrupted"
    assert "Traceback" not in printed
    assert "Exception" not in printed
    assert not (tmp_path / "data").exists()


def test_every_refusal_says_what_is_expected():
    assert all(_OPERATING_SYSTEM.values())
    assert {getattr(errno, name) for name in REFUSALS} <= _OPERATING_SYSTEM.keys()
