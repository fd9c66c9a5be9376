import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from lpa.errors import LPAWarning, UserError
from lpa.storage.locks import acquire_lock, lock_directory
from lpa.storage.outputs import Marker

HOLD = """
import sys, time
from pathlib import Path
from lpa.storage.locks import lock_directory
with lock_directory(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds `tmp_path / "out"`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "out"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_error_names_who_holds_the_lock(tmp_path, other):
    said = rf"is in use by process {other.pid} on {re.escape(socket.gethostname())} since 20\d\d-"
    with pytest.raises(UserError, match=said), lock_directory(tmp_path / "out"):
        pass


def test_parts_of_a_directory_are_locked_separately(tmp_path):
    with lock_directory(tmp_path, part="one"):
        with lock_directory(tmp_path, part="other"):
            pass
        with pytest.raises(UserError, match="is in use by"), lock_directory(tmp_path, part="one"):
            pass
    with lock_directory(tmp_path, part="one"):
        pass


def test_a_process_that_was_killed_holds_nothing(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with lock_directory(tmp_path / "out"):
        pass


def test_a_directory_in_which_nothing_was_written_is_as_before(tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    (there / "mine").write_text("")
    for out in (there, tmp_path / "new" / "out"):
        with pytest.raises(RuntimeError), lock_directory(out):
            raise RuntimeError
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "there",
        "there/mine",
    ]


def test_an_output_of_another_command_is_as_before(tmp_path):
    Marker("a merged model").save(tmp_path)
    before = [*tmp_path.iterdir()]
    with pytest.raises(RuntimeError), lock_directory(tmp_path):
        raise RuntimeError
    assert [*tmp_path.iterdir()] == before


def hold_write_and_fail(out):
    with lock_directory(out):
        Marker("a thing").save(out)
        raise RuntimeError


def test_a_directory_of_ours_is_free_again_after_an_error(tmp_path):
    with pytest.raises(RuntimeError):
        hold_write_and_fail(tmp_path)
    with lock_directory(tmp_path):
        pass


@pytest.fixture(params=[errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def no_locks(request, monkeypatch):
    """What a file system without `flock` answers."""

    def flock(descriptor, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_without_locks_of_the_file_system_a_command_runs_with_a_warning(tmp_path, no_locks):
    """Also where another program, or an earlier version, left a file that says that it holds the lock."""
    (tmp_path / ".lpa.lock").write_text("4194303\ndead-node\n")
    with (
        pytest.warns(LPAWarning, match=rf"^{tmp_path}: .*start one process at a time") as warned,
        lock_directory(tmp_path),
        lock_directory(tmp_path),
    ):
        (tmp_path / "result").write_text("")
    assert len(warned) == 2
    assert (tmp_path / ".lpa.lock").read_text() == "4194303\ndead-node\n"


def test_an_error_of_the_disk_is_no_lack_of_locks(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"):
        acquire_lock(tmp_path / "lock")
