import json
import os
from pathlib import Path

import pytest

from lpa.train.distributed import process_group
from lpa.train.distributed.process_group import NCCL_ENVIRONMENT


@pytest.mark.parametrize("own", [{}, {"TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "60"}])
def test_the_watchdog_is_set_unless_the_environment_says_otherwise(monkeypatch, own):
    for name in NCCL_ENVIRONMENT:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    process_group._set_nccl_environment()
    assert {name: os.environ[name] for name in NCCL_ENVIRONMENT} == NCCL_ENVIRONMENT | own


@pytest.mark.slow
def test_long_work_is_waited_for_and_a_step_is_not(run_ranks, tmp_path):
    """A process that is late by twice the time of a step, in seconds where runs have minutes."""
    timeout, long_timeout = 1.5, 60
    found = run_ranks(4, "waiting.py", timeout, long_timeout, tmp_path / "results.json")
    outcome, seconds = found["long work"]
    assert outcome == "met"
    assert seconds > 1.9 * timeout
    for exchange in ("mesh", "step"):
        outcome, seconds = found[exchange]
        assert outcome == "gave up", exchange
        assert seconds == pytest.approx(timeout, abs=1), exchange


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "raised", "said", "other"),
    [
        ("step", "OutOfMemoryError", "CUDA out of memory", "LostRankError"),
        ("model", "OutOfMemoryError", "CUDA out of memory", "OtherRankFailedError"),
        ("data", "UserError", "that-is-not-here", "OtherRankFailedError"),
        ("tokenizer", "UserError", "tokenizer: has no tokenizer.json", "OtherRankFailedError"),
    ],
)
def test_an_error_of_one_rank_is_its_own_and_ends_all(
    run_ranks, prepared, tmp_path, where, raised, said, other
):
    out = tmp_path / "out.json"
    run_ranks(2, "failing_rank.py", prepared, tmp_path / "run", where, out)
    found, text, seconds = json.loads(Path(f"{out}.1").read_text())
    assert found == raised
    assert said in text
    assert seconds < 30
    found, text, seconds = json.loads(Path(f"{out}.0").read_text())
    assert found == other
    assert seconds < 60
