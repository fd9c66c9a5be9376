"""What tuning picks, from the files of runs."""

import json
import math
import shutil

import pytest
import yaml

from lpa.errors import UserError
from lpa.study.figures import scaling_fits
from lpa.study.grid import expand
from lpa.study.results import read_study, short_axes, write_tuned
from lpa.study.runner import plan_jobs
from lpa.study.study_report import summarize

pytestmark = pytest.mark.xdist_group("study")


@pytest.fixture
def runs_of(tiny_study, prepared, tmp_path):
    """The index of a study and its run directories by variant and seed, all with a finished run's files."""

    def make(name, seeds=1):
        study = expand(name, "tiny", vocab_size=300)
        jobs = plan_jobs(study, seeds, tmp_path, prepared)
        finished = next(path.parent for path in tiny_study.glob("runs/*/test.json"))
        for job in jobs:
            job.run.mkdir(parents=True)
            for file in ("result.json", "test.json"):
                shutil.copy(finished / file, job.run)
        return tmp_path / f"{name}-tiny.json", {(job.variant, job.seed): job.run for job in jobs}

    return make


@pytest.fixture
def tuning(runs_of):
    index, runs = runs_of("tuning")
    return index, {name: run for (name, _), run in runs.items()}


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
        "none": f"placement=none, lr={rate:g}, init=0.005",
        "attention": f"placement=attention, lr={2 * rate:g}, init=0.02",
    }
    for name in best.values():
        set_perplexity(runs[name], validation=50, test=300)
    result = read_study(index)
    tuned = write_tuned(result, tmp_path / "tuned.yaml")
    assert tuned == yaml.safe_load((tmp_path / "tuned.yaml").read_text())
    assert tuned["none"] == {"optim.lr": rate, "model.initializer_range": 0.005}
    assert tuned["attention"] == {"optim.lr": 2 * rate, "model.initializer_range": 0.02}
    told = {(placement, name): value for placement, name, value in short_axes(result)}
    assert told[("attention", "optim.lr")] == 2 * rate
    assert told[("ffn", "optim.lr")] == rate / 2  # 100 plus its number, so the first
    assert told[("attention", "model.initializer_range")] == 0.02
    assert not any(placement == "none" for placement, _ in told)
    words = " ".join(summarize(result))
    assert f"Best for placement none on the validation split: {best['none']}." in words
    assert f"With placement attention, optim.lr {2 * rate:g} lies at the end" in words


def test_a_placement_that_never_finished_leaves_nothing_tuned(tuning, tmp_path):
    index, runs = tuning
    for name, run in runs.items():
        if "placement=none" in name:
            (run / "test.json").unlink()
    with pytest.raises(UserError, match="no setting of placement none has finished"):
        write_tuned(read_study(index), tmp_path / "tuned.yaml")
    assert not (tmp_path / "tuned.yaml").exists()
    assert "Best so far for placement attention" in " ".join(summarize(read_study(index)))


def test_fits_take_sizes_at_the_same_tokens_and_tokens_at_the_same_size(runs_of):
    index, runs = runs_of("scale", seeds=2)
    study = json.loads(index.read_text())
    variants = {v["name"]: v for v in study["variants"]}
    for (name, seed), run in runs.items():
        parameters, tokens = variants[name]["parameters"], variants[name]["tokens"]
        loss = 4 * (parameters / 1e4) ** -0.1 * (tokens / 1e3) ** -0.2 * (1 + 0.01 * seed)
        set_perplexity(run, validation=1, test=math.exp(loss))
    result = read_study(index)
    for kind, fit in scaling_fits(result, "parameters").items():
        assert (kind, fit.count) in (("dense", 4), ("LPA", 4))  # seeds of a size are one point
        assert fit.exponent == pytest.approx(-0.1)
    for fit in scaling_fits(result, "tokens").values():
        assert fit.count == 3
        assert fit.exponent == pytest.approx(-0.2)
    words = " ".join(summarize(result))
    assert (
        "Loss of LPA falls with training tokens of the largest model to the power -0.2000" in words
    )
