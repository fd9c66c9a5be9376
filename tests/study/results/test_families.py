"""Rivals of one length in several directories."""

import pytest
from helpers.study_runs import finish_run

from lpa.errors import UserError
from lpa.storage.run_directory import TEST_FILE
from lpa.study.design.grid import expand_grid
from lpa.study.execution.job_runner import create_jobs
from lpa.study.report.rivals_section import compare_rivals
from lpa.study.report.study_report import compare_studies
from lpa.study.results.study_results import find_studies

PERPLEXITIES = {"dense": (50.0, 50.4, 49.7), "LPA": (48.5, 49.3, 48.0), "CoLA": (40.0, 40.3, 39.8)}


@pytest.fixture
def rivals(prepared):
    """Writes a study of rivals, some seeds of which are finished, and gives its jobs by variant and seed."""

    def make(out, *names, steps=4, finished=(0, 1, 2), **settings):
        only = ["dense", *names]
        study = expand_grid("rivals", "tiny", vocab_size=300, steps=steps, only=only)
        study.base |= settings
        jobs = {(job.variant, job.seed): job for job in create_jobs(study, 3, out, prepared)}
        for (variant, seed), job in jobs.items():
            if seed in finished:
                finish_run(job.run, PERPLEXITIES[variant][seed])
        return jobs

    return make


def test_the_arms_of_several_directories_are_one_family(rivals, tmp_path):
    rivals(tmp_path / "one", "LPA")
    rivals(tmp_path / "two", "CoLA")
    directories = [tmp_path / "one", tmp_path / "two"]
    [study] = find_studies(directories)
    assert [row.variant for row in study.rows] == ["dense", "LPA", "CoLA"]
    assert study.directories == directories
    [both] = compare_rivals([study])
    apart = {
        found.variant: found
        for directory in directories
        for comparison in compare_rivals(find_studies([directory]))
        for found in comparison.judgments
    }
    judged = [found for found in both.judgments if found.variant != "dense"]
    for found in judged:
        assert found.equal_tokens.ratio == pytest.approx(apart[found.variant].equal_tokens.ratio)
    worst = max(judged, key=lambda found: found.equal_tokens.p_adjusted)
    best = min(judged, key=lambda found: found.equal_tokens.p_adjusted)
    assert best.equal_tokens.p_adjusted == 2 * apart[best.variant].equal_tokens.p_adjusted
    assert worst.equal_tokens.p_adjusted == apart[worst.variant].equal_tokens.p_adjusted


def test_a_run_of_both_directories_is_read_where_it_is_finished(rivals, tmp_path):
    directories = [tmp_path / "one", tmp_path / "two"]
    jobs = rivals(directories[0], "LPA", finished=(0, 2))
    rivals(directories[1], "LPA", finished=(0, 1))
    for seed in (1, 2):
        failure = jobs["LPA", seed].failure
        failure.parent.mkdir(exist_ok=True)
        failure.write_text("exit code -9: no word")
    [study] = find_studies(directories)
    for row in study.rows:
        assert tuple(row.perplexities[seed] for seed in range(3)) == PERPLEXITIES[row.variant]
        assert not row.missing
        assert not row.failed
    [study] = find_studies([directories[1], directories[0]])
    assert not any(row.missing for row in study.rows)


def test_a_failure_is_shown_from_the_directory_that_has_it(rivals, tmp_path):
    rivals(tmp_path / "one", "LPA", finished=(0, 1))
    jobs = rivals(tmp_path / "two", "LPA", finished=(0,))
    failure = jobs["LPA", 2].failure
    failure.parent.mkdir()
    failure.write_text("exit code -9: no word")
    [study] = find_studies([tmp_path / "one", tmp_path / "two"])
    assert study.rows[1].failed == {2: "exit code -9: no word"}


@pytest.mark.parametrize("diverged", ["CoLA", "dense"])
def test_a_rival_that_diverged_has_no_verdict(rivals, tmp_path, diverged):
    jobs = rivals(tmp_path, "CoLA")
    assert find_studies([tmp_path])[0].rows[1].verdict == "better"
    job = jobs[diverged, 1]
    (job.run / TEST_FILE).unlink()
    job.failure.parent.mkdir()
    job.failure.write_text("exit code 2: lpa: error: training: step 3: the loss is nan")
    assert find_studies([tmp_path])[0].rows[1].verdict == "undecided (a run diverged)"


@pytest.mark.parametrize("settings", [{"optim.lr": 0.5}, {"model.rank": 4}, {"train.steps": 5}])
def test_studies_that_differ_are_no_family(rivals, tmp_path, settings):
    """Also where the runs of dense, which has no rank, are the same."""
    rivals(tmp_path / "one", "LPA")
    rivals(tmp_path / "two", "CoLA", **settings)
    assert len(find_studies([tmp_path / "one", tmp_path / "two"])) == 2


def test_a_report_with_another_baseline_keeps_the_curve(rivals, tmp_path):
    directories = [tmp_path / str(steps) for steps in (4, 8, 16)]
    for directory, names in zip(directories, (["LPA", "CoLA"], ["LPA"], ["CoLA"]), strict=True):
        rivals(directory, *names, steps=int(directory.name))
    studies, [comparison] = compare_studies(directories, "LPA")
    assert [study.directories for study in studies] == [[path] for path in directories[:2]]
    assert {row.baseline for study in studies for row in study.rows} == {"LPA"}
    assert [row.variant for row in comparison.rows].count("dense") == 3
    with pytest.raises(UserError, match="--baseline: got 'nowhere'; expected a variant, such as"):
        compare_studies(directories, "nowhere")
