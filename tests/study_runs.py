"""Tiny studies in process groups of their own."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lpa.study.runner import Job

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


def is_worked_on(job: Job) -> bool:
    """Whether any process holds the lock of a run."""
    with open(job.log.with_suffix(".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
