"""What tuning picks, from the files of runs."""

import json
import shutil

import pytest
import yaml

from lpa.study.grid import expand
from lpa.study.results import read_study, short_axes, write_tuned
from lpa.study.runner import plan_jobs
from lpa.study.study_report import summarize

pytestmark = pytest.mark.xdist_group("study")


@pytest.fixture
def tuning(tiny_study, prepared, tmp_path):
    """The index of a tuning study and the run directory of each variant, all with a finished run's files."""
    study = expand("tuning", "tiny", vocab_size=300)
    jobs = plan_jobs(study, 1, tmp_path, prepared)
    finished = next(path.parent for path in tiny_study.glob("runs/*/test.json"))
    for job in jobs:
        shutil.copytree(finished, job.run)
    return tmp_path / "tuning-tiny.json", {job.variant: job.run for job in jobs}


def set_perplexity(run, *, validation, test):
    result = json.loads((run / "result.json").read_text())
    result["validation"]["perplexity"] = validation
    (run / "result.json").write_text(json.dumps(result))
    measured = json.loads((run / "test.json").read_text())
    (run / "test.json").write_text(json.dumps({**measured, "perplexity": test}))


def test_validation_decides_and_a_value_at_the_end_of_an_axis_is_told(tuning, tmp_path):
    index, runs = tuning
    for number, run in enumerate(runs.values()):
        set_perplexity(run, validation=100 + number, test=200 - number)
    rate = expand("tuning", "tiny").base["optim.lr"]
    best = {
        "none": f"placement=none, lr={rate:g}, init=0.04",
        "attention": f"placement=attention, lr={2 * rate:g}, init=0.02",
    }
    for name in best.values():
        set_perplexity(runs[name], validation=50, test=300)
    result = read_study(index)
    tuned = write_tuned(result, tmp_path / "tuned.yaml")
    assert tuned == yaml.safe_load((tmp_path / "tuned.yaml").read_text())
    assert tuned["none"] == {"optim.lr": rate, "model.initializer_range": 0.04}
    assert tuned["attention"] == {"optim.lr": 2 * rate, "model.initializer_range": 0.02}
    told = {(placement, name): value for placement, name, value in short_axes(result)}
    assert told[("attention", "optim.lr")] == 2 * rate
    assert told[("ffn", "optim.lr")] == rate / 2  # 100 plus its number, so the first
    assert not any(placement == "none" or "init" in name for placement, name in told)
    words = " ".join(summarize(result))
    assert f"Best for placement none on the validation split: {best['none']}." in words
    assert f"With placement attention, optim.lr {2 * rate:g} lies at the end" in words
