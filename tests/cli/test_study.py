"""`lpa study` and `lpa report` as a user types them."""

import json
import os
import shutil
from pathlib import Path

import pytest

from lpa.cli.study import _outcome_figures, _slurm_parameters
from lpa.storage.locks import lock_directory
from lpa.study.design.grid import expand_grid
from lpa.study.run_study import StudyOutcome

# In one worker: they share a study.
pytestmark = pytest.mark.xdist_group("study command")

SMALL = ("--scale", "tiny", "--steps", 4, "--seeds", 1, "--jobs", 2)


@pytest.fixture(scope="module")
def study(lpa, prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    finished = lpa("study", "placement", *SMALL, "--data", prepared, "--out", out)
    assert finished.code == 0, finished.stderr
    assert "6 variants x 1 seeds = 6 runs" in finished.stdout
    assert "[6/6]" in finished.stderr
    return out


@pytest.mark.slow
def test_what_is_finished_is_kept_and_another_study_does_not_take_its_place(study, prepared, lpa):
    again = lpa("study", "placement", *SMALL, "--data", prepared, "--out", study)
    assert again.code == 0, again.stderr
    assert again.stderr.count(": kept") == 6
    index = (study / "placement-tiny.json").read_bytes()
    other = lpa("study", "placement", *SMALL, "--steps", 5, "--data", prepared, "--out", study)
    assert other.code == 2
    assert "holds placement at tiny with other steps" in other.stderr
    assert (study / "placement-tiny.json").read_bytes() == index


@pytest.mark.slow
def test_the_report_prints_tables_and_never_replaces_a_directory(study, lpa, tmp_path):
    (found,) = lpa("report", study, "--json").json["studies"]
    assert [row["variant"] for row in found["rows"]][:2] == ["dense", "attention"]
    assert {row["verdict"] for row in found["rows"]} == {None, "undecided (one seed)"}
    refused = lpa("report", study, "--out", tmp_path)
    assert refused.code == 2
    assert f"--out {tmp_path}: is a directory" in refused.stderr


@pytest.mark.slow
def test_a_report_as_json_is_a_page_too_where_one_is_named(study, lpa, tmp_path):
    printed = lpa("report", study, "--json").json
    assert not (study / "report.html").exists()
    finished = lpa("report", study, "--json", "--out", tmp_path / "page.html")
    assert finished.code == 0, finished.stderr
    assert finished.json == printed
    assert "placement at tiny" in (tmp_path / "page.html").read_text()


def test_two_processes_do_not_run_one_study(lpa, prepared, tmp_path):
    command = ("study", "placement", *SMALL, "--data", prepared, "--out", "out")
    with lock_directory(tmp_path / "out", part="placement-tiny"):
        before = sorted(tmp_path.rglob("*"))
        finished = lpa(*command, cwd=tmp_path)
        assert sorted(tmp_path.rglob("*")) == before
    assert finished.code == 2
    assert f"lpa: error: --out out: is in use by process {os.getpid()} on " in finished.stderr


def test_a_dry_run_prints_the_grid_and_writes_nothing(lpa, tmp_path):
    finished = lpa("study", "placement", "--scale", "130m", "--dry-run", cwd=tmp_path)
    assert finished.code == 0, finished.stderr
    assert "6 variants x 3 seeds = 18 runs" in finished.stdout
    assert "GPU-hours" in finished.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scale", "giant"), "--scale: got 'giant'; expected one of tiny, femto, pico"),
        (("--steps", 0), "--steps: got 0; expected a whole number from 1"),
        (("--seeds", 0), "--seeds: got 0; expected a whole number from 1"),
        (("--data", "nowhere"), "nowhere"),
        (("--tuned", "nothing.yaml"), "--tuned nothing.yaml"),
        (("--tuned", "places.yaml"), "got placement 'atention'"),
        (("--tuned", "rates.yaml"), "optim.lr: got 'fast'; expected a number"),
        (
            ("--tuned", "steps.yaml"),
            "--tuned steps.yaml: got train.steps of none; expected model.init",
        ),
        (("--tuned", "keys.yaml"), "--tuned keys.yaml: none: got key 1; expected text"),
        (
            ("--tuned", "part.yaml"),
            "--tuned: got settings of none alone; expected those of attention",
        ),
        (("--out", "places.yaml"), "--out places.yaml: is a file"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(lpa, tmp_path, arguments, message):
    (tmp_path / "places.yaml").write_text("atention: {optim.lr: 0.1}\n")
    (tmp_path / "rates.yaml").write_text("none: {optim.lr: fast}\n")
    (tmp_path / "steps.yaml").write_text("none: {train.steps: 9}\n")
    (tmp_path / "keys.yaml").write_text("none: {1: 2}\n")
    (tmp_path / "part.yaml").write_text("none: {optim.lr: 0.01}\n")
    before = sorted(tmp_path.iterdir())
    finished = lpa("study", "rank", "--out", "out", *arguments, cwd=tmp_path)
    assert finished.code == 2
    assert message in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_data_without_held_out_text_are_refused(lpa, prepared, tmp_path):
    """Scores on the text that a model has learned would be none."""
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest["splits"] = {"train": manifest["splits"]["train"]}
    data = shutil.copytree(prepared, tmp_path / "data")
    (data / "manifest.json").write_text(json.dumps(manifest))
    finished = lpa("study", "rank", "--scale", "tiny", "--data", data, "--out", tmp_path / "out")
    assert finished.code == 2
    assert "has only a train split" in finished.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--slurm", "timeout_min=5"), "--slurm: got timeout_min=5 without --executor slurm"),
        (("--executor", "slurm"), "--executor slurm: got no time limit of a run"),
        (
            ("--executor", "slurm", "--slurm", "timeout_min=5", "--jobs", "2"),
            "--jobs: got 2 with --executor slurm",
        ),
        (
            ("--slurm", "slurm_setup=module load cuda"),
            "--slurm slurm_setup: got 'module load cuda'; expected a list",
        ),
        (("--slurm", "slurm_srun_args=[a"), "--slurm slurm_srun_args: got '[a'; expected a list"),
    ],
)
def test_a_dry_run_refuses_the_executor_that_a_run_refuses(lpa, arguments, message):
    finished = lpa("study", "rank", "--scale", "tiny", "--dry-run", *arguments)
    assert (finished.code, finished.stderr.count("\n")) == (2, 1)
    assert message in finished.stderr


def test_parameters_of_slurm_are_written_as_in_a_recipe():
    given = {
        "timeout_min": ("1440", 1440),
        "mem_gb": ("7.5", 7.5),
        "slurm_use_srun": ("false", False),
        "slurm_time": ("1:30:00", "1:30:00"),
        "slurm_mem": ("8G", "8G"),
        "slurm_account": ("'12'", "12"),
        "slurm_constraint": ("[rack1*2&rack2*4]", "[rack1*2&rack2*4]"),
        "slurm_comment": ("one: two, =three", "one: two, =three"),
        "slurm_setup": ("[module load cuda, export A=1]", ["module load cuda", "export A=1"]),
        "slurm_srun_args": ("[--cpu-bind=none]", ["--cpu-bind=none"]),
        "slurm_additional_parameters": ("{mail-type: BEGIN}", {"mail-type": "BEGIN"}),
    }
    parameters = _slurm_parameters([f"{key}={text}" for key, (text, _) in given.items()])
    assert parameters == {key: value for key, (_, value) in given.items()}
    assert parameters["slurm_use_srun"] is False


def test_json_says_what_a_tuning_could_not_settle():
    outcome = StudyOutcome(
        expand_grid("tuning", "tiny"),
        [],
        tuned={"none": {"optim.lr": 0.002}},
        tuned_file=Path("tuned.yaml"),
        short_axes=[("none", "optim.lr", 0.002)],
    )
    assert _outcome_figures(outcome) == {
        "failed": [],
        "tuned": {"none": {"optim.lr": 0.002}},
        "tuned_file": "tuned.yaml",
        "at_edge": [{"variant": "none", "setting": "optim.lr", "value": 0.002}],
    }
    failed = StudyOutcome(outcome.study, [], tuned_file=Path("tuned.yaml"), problem="two failed")
    assert _outcome_figures(failed)["problem"] == "two failed"
    assert _outcome_figures(StudyOutcome(outcome.study, [])) == {"failed": []}
