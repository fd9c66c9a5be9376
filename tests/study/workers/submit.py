"""Submit one run that would take for ever to submitit's local executor: `submit.py OUT DATA`."""

import sys
from pathlib import Path

from lpa.study.design.grid import expand_grid
from lpa.study.execution.job_runner import create_jobs
from lpa.study.execution.slurm_executor import submit_jobs

if __name__ == "__main__":
    out, data = map(Path, sys.argv[1:])
    study = expand_grid("placement", "tiny", vocab_size=300, steps=1_000_000)
    jobs = create_jobs(study, 1, out, data)[:1]
    submit_jobs(jobs, out / "submitit", {"timeout_min": 30}, cluster="local")
