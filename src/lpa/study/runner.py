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
from contextlib import contextmanager
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
        with _slot(pool) as cores:
            if pool.stopping.is_set():
                return False
            say(job, "running")
            done = execute(job, lambda command, log: pool.call(command, log, cores, job))
        if not pool.stopping.is_set():
            say(job, "finished" if done else "failed")
        return done

    with pool.signals(), ThreadPoolExecutor(parallel) as threads:
        futures = [threads.submit(work, job) for job in jobs]
        # Short waits, as Python runs a signal's handler in this thread only between them.
        while not all(future.done() for future in futures):
            time.sleep(0.05)
    if pool.stopping.is_set():
        raise KeyboardInterrupt
    return [job for job, future in zip(jobs, futures, strict=True) if not future.result()]


def execute(job: Job, call: Callable[[list[str], Path], int]) -> bool:
    """Train, or go on training, then measure on held-out text; whether both succeeded.

    Args:
        call: runs a command with its output appended to a file; its exit code.
    """
    job.log.parent.mkdir(parents=True, exist_ok=True)
    if not (job.run / RESULT_FILE).exists():
        command = ["train", str(job.recipe), "--out", str(job.run)]
        if (job.run / _CONFIG_FILE).exists():
            resumable = checkpoint_store.resumable(job.run)
            command.append("--resume" if resumable else "--overwrite")
        if call([sys.executable, "-m", "lpa", *command], job.log):
            return False
    if not (job.run / TEST_FILE).exists():
        command = [sys.executable, "-m", "lpa.study.measure", str(job.run), str(job.data)]
        if call(command, job.log):
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

    def call(self, command: list[str], log: Path, cores: list[int], job: Job) -> int:
        # The lock passes to the process, which holds it beyond the death of this one: whoever starts
        # the study again waits until nobody writes to the run any more.
        with open(job.log.with_suffix(".lock"), "w") as lock, open(log, "ab") as output:
            while not self._locked(lock):
                if self.stopping.wait(0.2):
                    return 1
            with self._lock:
                if self.stopping.is_set():
                    return 1
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, "OMP_NUM_THREADS": str(max(1, len(cores)))},
                    pass_fds=[lock.fileno()],
                )
                self._running.add(process)
            if cores:
                os.sched_setaffinity(process.pid, cores)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        return code

    def stop(self, *_: Any) -> None:
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

    @staticmethod
    def _locked(file: Any) -> bool:
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
