"""Run what a study asks for: once, in parallel, and on from where it was left."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lpa.files import write_text
from lpa.study.grid import Study, data_identity, run_identity
from lpa.train import checkpoint_store
from lpa.train.result import RESULT_FILE

TEST_FILE = "test.json"
_CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Job:
    """One run of a study and where it lies.

    Attributes:
        identity: see `run_identity`.
        out: of the study.
        data: prepared.
    """

    variant: str
    seed: int
    identity: str
    out: Path
    data: Path

    @property
    def run(self) -> Path:
        return self.out / "runs" / self.identity

    @property
    def recipe(self) -> Path:
        return self.out / "recipes" / f"{self.identity}.yaml"

    @property
    def log(self) -> Path:
        return self.out / "logs" / f"{self.identity}.log"

    @property
    def finished(self) -> bool:
        return (self.run / RESULT_FILE).exists() and (self.run / TEST_FILE).exists()


def plan_jobs(study: Study, seeds: int, out: Path, data: Path) -> list[Job]:
    """Write the study's index and the recipe of each run.

    The order is seed by seed, all variants of one before the next: early results are balanced, and
    what slows the machine for a while slows all variants alike.
    """
    identity = data_identity(data)
    split = "test" if "test" in identity else "validation"
    jobs = []
    for seed in range(seeds):
        for variant in study.variants:
            config = study.config(variant, seed, data)
            job = Job(variant.name, seed, run_identity(config, identity), out, data)
            write_text(job.recipe, config.to_yaml())
            jobs.append(job)
    index = {
        **{k: v for k, v in asdict(study).items() if k != "base"},
        "seeds": seeds,
        "split": split,
        "data": str(data),
        "runs": [{"variant": j.variant, "seed": j.seed, "run": j.identity} for j in jobs],
    }
    write_text(out / f"{study.name}-{study.scale}.json", json.dumps(index, indent=2) + "\n")
    return jobs


def run_jobs(
    jobs: list[Job], parallel: int, report: Callable[[Job, str], None] = lambda job, state: None
) -> list[Job]:
    """Run all that are not finished, in processes of their own, and return those that failed.

    Each process has its own cores where there are enough. SIGINT and SIGTERM stop them with their
    checkpoints.

    Args:
        parallel: runs at a time.
        report: called with a job and `finished`, `kept` (from earlier), `running` or `failed`, by one
            thread at a time.

    Raises:
        KeyboardInterrupt: a signal ended it, once all processes have.
    """
    pool = _Pool(parallel)
    lock = threading.Lock()

    def say(job: Job, state: str) -> None:
        with lock:
            report(job, state)

    def work(job: Job) -> bool:
        if job.finished:
            say(job, "kept")
            return True
        if pool.stopping.is_set():
            return False
        with _slot(pool) as cores, pool.lock(job) as lock:
            if pool.stopping.is_set():
                return False
            say(job, "running")
            done = execute(job, lambda command: pool.call(command, job.log, cores, lock))
        if not pool.stopping.is_set():
            say(job, "finished" if done else "failed")
        return done

    with pool.signals(), ThreadPoolExecutor(parallel) as threads:
        # Two variants may come to the same model, which then trains once.
        distinct = {job.identity: job for job in jobs}
        futures = {name: threads.submit(work, job) for name, job in distinct.items()}
        # Short waits, as Python runs a signal's handler in this thread only between them.
        while not all(future.done() for future in futures.values()):
            time.sleep(0.05)
    if pool.stopping.is_set():
        raise KeyboardInterrupt
    return [job for job in jobs if not futures[job.identity].result()]


def execute(job: Job, call: Callable[[list[str]], int]) -> bool:
    """Train, or go on training, then measure on held-out text; whether both succeeded.

    Args:
        call: runs a command and gives its exit code.
    """
    if not (job.run / RESULT_FILE).exists():
        command = ["train", str(job.recipe), "--out", str(job.run)]
        if (job.run / _CONFIG_FILE).exists():
            resumable = checkpoint_store.resumable(job.run)
            command.append("--resume" if resumable else "--overwrite")
        if call([sys.executable, "-m", "lpa", *command]):
            return False
    if not (job.run / TEST_FILE).exists():
        command = [sys.executable, "-m", "lpa.study.measure", str(job.run), str(job.data)]
        if call(command):
            return False
    return job.finished


class _Pool:
    """The processes at work, and the cores that are free for the next."""

    def __init__(self, parallel: int) -> None:
        self.stopping = threading.Event()
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        share = len(cores) // parallel
        self.free = [cores[i * share : (i + 1) * share] for i in range(parallel)]

    @contextmanager
    def lock(self, job: Job) -> Iterator[int]:
        """Wait until nobody else works on the run; the descriptor of the lock.

        Its processes inherit it and so hold the lock beyond the death of this one: whoever starts the
        study again waits until nobody writes to the run any more.
        """
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log.with_suffix(".lock"), "w") as file:
            while not _locked(file) and not self.stopping.wait(0.2):
                pass
            yield file.fileno()

    def call(self, command: list[str], log: Path, cores: list[int], lock: int) -> int:
        """Run a command on some cores, its output appended to the log; its exit code."""
        with self._lock, open(log, "ab") as output:
            if self.stopping.is_set():
                return 1
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "OMP_NUM_THREADS": str(max(1, len(cores)))},
                pass_fds=[lock],
            )
            self._running.add(process)
            if self.stopping.is_set():  # the signal came while the process was being made
                process.terminate()
        if cores:
            with suppress(ProcessLookupError):  # it may have ended already
                os.sched_setaffinity(process.pid, cores)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
        return code

    def stop(self, *_: Any) -> None:
        """The handler of a signal. The processes take note once, and end with a checkpoint."""
        self.stopping.set()
        for process in list(self._running):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop the processes while in this context."""
        before = {s: signal.signal(s, self.stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _locked(file: Any) -> bool:
    """Whether the lock on a file was free and now is ours."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _slot(pool: _Pool) -> Iterator[list[int]]:
    cores = pool.free.pop()
    try:
        yield cores
    finally:
        pool.free.append(cores)
