"""Studies whose runs have the files of finished ones."""

import shutil

import pytest

from lpa.study.design.grid import expand_grid
from lpa.study.execution.job_runner import create_jobs


@pytest.fixture
def runs_of(tiny_study, prepared, tmp_path):
    """The index of a study and its run directories by variant and seed, all with a finished run's files."""

    def make(name, seeds=1):
        study = expand_grid(name, "tiny", vocab_size=300)
        jobs = create_jobs(study, seeds, tmp_path, prepared)
        finished = next(path.parent for path in tiny_study.glob("runs/*/test.json"))
        for job in jobs:
            job.run.mkdir(parents=True)
            for file in ("result.json", "test.json"):
                shutil.copy(finished / file, job.run)
        return tmp_path / f"{name}-tiny.json", {(job.variant, job.seed): job.run for job in jobs}

    return make
