"""Jobs of a study on a cluster, by submitit; its local executor runs them here for a trial."""

import io
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from lpa.errors import UserError
from lpa.study.runner import Job, execute, keep_failure, stop_signals, wait_until_free


def submit_jobs(
    jobs: list[Job],
    folder: Path,
    parameters: Mapping[str, int | str],
    *,
    cluster: str = "slurm",
    report: Callable[[Job, str], None] = lambda job, state: None,
) -> list[Job]:
    """Submit all that are not finished, wait for them, and return those that failed.

    A job is one task on one node; the same resume as of local runs applies when the study is started
    again. SIGINT and SIGTERM cancel what was submitted.

    Args:
        folder: for submitit's own files.
        parameters: of submitit's executor, such as `timeout_min` or `slurm_partition`.
        cluster: `slurm`, or `local` for processes on this machine.

    Raises:
        UserError: submitit is not installed, there is no such cluster here, or it refused the jobs.
        KeyboardInterrupt: a signal ended it, once all jobs are cancelled.
    """
    waiting = {job.identity: job for job in jobs if not job.finished}
    for job in jobs:
        if job.identity not in waiting:
            report(job, "kept")
    if not waiting:
        return []
    executor = _executor(folder, cluster, parameters)
    stopping = threading.Event()
    # A handler that only takes note, so that no job is submitted without being known here.
    with stop_signals(lambda *_: stopping.set()):
        tasks = _submit(executor, waiting)
        for job in waiting.values():
            report(job, "running")
        failed = _wait(tasks, waiting, report, stopping)
    if stopping.is_set():
        raise KeyboardInterrupt
    return [job for job in jobs if job.identity in failed]


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


def _wait(
    tasks: dict[str, Any],
    jobs: dict[str, Job],
    report: Callable[[Job, str], None],
    stopping: threading.Event,
) -> set[str]:
    """The names of those that failed; no task is left when this ends."""
    from submitit.core.utils import UncompletedJobError

    pending, failed = dict(tasks), set()
    try:
        while pending and not stopping.wait(1):
            for name in [name for name, task in pending.items() if task.done()]:
                try:
                    failure = pending.pop(name).result()
                except UncompletedJobError as error:
                    failure = _one_line(error)
                keep_failure(jobs[name], failure)
                report(jobs[name], "failed" if failure else "finished")
                if failure:
                    failed.add(name)
    finally:
        for task in pending.values():
            task.cancel(check=False)
    return failed


def run_job(job: Job) -> str | None:
    """One job, where the cluster started it, once nobody else works on its run; as `execute`."""
    wait_until_free(job, threading.Event())
    return execute(job, lambda command: _call(command, job.log))


def _call(command: list[str], log: Path) -> int:
    """Run a command, its output appended to the log; its exit code."""
    with open(log, "ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        return process.wait()
    except BaseException:  # cancelled, or the time is nearly up
        process.terminate()  # it leaves a checkpoint
        process.wait()
        raise
