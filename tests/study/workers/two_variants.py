"""Run dense and LPA of the tiny placement study with two seeds: `two_variants.py OUT DATA`."""

import sys
from pathlib import Path

from lpa.data.manifest import Manifest
from lpa.study.design.grid import expand_grid
from lpa.study.execution.job_runner import create_jobs, run_jobs

if __name__ == "__main__":
    out, data = map(Path, sys.argv[1:])
    study = expand_grid("placement", "tiny", vocab_size=Manifest.load(data).vocab_size)
    del study.variants[2:]
    sys.exit(bool(run_jobs(create_jobs(study, 2, out, data), 2)))
