"""Jobs of a study on a cluster, by submitit; its local executor runs them here for a trial."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lpa.errors import UserError
from lpa.study.runner import Job, execute


def submit_jobs(
    jobs: list[Job],
    folder: Path,
    *,
    cluster: str = "slurm",
    report: Callable[[Job, str], None] = lambda job, state: None,
    **parameters: Any,
) -> list[Job]:
    """Submit all that are not finished, wait for them, and return those that failed.

    A job is one task on one node; the same resume as of local runs applies when the study is started
    again. Two studies on a cluster must not share an --out at the same time, as no lock spans nodes.

    Args:
        folder: for submitit's own files.
        cluster: `slurm`, or `local` for processes on this machine.
        parameters: of the executor, such as `timeout_min` or `slurm_partition`.

    Raises:
        UserError: submitit is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--executor slurm: needs submitit: pip install 'lpa[slurm]'") from error
    waiting = {job.identity: job for job in jobs if not job.finished}
    for job in jobs:
        if job.identity not in waiting:
            report(job, "kept")
    if not waiting:
        return []
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    executor.update_parameters(name="lpa-study", **parameters)
    with executor.batch():
        submitted = {name: executor.submit(run_job, job) for name, job in waiting.items()}
    for job in waiting.values():
        report(job, "running")
    failed = set()
    for name, task in submitted.items():
        try:
            done = task.result()
        except submitit.core.utils.UncompletedJobError:
            done = False
        report(waiting[name], "finished" if done else "failed")
        if not done:
            failed.add(name)
    return [job for job in jobs if job.identity in failed]


def run_job(job: Job) -> bool:
    """One job, where the cluster started it."""
    job.log.parent.mkdir(parents=True, exist_ok=True)

    def call(command: list[str]) -> int:
        with open(job.log, "ab") as output:
            return subprocess.run(command, stdout=output, stderr=output).returncode

    return execute(job, call)
