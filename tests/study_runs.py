"""Tiny studies in process their own groups."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
from runs import wait_until

from lpa.study.job_runner import Job

WORKERS = Path(__file__).parent / "study" / "workers"


def start_study(out: Path, data: Path, script: str = "two_variants.py") -> subprocess.Popen:
    """A script of tests/study/workers: by default dense and LPA, two seeds each."""
    return subprocess.Popen(
        [sys.executable, str(WORKERS / script), str(out), str(data)],
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )


@contextmanager
def study_to_stop(
    out: Path, data: Path, script: str = "two_variants.py"
) -> Iterator[subprocess.Popen]:
    """`start_study` for a test that ends it; whatever of its group is left then is killed."""
    process = start_study(out, data, script)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def freeze_when(condition: Callable[[], Any], process: subprocess.Popen) -> None:
    """Stop the whole group at a moment at which the condition holds, however slow the machine is."""

    def frozen() -> bool:
        if not condition():
            return False
        os.killpg(process.pid, signal.SIGSTOP)
        # One that has not halted yet would take the next signal before it does.
        wait_until(lambda: all(map(_is_stopped, _children(process))), process)
        if condition():
            return True
        os.killpg(process.pid, signal.SIGCONT)
        return False

    wait_until(frozen, process, timeout=300)


def terminate_frozen(process: subprocess.Popen) -> None:
    """SIGTERM to a frozen study, which tells its runs before any of them continues."""
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: all(map(_has_sigterm_pending, _children(process))), process)
    os.killpg(process.pid, signal.SIGCONT)


def _children(process: subprocess.Popen) -> list[str]:
    found = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [pid for file in found for pid in file.read_text().split()]


def _is_stopped(pid: str) -> bool:
    """Whether all threads are, or the process has ended."""
    try:
        stats = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:  # a thread has just ended
        return False
    return all(stat.rpartition(")")[2].split()[0] in "TZX" for stat in stats)


def _has_sigterm_pending(pid: str) -> bool:
    [pending] = re.findall(r"ShdPnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(pending, 16) >> (signal.SIGTERM - 1) & 1)


def is_worked_on(job: Job) -> bool:
    """Whether any process holds the lock of a run."""
    try:
        with filelock.FileLock(job.lock, timeout=0):
            return False
    except filelock.Timeout:
        return True
