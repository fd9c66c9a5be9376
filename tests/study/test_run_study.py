"""`lpa.run_study`, of arguments that the command line does not let through and of runs that fail."""

import math
import re

import pytest
from helpers.study_runs import finish_run

import lpa
from lpa.storage.run_directory import RESULT_FILE
from lpa.study.execution.job_runner import record_failure
from lpa.study.run_study import plan_study


@pytest.mark.parametrize("name", ["seeds", "jobs"])
def test_fewer_than_one_is_refused_before_anything_is_written(name, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(lpa.UserError, match=rf"--{name}: got 0; expected at least 1"):
        lpa.run_study("placement", out, scale="tiny", **{name: 0})
    assert not out.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, 0, 1e300, 2e6, 1e-9])
def test_a_length_that_is_none_is_refused_as_on_the_command_line(value):
    expected = "enough for one token" if value == 1e-9 else "a number above 0, at most 1,000,000"
    said = f"--tokens-per-parameter: got {value}; expected {expected}"
    with pytest.raises(lpa.UserError, match=re.escape(said)):
        plan_study("rivals", scale="pico", tokens_per_parameter=value)


def tune(out, data, monkeypatch, spoil):
    """A tuning of which `spoil` makes something of the first job."""

    def run_all(jobs, parallel, on_state):
        for job in jobs[1:]:
            finish_run(job.run, 50.0)
        spoil(jobs[0])
        return jobs[:1] if jobs[0].failure.exists() else []

    monkeypatch.setattr("lpa.study.run_study.run_jobs", run_all)
    return lpa.run_study("tuning", out, scale="tiny", seeds=1, data=data)


def damage(job):
    finish_run(job.run, 40.0)
    (job.run / RESULT_FILE).write_text("{")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda job: record_failure(job, "exit code -9: no word"), "exit code -9: no word"),
        (damage, "remove the file and start the study again"),
    ],
)
def test_a_tuning_that_lost_a_run_chooses_nothing(spoil, said, prepared, tmp_path, monkeypatch):
    """It may have been the best."""
    outcome = tune(tmp_path, prepared, monkeypatch, spoil)
    lost = outcome.study.variants[0].name
    assert f"trials are not finished and did not diverge: {lost} with seed 0 (" in outcome.problem
    assert said in outcome.problem
    assert outcome.problem.endswith("; start the study again to resume them")
    assert outcome.tuned is None
    assert not (tmp_path / "tuned-tiny.yaml").exists()


def test_a_tuning_of_which_a_run_diverged_chooses_from_the_others(prepared, tmp_path, monkeypatch):
    outcome = tune(
        tmp_path,
        prepared,
        monkeypatch,
        lambda job: record_failure(job, "exit code 2: lpa: error: training: step 3: nan"),
    )
    assert outcome.problem is None
    assert (tmp_path / "tuned-tiny.yaml").exists()
