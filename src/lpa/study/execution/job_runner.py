"""Run what a study asks for: once, in parallel, and on from where it was left."""

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock

from lpa.data.manifest import Manifest
from lpa.errors import UserError
from lpa.storage.files import write_text_atomic
from lpa.storage.locks import acquire_lock
from lpa.study.design.grid import Study
from lpa.study.design.run_id import data_hashes, run_id
from lpa.study.design.study_index import (
    IndexedRun,
    StudyIndex,
    index_path,
    save_index,
)
from lpa.study.execution.job import Job
from lpa.study.execution.process_pool import Pool, stop_signals
from lpa.train.config import RunConfig


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
    save_index(index_path(study, out), index)
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
    pool = Pool(parallel)
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
            with pool.slot() as slot:
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
    while not stopping.is_set():
        try:
            acquire_lock(job.lock, wait_seconds=0).release()
            return
        except filelock.Timeout:
            stopping.wait(0.2)
