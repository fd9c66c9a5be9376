"""Tuning by variant: the same trials for all, with seeds that no report uses."""

import itertools
import json
import math
import os
import signal

import pytest
import yaml
from helpers.runs import wait_until
from helpers.study_runs import finish_run

from lpa.errors import UserError
from lpa.study.design.grid import expand_grid
from lpa.study.execution.job_runner import record_failure
from lpa.study.rates.rate_tuning import (
    MAX_RATE,
    MIN_RATE,
    extend_rates,
    first_rates,
    tune_learning_rates,
)
from lpa.study.run_study import run_study

pytestmark = pytest.mark.xdist_group("rivals")

SMALL = ("--scale", "tiny", "--seeds", "1", "--jobs", "2")


@pytest.mark.parametrize(
    ("best", "extended"),
    [
        ([0.002], [0.001, 0.002, 0.004]),
        ([0.001, 0.002], [0.0005, 0.001, 0.002, 0.004]),
        ([0.004], [0.001, 0.002, 0.004, 0.008]),
        ([0.001, 0.004], [0.0005, 0.001, 0.002, 0.004, 0.008]),
        ([], [0.001, 0.002, 0.004]),
        ([0.002, None], [0.0005, 0.001, 0.002, 0.004]),
    ],
)
def test_rates_are_extended_where_a_best_one_is_an_extreme(best, extended):
    assert extend_rates([0.004, 0.001, 0.002], best) == extended


def test_the_extension_ends():
    rates = [MIN_RATE, 0.001, MAX_RATE]
    assert extend_rates(rates, [MIN_RATE, MAX_RATE]) == rates


def test_every_variant_has_the_same_trials_and_seeds_that_no_report_uses():
    study = expand_grid("rivals", "pico", tokens_per_parameter=2)
    tuning = tune_learning_rates(study, first_rates(study))
    assert tuning.first_seed == 100
    assert first_rates(study) == [0.002, 0.004, 0.008]
    by_variant = {v.name: [] for v in study.variants}
    for trial in tuning.variants:
        by_variant[trial.tunes].append(trial.overrides["optim.lr"])
    assert set(map(tuple, by_variant.values())) == {(0.002, 0.004, 0.008)}
    trained = {v.name: v.overrides for v in study.variants}
    for trial in tuning.variants:
        assert {**trial.overrides, "optim.lr": 0} == {**trained[trial.tunes], "optim.lr": 0}


def test_all_variants_train_on_the_tokens_of_the_dense_model():
    for tokens_per_parameter in (2, 6, 20):
        study = expand_grid("rivals", "pico", tokens_per_parameter=tokens_per_parameter)
        dense = study.variants[0]
        (tokens,) = {v.tokens for v in study.variants}
        assert 0 <= tokens - tokens_per_parameter * dense.parameters < 2048
        assert study.base["optim.warmup_steps"] == -(-tokens // 2048 // 100)


def test_rivals_cost_what_they_are_matched_to():
    variants = {v.name: v for v in expand_grid("rivals", "130m").variants}
    smaller, lpa, dense = (variants[name] for name in ("smaller dense", "LPA", "dense"))
    ratio = smaller.train_flops_per_token / lpa.train_flops_per_token
    assert smaller.match == pytest.approx(ratio)
    assert ratio == pytest.approx(1, abs=0.001)
    assert smaller.overrides["model.intermediate_size"] < 2048
    # LPA keeps the keys and a quarter of the values: 0.625; of 12 heads 6 or 12 could be kept.
    assert variants["GQA"].overrides["model.num_key_value_heads"] == 6
    assert variants["GQA"].match == pytest.approx(0.5 / 0.625)
    assert dense.parameters > variants["GQA"].parameters


def test_only_some_variants_keep_what_they_are_compared_with():
    study = expand_grid("rivals", "tiny", only=["LPA", "dense"])
    assert [v.name for v in study.variants] == ["dense", "LPA"]
    with pytest.raises(UserError, match="--variants: got 'LoRA'; expected one of dense, LPA"):
        expand_grid("rivals", "tiny", only=["LoRA"])
    with pytest.raises(UserError, match="--variants: got LPA; expected dense too"):
        expand_grid("rivals", "tiny", only=["LPA"])


@pytest.mark.slow
def test_a_tuning_widens_resumes_and_is_what_the_study_takes(lpa, prepared, tmp_path):
    tuning = ("study", "rivals", "--variants", "dense", "LPA", "--steps", 4, *SMALL)
    out = tmp_path / "tuning"
    finished = lpa(*tuning, "--tune", "--data", prepared, "--out", out, "--json")
    assert finished.code == 0, finished.stderr
    tuned = yaml.safe_load((out / "tuned-rivals-tiny.yaml").read_text())
    assert finished.json["tuned"] == tuned
    index = json.loads((out / "rivals-tuning-tiny.json").read_text())
    assert {run["seed"] for run in index["runs"]} == {100}
    rates = sorted({variant["overrides"]["optim.lr"] for variant in index["variants"]})
    assert len(index["variants"]) == 2 * len(rates)
    assert all(b == 2 * a for a, b in itertools.pairwise(rates))
    # In four steps the highest rate is the best, as far as rates go.
    best = [settings["optim.lr"] for settings in tuned.values()]
    assert len(rates) > 3
    assert max(rates) == MAX_RATE or max(best) < max(rates)

    again = lpa(*tuning, "--tune", "--data", prepared, "--out", out)
    assert again.code == 0, again.stderr
    assert again.stderr.count(": kept") == len(index["runs"])

    options = ("--tuned", out / "tuned-rivals-tiny.yaml", "--data", prepared, "--json")
    grid = lpa(*tuning, *options, "--dry-run")
    assert [v["overrides"]["optim.lr"] for v in grid.json["variants"]] == best


@pytest.mark.slow
def test_a_study_that_was_killed_gives_the_same_table(lpa, prepared, tmp_path):
    study = ("study", "rivals", "--variants", "dense", "CoLA", "SLTrain", *SMALL)
    study = (*study, "--data", str(prepared), "--out")
    whole = lpa(*study, tmp_path / "whole")
    assert whole.code == 0, whole.stderr
    process = lpa.start("-m", "lpa", *study, tmp_path / "killed")
    try:
        wait_until(lambda: list(tmp_path.glob("killed/runs/*/checkpoints/step-*")), process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert len(list(tmp_path.glob("killed/runs/*/test.json"))) < 3
    resumed = lpa(*study, tmp_path / "killed")
    assert resumed.code == 0, resumed.stderr
    tables = [lpa("report", tmp_path / name, "--json").json for name in ("whole", "killed")]
    ours, theirs = (table["studies"][0]["rows"] for table in tables)
    for row, other in zip(ours, theirs, strict=True):
        assert (row["variant"], row["missing"]) == (other["variant"], other["missing"])
        # The last bit of a sum may depend on where the matrix that SLTrain forms lies in memory.
        assert row["perplexities"] == pytest.approx(other["perplexities"], rel=1e-8)
        assert row["validation"] == pytest.approx(other["validation"], rel=1e-8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rank", "--tune"), "--tune: works only with the study rivals; got rank"),
        (("rivals", "--steps", 4, "--tokens-per-parameter", 2), "--steps: works only without"),
        (("rivals", "--tokens-per-parameter", 0), "--tokens-per-parameter: got 0"),
        (("rivals", "--variants", "LoRA"), "--variants: got 'LoRA'"),
        (("rivals", "--tuned", "placements.yaml"), "got variant 'none'; expected dense, LPA"),
        (
            ("rivals", "--tune", "--tuned", "placements.yaml"),
            "--tuned: works neither with the study",
        ),
    ],
)
def test_a_mistake_is_one_line(lpa, tmp_path, arguments, message):
    (tmp_path / "placements.yaml").write_text("none: {optim.lr: 0.1}\n")
    finished = lpa("study", *arguments, "--scale", "tiny", "--dry-run", cwd=tmp_path)
    assert finished.code == 2
    assert finished.stderr.count("\n") == 1
    assert message in finished.stderr


def tune(out, data, monkeypatch, highest):
    """A tuning of dense and LPA, best at 0.004, in which LPA diverges above a rate."""

    def run_all(jobs, parallel, on_state):
        for job in jobs:
            variant, rate = job.variant.split(", lr=")
            if variant == "LPA" and float(rate) > highest:
                record_failure(job, "exit code 2: lpa: error: training: step 3: the loss is nan")
            elif not job.finished:
                finish_run(job.run, 50 + math.log(float(rate) / 0.004) ** 2)
        return [job for job in jobs if job.diverged]

    monkeypatch.setattr("lpa.study.run_study.run_jobs", run_all)
    variants = ["dense", "LPA"]
    return run_study("rivals", out, scale="pico", seeds=1, data=data, variants=variants, tune=True)


def test_a_variant_that_diverges_at_every_rate_gets_lower_ones(prepared, tmp_path, monkeypatch):
    outcome = tune(tmp_path, prepared, monkeypatch, 0.0015)
    assert not outcome.problem
    assert outcome.tuned == {"dense": {"optim.lr": 0.004}, "LPA": {"optim.lr": 0.001}}
    rates = {trial.overrides["optim.lr"] for trial in outcome.study.variants}
    assert rates == {0.0005, 0.001, 0.002, 0.004, 0.008}


def test_a_variant_that_diverges_down_to_the_last_rate_is_named(prepared, tmp_path, monkeypatch):
    outcome = tune(tmp_path, prepared, monkeypatch, 0)
    assert "LPA diverged at every rate down to 0.00025, where the search ends" in outcome.problem
    assert outcome.tuned is None
    rates = {trial.overrides["optim.lr"] for trial in outcome.study.variants}
    assert min(rates) == MIN_RATE
    again = tune(tmp_path, prepared, monkeypatch, 0)
    assert (again.problem, again.study) == (outcome.problem, outcome.study)


@pytest.mark.parametrize("said", ["training: step 3: the loss is nan", "exit code -9"])
def test_a_trial_that_failed_otherwise_than_by_divergence_leaves_nothing_tuned(
    said, prepared, tmp_path, monkeypatch
):
    """It is to be resumed; one that diverged is the worst."""

    def fail(jobs, parallel, on_state):
        for job in jobs:
            record_failure(job, "exit code 2: training: step 3: the loss is nan")
        record_failure(jobs[0], f"exit code 2: {said}")
        return jobs

    monkeypatch.setattr("lpa.study.run_study.run_jobs", fail)
    monkeypatch.setattr("lpa.study.run_study.best_rates", lambda result: {})
    outcome = run_study("rivals", tmp_path, scale="tiny", seeds=1, data=prepared, tune=True)
    assert ("did not diverge" in outcome.problem) == ("exit" in said)
    assert ("has finished all its runs" in outcome.problem) == ("step" in said)
    assert outcome.tuned is None


@pytest.mark.parametrize("scale", ["pico", "femto"])
@pytest.mark.parametrize("length", [2, 6, 20])
def test_relora_has_four_periods(scale, length):
    study = expand_grid("rivals", scale, tokens_per_parameter=length)
    relora = next(v for v in study.variants if v.name == "ReLoRA")
    steps = relora.tokens // 2048
    every = relora.overrides["optim.restart_every"]
    assert len(range(every, steps, every)) == 3
