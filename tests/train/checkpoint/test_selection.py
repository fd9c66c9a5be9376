"""All processes of a run resume from the same checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.small_runs import small_config

from lpa.train.checkpoint import store
from lpa.train.run import train


@pytest.fixture(scope="module")
def stopped(prepared, tmp_path_factory) -> Path:
    """A run of six steps that stopped after four."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    checkpoint = {"every": 2, "keep_latest_k": 2}
    train(small_config(prepared, steps=6, stop_at=4, loggers=[], checkpoint=checkpoint), run)
    return run


@pytest.fixture
def resume(run_ranks, prepared, tmp_path):
    """Resume in two processes; what each did."""

    def resume(run: Path, view: str) -> list[dict]:
        out = tmp_path / "out.json"
        run_ranks(2, "resume_views.py", prepared, run, view, out)
        return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in (0, 1)]

    return resume


def test_a_process_that_sees_the_newest_checkpoint_late_loads_it_too(stopped, resume, tmp_path):
    run = shutil.copytree(stopped, tmp_path / "run")
    assert resume(run, "late") == 2 * [{"loaded": [4], "ending": "stopped", "warnings": []}]


def test_all_processes_pass_over_a_damaged_checkpoint_and_one_says_so(stopped, resume, tmp_path):
    run = shutil.copytree(stopped, tmp_path / "run")
    (shard,) = store.list_checkpoints(run)[-1].glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    first, second = resume(run, "whole")
    assert first["loaded"] == second["loaded"] == [2]
    assert [str(shard) in warning for warning in first["warnings"]] == [True]
    assert second["warnings"] == []


def test_where_no_checkpoint_is_intact_one_process_says_so_and_all_end(stopped, resume, tmp_path):
    run = shutil.copytree(stopped, tmp_path / "run")
    for path in store.list_checkpoints(run):
        next(path.glob("*.safetensors")).unlink()
    first, second = resume(run, "whole")
    assert "step-00000002" in first["ending"]
    assert "is missing; the checkpoint is damaged" in first["ending"]
    assert second == {"loaded": [], "ending": "reported by another", "warnings": []}


def test_a_process_that_sees_the_result_late_ends_with_the_others(
    stopped, resume, prepared, tmp_path
):
    run = shutil.copytree(stopped, tmp_path / "run")
    config = small_config(prepared, steps=6, loggers=[], checkpoint={"every": 2})
    train(config, run, resume=True)
    assert resume(run, "late") == 2 * [{"loaded": [], "ending": "finished", "warnings": []}]
