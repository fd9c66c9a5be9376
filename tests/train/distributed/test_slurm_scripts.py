"""The job scripts for Slurm, which is not here: shellcheck reads them, torchrun runs their commands."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import free_port

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = sorted((ROOT / "scripts" / "slurm").glob("*.sbatch"))
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def test_there_are_scripts_for_one_node_and_several():
    assert [script.stem for script in SCRIPTS] == ["one-node", "several-nodes"]
    for script in SCRIPTS:
        text = script.read_text()
        assert text in (ROOT / "docs" / "how-to" / "slurm.md").read_text()
        lines = text.splitlines()
        directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
        commands = [n for n, line in enumerate(lines) if line and not line.startswith("#")]
        assert max(directives) < min(commands)  # Slurm reads none after the first command


@pytest.mark.skipif(SHELLCHECK is None, reason="no shellcheck on this machine")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_shellcheck_finds_nothing(script):
    done = subprocess.run([SHELLCHECK, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def cluster(tmp_path):
    """The programs of Slurm as one node has them, and what it tells a job."""
    programs = tmp_path / "bin"
    programs.mkdir()
    torchrun = f'exec {sys.executable} {ROOT / "tests/commands/forked_torchrun.py"} "$@"'
    for name, text in (
        ("srun", 'exec "$@"'),
        ("scontrol", "echo localhost"),
        ("torchrun", torchrun),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
        "LPA_PORT": str(free_port()),
    }


@pytest.mark.slow
def test_a_job_trains_and_a_second_start_resumes(cluster, prepared, tiny, tmp_path):
    """The first start is that of one node, the second that of several, as when a job moves."""
    one, several = SCRIPTS
    words = [tmp_path / "run", "--data.path", prepared, *tiny, "--train.steps", 4]
    words = list(map(str, words))
    first = subprocess.run(
        ["bash", one, *words, "--train.stop_at", "2"], env=cluster, capture_output=True, text=True
    )
    assert first.returncode == 0, first.stderr
    assert "stopped at step 2" in first.stdout
    second = subprocess.run(["bash", several, *words], env=cluster, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "4 steps" in second.stdout
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
