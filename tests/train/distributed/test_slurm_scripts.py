"""The job scripts for Slurm, which is not here: shellcheck reads them, torchrun runs their commands."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Finished
from commands.program_shell import Shell
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
def cluster(lpa, tmp_path):
    """A shell with the programs of Slurm as one node has them, and with what it tells a job."""

    def answer(program: str, arguments: list[str], cwd: Path) -> Finished:
        if program == "srun":
            return answer(arguments[0], arguments[1:], cwd)
        if program == "scontrol":
            return Finished(0, "localhost\n", "")
        process = lpa.start("-m", "torch.distributed.run", *arguments, cwd=cwd, environment=job)
        output, _ = process.communicate()
        return Finished(process.returncode, output, "")

    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
        "LPA_PORT": str(free_port()),
    }
    shell = Shell(tmp_path, ("srun", "scontrol", "torchrun"), answer, job)
    yield shell
    shell.close()


@pytest.mark.slow
def test_a_job_trains_and_a_second_start_resumes(cluster, prepared, tiny, tmp_path):
    """The first start is that of one node, the second that of several, as when a job moves."""
    one, several = SCRIPTS
    words = shlex.join(map(str, ["run", "--data.path", prepared, *tiny, "--train.steps", 4]))
    first = cluster.run(f"bash {one} {words} --train.stop_at 2", tmp_path)
    assert first.code == 0, first.stdout
    assert "stopped at step 2" in first.stdout
    second = cluster.run(f"bash {several} {words}", tmp_path)
    assert second.code == 0, second.stdout
    assert "4 steps" in second.stdout
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize("left", [[], ["checkpoints/.step-00000001.partial"]])
def test_a_job_that_ended_before_its_first_checkpoint_begins_again(
    cluster, prepared, tiny, tmp_path, lpa, left
):
    words = ["--data.path", prepared, *tiny, "--train.steps", 2]
    assert lpa("train", *words, "--out", "run", cwd=tmp_path).code == 0
    for name in ("final", "checkpoints"):
        shutil.rmtree(tmp_path / "run" / name, ignore_errors=True)
    (tmp_path / "run" / "result.json").unlink()
    for name in left:
        (tmp_path / "run" / name).mkdir(parents=True)
    done = cluster.run(f"bash {SCRIPTS[0]} {shlex.join(map(str, ['run', *words]))}", tmp_path)
    assert done.code == 0, done.stdout
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize("kept", ["result.json", "best/config.json", "checkpoints/step-00000001/x"])
def test_a_job_never_begins_again_over_what_a_run_left(cluster, prepared, tiny, tmp_path, kept):
    run = tmp_path / "run"
    (run / kept).parent.mkdir(parents=True)
    (run / kept).write_text("kept")
    (run / "config.yaml").write_text("train: {}\n")
    words = shlex.join(map(str, ["run", "--data.path", prepared, *tiny, "--train.steps", 2]))
    done = cluster.run(f"bash {SCRIPTS[0]} {words}", tmp_path)
    assert done.code != 0
    assert "already holds a run" in done.stdout
    assert (run / kept).read_text() == "kept"
