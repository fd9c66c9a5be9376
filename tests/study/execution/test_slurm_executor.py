"""Jobs through submitit: its local executor stands in for a cluster."""

import os
import signal
import threading
import time

import filelock
import pytest
from helpers.runs import wait_until
from helpers.study_runs import fork_workers, is_worked_on, study_to_stop

from lpa.errors import UserError
from lpa.study.design.grid import expand_grid
from lpa.study.execution.job_runner import create_jobs
from lpa.study.execution.slurm_executor import run_job, submit_jobs
from lpa.train.checkpoint import store
from lpa.train.logging.metrics_file import read_metrics


def job_of(out, data, *, steps=4):
    study = expand_grid("placement", "tiny", vocab_size=300, steps=steps)
    return create_jobs(study, 1, out, data)[0]


@pytest.mark.slow
def test_submitit_runs_jobs_and_keeps_what_is_finished(prepared, tmp_path):
    job, states = job_of(tmp_path, prepared), []
    for _ in range(2):
        failed = submit_jobs(
            [job],
            tmp_path / "submitit",
            {"timeout_min": 10},
            cluster="local",
            on_state=lambda _, state: states.append(state),
        )
        assert failed == []
    assert states == ["running", "finished", "kept"]


def test_a_run_that_diverged_is_not_submitted_again(prepared, tmp_path):
    job, states = job_of(tmp_path, prepared), []
    job.failure.parent.mkdir(exist_ok=True)
    job.failure.write_text("exit code 2: lpa: error: training: step 3: the loss is nan")
    failed = submit_jobs(
        [job],
        tmp_path / "submitit",
        {},
        cluster="local",
        on_state=lambda _, state: states.append(state),
    )
    assert (failed, states) == ([job], ["failed"])
    assert not (tmp_path / "submitit").exists()


@pytest.mark.slow
def test_a_signal_to_the_study_ends_what_was_submitted(prepared, tmp_path, lpa):
    job = job_of(tmp_path, prepared, steps=1_000_000)
    with study_to_stop(lpa, tmp_path, prepared, "submit.py") as process:
        wait_until(lambda: store.resumable_checkpoints(job.run), process, timeout=300)
        assert is_worked_on(job)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) != 0
        deadline = time.monotonic() + 60
        while is_worked_on(job):
            assert time.monotonic() < deadline, "the job continues"
            time.sleep(0.05)


TASK = """
import signal, sys
from pathlib import Path
from lpa.study.design.grid import expand_grid
from lpa.study.execution.job_runner import create_jobs
from lpa.study.execution.slurm_executor import run_job

signal.signal(signal.SIGTERM, lambda *_: None)  # as submitit does in a task
study = expand_grid("placement", "tiny", vocab_size=300, steps=1_000_000)
print(run_job(create_jobs(study, 1, Path(sys.argv[1]), Path(sys.argv[2]))[0]))
"""


@pytest.mark.slow
def test_a_signal_to_the_task_alone_leaves_a_checkpoint(prepared, tmp_path, lpa):
    """As Slurm sends it on scancel, by its plugin for control groups."""
    job = job_of(tmp_path, prepared, steps=1_000_000)
    (tmp_path / "task.py").write_text(TASK)
    process = lpa.start(tmp_path / "task.py", tmp_path, prepared)
    wait_until(lambda: read_metrics(job.run), process, timeout=300)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert "exit code 143: lpa: stopped by SIGTERM at step" in output
    assert not is_worked_on(job)
    [checkpoint] = store.resumable_checkpoints(job.run)
    assert f"at step {store.step_of(checkpoint)}" in output


@pytest.mark.slow
def test_a_job_waits_for_another_process_at_its_run(prepared, tmp_path, lpa, monkeypatch):
    fork_workers(lpa, monkeypatch)
    job = job_of(tmp_path, prepared)
    done = []
    second = threading.Thread(target=lambda: done.append(run_job(job)))
    with filelock.FileLock(job.lock):
        second.start()
        second.join(timeout=1)  # it would start its process at once
        assert second.is_alive()
        assert not job.log.exists()
    second.join(timeout=120)
    assert done == [None]


def fake_cluster(folder, monkeypatch):
    """A machine on which sbatch refuses every job."""
    for name in ("srun", "sbatch"):
        command = folder / name
        command.write_text(
            "#!/bin/sh\necho sbatch: error: >&2\necho invalid partition >&2\nexit 1\n"
        )
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (
            {"timeout_min": 5},
            "--executor slurm: the submission failed: sbatch: error: invalid partition",
        ),
        ({"timeout_min": "1h"}, '--slurm: Parameter "timeout_min" expected type .*1h'),
        (
            {"timeout_min": 5, "slurm_partitoin": "gpu"},
            "--slurm: .*partitoin.*Valid arguments: .*partition",
        ),
    ],
)
def test_what_the_cluster_refuses_is_one_line(
    parameters, said, prepared, tmp_path, monkeypatch, capfd
):
    fake_cluster(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=said) as refused:
        submit_jobs([job_of(tmp_path, prepared)], tmp_path / "submitit", parameters)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--slurm", "timeout_min=5"], "--slurm: got timeout_min=5 without --executor slurm"),
        (["--executor", "slurm"], "--executor slurm: got no time limit of a run; expected --slurm"),
        (["--executor", "slurm", "--slurm", "gpu"], "--slurm: got gpu; expected KEY=VALUE"),
        (
            ["--executor", "slurm", "--slurm", "timeout_min=5", "--slurm", "gpus_per_node=1"],
            "--executor slurm: found no srun here",
        ),
    ],
)
def test_mistakes_on_the_command_line(lpa, prepared, tmp_path, arguments, said):
    study = ["study", "placement", "--scale", "tiny", "--data", prepared, "--out", tmp_path]
    finished = lpa(*study, *arguments)
    assert finished.code == 2
    assert finished.stderr.startswith(f"lpa: error: {said}")
    assert finished.stderr.count("\n") == 1
