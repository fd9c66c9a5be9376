"""Jobs of a study on a cluster, by submitit; its local executor runs them here for a trial."""

import io
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from lpa.errors import UserError
from lpa.study.execution.job import Job
from lpa.study.execution.job_runner import record_failure, train_and_score_job, wait_until_free
from lpa.study.execution.process_pool import stop_signals


def submit_jobs(
    jobs: list[Job],
    folder: Path,
    parameters: Mapping[str, int | str],
    *,
    cluster: str = "slurm",
    on_state: Callable[[Job, str], None] = lambda job, state: None,
) -> list[Job]:
    """Submit all that have not ended, wait for them, and return those that failed.

    A job that diverged in an earlier start is not submitted again, and counts as failed.

    A job is one task on one node; the same resume as of local runs applies when the study is started
    again. SIGINT and SIGTERM cancel what was submitted.

    Args:
        folder: for submitit's own files.
        parameters: of submitit's executor, such as `timeout_min` or `slurm_partition`.
        cluster: `slurm`, or `local` for processes on this machine.

    Raises:
        UserError: submitit is not installed, there is no such cluster here, or it refused the jobs.
        KeyboardInterrupt: a signal ended it, once all jobs are canceled.
    """
    waiting, failed = {}, set()
    for name, job in {job.run_id: job for job in jobs}.items():
        if job.finished:
            on_state(job, "kept")
        elif job.diverged:
            failed.add(name)
            on_state(job, "failed")
        else:
            waiting[name] = job
    if waiting:
        failed |= _submit_and_wait(waiting, _executor(folder, cluster, parameters), on_state)
    return [job for job in jobs if job.run_id in failed]


def _submit_and_wait(
    jobs: dict[str, Job], executor: Any, on_state: Callable[[Job, str], None]
) -> set[str]:
    """The names of the jobs that failed."""
    stop_event = threading.Event()
    # A handler that only takes note, so that no job is submitted without being known here.
    with stop_signals(lambda *_: stop_event.set()):
        tasks = _submit(executor, jobs)
        for job in jobs.values():
            on_state(job, "running")
        failed = _wait_for_jobs(tasks, jobs, on_state, stop_event)
    if stop_event.is_set():
        raise KeyboardInterrupt
    return failed


def _executor(folder: Path, cluster: str, parameters: Mapping[str, int | str]) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UserError("--executor slurm: needs submitit: pip install 'lpa[slurm]'") from error
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    except RuntimeError as error:
        raise UserError(
            "--executor slurm: found no srun here; expected a machine of a Slurm cluster"
        ) from error
    try:
        executor.update_parameters(**{"name": "lpa-study", **parameters})
    except (AssertionError, NameError, TypeError, ValueError) as error:
        raise UserError(f"--slurm: {_one_line(error)}") from error
    return executor


def _submit(executor: Any, jobs: dict[str, Job]) -> dict[str, Any]:
    """A task for each job."""
    try:
        # submitit prints there what the error says as well.
        with redirect_stderr(io.StringIO()), executor.batch():
            return {name: executor.submit(run_job, job) for name, job in jobs.items()}
    except (OSError, RuntimeError) as error:
        raise UserError(f"--executor slurm: the submission failed: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _wait_for_jobs(
    tasks: dict[str, Any],
    jobs: dict[str, Job],
    on_state: Callable[[Job, str], None],
    stop_event: threading.Event,
) -> set[str]:
    """The names of those that failed; no task is left when this ends."""
    from submitit.core.utils import UncompletedJobError

    pending, failed = dict(tasks), set()
    try:
        while pending and not stop_event.wait(1):
            for name in [name for name, task in pending.items() if task.done()]:
                try:
                    failure = pending.pop(name).result()
                except UncompletedJobError as error:
                    failure = _one_line(error)
                record_failure(jobs[name], failure)
                on_state(jobs[name], "failed" if failure else "finished")
                if failure:
                    failed.add(name)
    finally:
        for task in pending.values():
            task.cancel(check=False)
    return failed


def run_job(job: Job) -> str | None:
    """One job, where the cluster started it, once nobody else works on its run; see `train_and_score_job`."""
    wait_until_free(job, threading.Event())
    return train_and_score_job(job, lambda command: _run_command(command, job.log))


def _run_command(command: list[str], log: Path) -> int:
    """Run a command, its output appended to the log; its exit code."""
    process: subprocess.Popen | None = None
    canceled = threading.Event()

    def cancel(*_: object) -> None:
        canceled.set()
        if process is not None:
            process.terminate()  # it leaves a checkpoint

    # Slurm may signal this process alone, and submitit would ignore it.
    with open(log, "ab") as output, stop_signals(cancel):
        process = subprocess.Popen(command, stdout=output, stderr=output)
        if canceled.is_set():  # while the process was being made
            process.terminate()
        try:
            return process.wait()
        except BaseException:  # of submitit: the time is nearly up
            process.terminate()
            process.wait()
            raise
