"""Run what a study asks for: once, in parallel, and on from where it was left."""

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

import filelock

from lpa.data.manifest import Manifest
from lpa.errors import DIVERGED, UserError
from lpa.eval.perplexity import Evaluation
from lpa.storage.files import write_text_atomic
from lpa.storage.records import read_json
from lpa.storage.run_directory import RESULT_FILE, TEST_FILE
from lpa.study.design.grid import Study
from lpa.study.design.run_id import data_hashes, run_id
from lpa.study.design.study_index import (
    IndexedRun,
    StudyIndex,
    index_path,
    read_index,
    with_earlier_variants,
)
from lpa.train.config import RunConfig

# Beside the log, as the next start removes a run that has no checkpoint.
FAILURE_SUFFIX = ".failure"

# What an index holds, as a message calls it.
_DIFFERENCES = {
    "base": "other steps or another scale of that name",
    "variants": "other tuned settings, or another grid",
    "data_hashes": "other data",
}

# Of a variant, what the planner says, perhaps otherwise in another version.
_COUNTED = ("parameters", "train_flops_per_token", "match")
_UNDECIDING_SETTINGS = ("checkpoint.", "parallel.", "model.attn_implementation")


@dataclass(frozen=True)
class Job:
    """One run and its files.

    Attributes:
        run_id: jobs with the same are one run, see `run_id`.
        run: the run directory.
        recipe: its configuration, as `lpa train` reads it.
        log: what its process prints.

    Its process holds `lock` while it works on the run, whatever becomes of the study that started it.
    """

    variant: str
    seed: int
    run_id: str
    run: Path
    recipe: Path
    log: Path

    @property
    def lock(self) -> Path:
        return self.log.with_suffix(".lock")

    @property
    def test(self) -> Path:
        """Its `Evaluation` on held-out text."""
        return self.run / TEST_FILE

    @property
    def diverged(self) -> bool:
        """Whether its last start failed as loss or gradient were not finite. It then has ended: another start
        would repeat that, and docs/protocol.md allows none."""
        try:
            return is_divergence(self.failure.read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            return False

    @property
    def failure(self) -> Path:
        """What its last start failed with."""
        return self.log.with_suffix(FAILURE_SUFFIX)

    @property
    def finished(self) -> bool:
        return is_finished(self.run)


def is_finished(run: Path) -> bool:
    """Whether a run directory holds a trained model and its score."""
    return (run / RESULT_FILE).exists() and (run / TEST_FILE).exists()


def is_divergence(failure: str) -> bool:
    """Whether loss or gradient of a run were not finite, by what is recorded of its failure."""
    return DIVERGED in failure


def read_test(run: Path) -> Evaluation:
    """The score of a finished run on held-out text.

    Raises:
        UserError: its file is damaged.
    """
    return read_json(run / TEST_FILE, Evaluation)


def create_jobs(
    study: Study, seeds: int, out: Path, data: Path, manifest: Manifest | None = None
) -> list[Job]:
    """Write the study's index and the recipe of each run.

    The order is seed by seed, all variants of one before the next, and these in the other direction: early
    results are balanced, and what slows the machine for a while, or more and more, slows all variants alike.

    Args:
        manifest: that of the data, where it has been read.

    Raises:
        UserError: `out` holds this study with other settings or data, or data without what it needs.
    """
    manifest = manifest or Manifest.load(data)
    hashes = data_hashes(manifest, data)
    if study.tunes and "validation" not in hashes:
        raise UserError(
            f"--data {data}: has no validation split; expected one to choose settings by"
        )
    split = "test" if "test" in hashes else "validation"
    configs = {}
    for seed in range(study.first_seed, study.first_seed + seeds):
        for variant in study.variants[:: -1 if seed % 2 else 1]:
            config = study.config(variant, seed, data)
            name = run_id(config, hashes, manifest.vocab_size)
            job = Job(
                variant.name,
                seed,
                name,
                run=out / "runs" / name,
                recipe=out / "recipes" / f"{name}.yaml",
                log=out / "logs" / f"{name}.log",
            )
            configs[job] = config
    index = StudyIndex(
        **vars(study),
        seeds=seeds,
        split=split,
        data=str(data),
        data_hashes=hashes,
        runs=[IndexedRun(job.variant, job.seed, job.run_id) for job in configs],
    )
    _write_index(index_path(study, out), index)
    for job, config in configs.items():
        recipe = _earlier_recipe(job, hashes, manifest.vocab_size) or config
        recipe.data.path = data
        write_text_atomic(job.recipe, recipe.to_yaml())
    return list(configs)


def _earlier_recipe(job: Job, data: dict[str, Any], vocab_size: int) -> RunConfig | None:
    """The run's recipe as another study wrote it.

    It may say the same model in other words, and a run resumes only with the words that it started with.
    """
    try:
        config = RunConfig.load(job.recipe)
        return config if run_id(config, data, vocab_size) == job.run_id else None
    except UserError:  # there is none, or it is damaged
        return None


def _write_index(path: Path, index: StudyIndex) -> None:
    """Keep what an earlier start of the same study asked for, refuse another study's place."""
    before = read_index(path) if path.exists() else None
    if before is not None:
        index = with_earlier_variants(index, before, path)
    text = json.dumps(asdict(index), indent=2) + "\n"
    if before is not None:
        earlier, now = map(_deciding, (asdict(before), json.loads(text)))
        # Variants may be added to a study, as tuning by variant does with rates, or some of them run alone.
        grown = all(one in now["variants"] for one in earlier["variants"])
        some = grown or not any(one["tunes"] for one in now["variants"])
        some = some and all(one in earlier["variants"] for one in now["variants"])
        for key, difference in _DIFFERENCES.items():
            if earlier[key] != now[key] and not (key == "variants" and (grown or some)):
                raise UserError(
                    f"--out {path.parent}: holds {index.name} at {index.scale} with {difference}; expected "
                    "another directory"
                )
        more, fewer = index.seeds > earlier["seeds"], index.seeds < earlier["seeds"]
        if (fewer and not some) or (more and not grown):
            raise UserError(
                f"--seeds: got {index.seeds}; expected {earlier['seeds']}, as the variants in {path.parent} "
                "have"
            )
        if fewer or not grown:
            return
    write_text_atomic(path, text)


def _deciding(index: dict[str, Any]) -> dict[str, Any]:
    """An index without what makes no run another one: what is counted, and how runs are computed and kept."""
    base = {
        name: value
        for name, value in index["base"].items()
        if not name.startswith(_UNDECIDING_SETTINGS)
    }
    variants = [
        {name: value for name, value in variant.items() if name not in _COUNTED}
        for variant in index["variants"]
    ]
    return {**index, "base": base, "variants": variants}


def run_jobs(
    jobs: list[Job],
    parallel: int,
    on_state: Callable[[Job, str], None] = lambda job, state: None,
    on_tick: Callable[[], None] = lambda: None,
    *,
    stop_on_failure: bool = False,
) -> list[Job]:
    """Run all that have not ended, in their own processes, and return those that failed.

    A job that diverged in an earlier start is not run again, and counts as failed.

    Each process has its own cores and GPU where there are enough. SIGINT and SIGTERM stop them
    with their checkpoints.

    Args:
        parallel: runs at a time.
        on_state: called with a job and `finished`, `kept` (from earlier), `running` or `failed` (also of one
            that diverged earlier), by one thread at a time.
        on_tick: called a few times a second while they run, by the caller's thread.
        stop_on_failure: stop all others once one has failed; they do not count as failed.

    Raises:
        KeyboardInterrupt: a signal ended it, once all processes have.
    """
    pool = _Pool(parallel)
    lock = threading.Lock()

    def notify(job: Job, state: str) -> None:
        with lock:
            on_state(job, state)

    def work(job: Job) -> bool:
        """Whether it failed; one that was stopped did not."""
        if job.finished:
            notify(job, "kept")
            return False
        if pool.stopping.is_set():
            return False
        failed = job.diverged
        if not failed:
            with _slot(pool) as slot:
                wait_until_free(job, pool.stopping)
                if pool.stopping.is_set():
                    return False
                notify(job, "running")
                failure = train_and_score_job(
                    job, lambda command: pool.call(command, job.log, slot)
                )
            if pool.stopping.is_set():
                return False
            record_failure(job, failure)
            failed = bool(failure)
        notify(job, "failed" if failed else "finished")
        if failed and stop_on_failure:
            pool.stop()
        return failed

    with stop_signals(pool.interrupt), ThreadPoolExecutor(parallel) as threads:
        # Two variants may be the same model, which then trains once.
        distinct = {job.run_id: job for job in jobs}
        futures = {name: threads.submit(work, job) for name, job in distinct.items()}
        # Short waits, as Python runs a signal's handler in this thread only between them.
        while not all(future.done() for future in futures.values()):
            time.sleep(0.2)
            on_tick()
    if pool.interrupted:
        raise KeyboardInterrupt
    return [job for job in jobs if futures[job.run_id].result()]


def train_and_score_job(job: Job, call: Callable[[list[str]], int]) -> str | None:
    """Train and score the run, in its own process; what that failed with, None where it did not.

    Args:
        call: runs a command and gives its exit code.
    """
    command = [
        sys.executable,
        "-m",
        "lpa.study.execution.run_worker",
        *map(str, (job.recipe, job.run, job.lock)),
    ]
    job.log.parent.mkdir(parents=True, exist_ok=True)
    log_size = job.log.stat().st_size if job.log.exists() else 0
    code = call(command)
    if code == 0 and job.finished:
        return None
    with open(job.log, "rb") as log:
        log.seek(log_size)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
    return f"exit code {code}: {next(filter(None, reversed(lines)), 'no word')}"


def record_failure(job: Job, failure: str | None) -> None:
    """For the report; None where the run has not failed, now."""
    if failure is None:
        job.failure.unlink(missing_ok=True)
    else:
        write_text_atomic(job.failure, failure + "\n")


def wait_until_free(job: Job, stopping: threading.Event) -> None:
    """Wait until no process works on the run, or until `stopping`.

    Such a process may be that of another study, or have outlived the study that started it.
    """
    lock = filelock.FileLock(job.lock)
    while not stopping.is_set():
        try:
            with lock.acquire(timeout=0):
                return
        except filelock.Timeout:
            stopping.wait(0.2)


@contextmanager
def stop_signals(handler: Callable[..., None]) -> Iterator[None]:
    """SIGINT and SIGTERM go to a handler while in this context; in the main thread, the only one that may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@dataclass(frozen=True)
class Slot:
    """What one of several runs at a time has of the machine.

    Attributes:
        cores: reserved for it; empty where there are fewer cores than runs, which then share them all.
        gpu: the one that it sees, as CUDA_VISIBLE_DEVICES names it; None where there is none.
    """

    cores: list[int]
    gpu: str | None

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a process keeps to it."""
        threads = {"OMP_NUM_THREADS": str(max(1, len(self.cores)))}
        return threads if self.gpu is None else {**threads, "CUDA_VISIBLE_DEVICES": self.gpu}


def make_slots(parallel: int, cores: list[int], gpus: list[str]) -> list[Slot]:
    """So many slots. More runs than GPUs share these in turn."""
    cores_per_slot = len(cores) // parallel
    return [
        Slot(
            cores[i * cores_per_slot : (i + 1) * cores_per_slot],
            gpus[i % len(gpus)] if gpus else None,
        )
        for i in range(parallel)
    ]


def visible_gpus() -> list[str]:
    """The names of the GPUs that this process may use."""
    import torch

    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (given.split(",") if given else [str(i) for i in range(count)])[:count]


class _Pool:
    """The processes at work, and what is free for the next."""

    def __init__(self, parallel: int) -> None:
        self.stopping = threading.Event()
        self.interrupted = False
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.free = make_slots(parallel, cores, visible_gpus())

    def call(self, command: list[str], log: Path, slot: Slot) -> int:
        """Run a command in a slot, its output appended to the log; its exit code."""
        with self._lock, open(log, "ab") as output:
            if self.stopping.is_set():
                return 1
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **slot.environment},
            )
            self._running.add(process)
            if self.stopping.is_set():  # `stop` came while the process was being made
                process.terminate()
        if slot.cores:
            with suppress(ProcessLookupError):  # it may have ended already
                os.sched_setaffinity(process.pid, slot.cores)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
        return code

    def stop(self) -> None:
        """Begin nothing more. The processes take note once, and end with a checkpoint."""
        self.stopping.set()
        for process in list(self._running):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def interrupt(self, *_: Any) -> None:
        """`stop`, as the handler of a signal."""
        self.interrupted = True
        self.stop()


@contextmanager
def _slot(pool: _Pool) -> Iterator[Slot]:
    slot = pool.free.pop()
    try:
        yield slot
    finally:
        pool.free.append(slot)
