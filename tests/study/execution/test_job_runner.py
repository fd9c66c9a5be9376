"""Studies that run to the end, are stopped and go on, or fail: real processes."""

import errno
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import yaml
from helpers.study_runs import (
    fork_workers,
    freeze_when,
    start_study,
    study_to_stop,
    terminate_frozen,
)

from lpa.errors import LPAWarning, UserError
from lpa.storage.run_directory import CONFIG_FILE, RESULT_FILE, TEST_FILE
from lpa.study.design.grid import expand_grid
from lpa.study.design.study_index import index_path
from lpa.study.execution.job_runner import create_jobs, run_jobs, wait_until_free
from lpa.study.execution.run_worker import train_and_score
from lpa.study.rates.rate_tuning import tune_learning_rates
from lpa.study.results.study_results import find_studies
from lpa.train.checkpoint import store
from lpa.train.config import RunConfig
from lpa.train.logging.metrics_file import read_metrics
from lpa.train.run import train

# In one worker: they share a study.
pytestmark = [pytest.mark.xdist_group("study"), pytest.mark.slow]


@pytest.fixture(autouse=True)
def _quick_workers(lpa, monkeypatch):
    fork_workers(lpa, monkeypatch)


def table(out):
    """All that the study found, without what measures the machine."""
    (study,) = find_studies([out])
    found = study.table()
    for row in found["rows"]:
        assert row.pop("tokens_per_second")["mean"] > 0
        assert min(row.pop("durations").values()) > 0
        assert row.pop("seconds") > 0
        assert row.pop("memory_bytes") > 0
        del row["time"]  # which a baseline has not
    return found


def jobs_of(out, data, *, variants=1, steps=4):
    study = expand_grid("placement", "tiny", vocab_size=300, steps=steps)
    del study.variants[variants:]
    return create_jobs(study, 1, out, data)


def started(out):
    """Runs that have a checkpoint and no result, and its step."""
    return {
        run: store.step_of(kept[0])
        for run in out.glob("runs/*")
        if not (run / RESULT_FILE).exists() and (kept := store.resumable_checkpoints(run))
    }


def halfway(out):
    """Those that have measured something to keep and, of 12 steps, several to come: the run ends a step
    before it heeds a signal."""
    return [
        run for run, step in started(out).items() if step and read_metrics(run)[-1]["step"] <= 8
    ]


def scores(out):
    """Of the runs that are finished."""
    return list(out.glob(f"runs/*/{TEST_FILE}"))


def measured(run, step):
    """The records up to a step: with what they measure, no two processes write the same."""
    return [record for record in read_metrics(run) if record["step"] <= step]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_study_resumes(number, tiny_study, prepared, tmp_path, lpa):
    with study_to_stop(lpa, tmp_path, prepared) as process:
        freeze_when(lambda: halfway(tmp_path) and scores(tmp_path), process)
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            terminate_frozen(process)
        assert process.wait(timeout=60) != 0
    finished = {path: path.stat().st_mtime_ns for path in scores(tmp_path)}
    # One that the signal met in its first step has a checkpoint and may have measured nothing.
    before = {run: measured(run, step) for run, step in started(tmp_path).items()}
    assert finished
    assert any(before.values())
    assert start_study(lpa, tmp_path, prepared).wait(timeout=300) == 0
    assert table(tmp_path) == table(tiny_study)
    assert finished == {path: path.stat().st_mtime_ns for path in finished}, "a run was repeated"
    for run, records in before.items():
        assert read_metrics(run)[: len(records)] == records, "a run began anew"


def test_a_run_that_outlives_its_study_is_waited_for(prepared, tmp_path, lpa):
    states, ticks = [], []
    with study_to_stop(lpa, tmp_path, prepared) as process:

        def tick():
            ticks.append(list(states))
            if len(ticks) == 5:  # a second
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGTERM)

        freeze_when(lambda: started(tmp_path), process)
        process.kill()
        process.wait()
        run, step = next(iter(started(tmp_path).items()))
        records = measured(run, step)
        [job] = [
            job for job in jobs_of(tmp_path, prepared, variants=2, steps=None) if job.run == run
        ]
        assert run_jobs([job], 1, lambda _, state: states.append(state), tick) == []
    assert ticks[4] == [], "two processes would write to the run"
    assert states == ["running", "finished"]
    assert read_metrics(run)[: len(records)] == records, "the run began anew"


WORK_WITHOUT_LOCKS = """
import errno
from unittest import mock
from lpa.study.execution import run_worker

with mock.patch("fcntl.flock", side_effect=OSError(errno.ENOSYS, "no locks")):
    run_worker.main()
"""


def test_without_locks_of_the_file_system_a_dead_process_is_not_waited_for(prepared, tmp_path, lpa):
    [job] = jobs_of(tmp_path, prepared)
    job.lock.parent.mkdir()
    job.lock.write_text("4194303\ndead-node\n")  # as a program without such locks leaves it
    no_locks = mock.patch("fcntl.flock", side_effect=OSError(errno.ENOSYS, "no locks"))
    with no_locks, pytest.warns(LPAWarning, match="the file system has no locks"):
        wait_until_free(job, threading.Event())
    (tmp_path / "work.py").write_text(WORK_WITHOUT_LOCKS)
    finished = lpa(job.recipe, job.run, job.lock, script=tmp_path / "work.py")
    assert finished.code == 0, finished.stderr
    assert f"LPAWarning: {job.lock.parent}: the file system has no locks" in finished.stderr
    assert job.finished


def test_the_table_pairs_seeds_and_is_complete(tiny_study):
    dense, attention = table(tiny_study)["rows"]
    assert dense["difference"] is None
    assert attention["difference"]["count"] == 2
    assert dense["missing"] == attention["missing"] == []
    assert attention["parameters"] < dense["parameters"]
    run = json.loads((tiny_study / "placement-tiny.json").read_text())["runs"][0]["run"]
    test = json.loads((tiny_study / "runs" / run / "test.json").read_text())
    assert dense["perplexities"][0] == test["perplexity"]


def test_a_failure_is_recorded_and_reported_and_the_other_runs_continue(prepared, tmp_path):
    bad, good = jobs_of(tmp_path, prepared, variants=2)
    bad.recipe.write_text(bad.recipe.read_text().replace("steps: 4", "steps: 0"))
    states = []
    failed = run_jobs([bad, good], 1, lambda job, state: states.append((job.variant, state)))
    assert failed == [bad]
    assert ("dense", "failed") in states
    assert ("attention", "finished") in states
    assert "train.steps" in bad.log.read_text()
    assert f"exit code 2: lpa: error: {bad.recipe}: train.steps: got 0" in bad.failure.read_text()
    bad.recipe.write_text(bad.recipe.read_text().replace("steps: 0", "steps: 4"))
    assert run_jobs([bad], 1) == []
    assert not bad.failure.exists()


def test_jobs_run_from_a_thread_beside_the_main_one(prepared, tmp_path):
    (job,) = jobs_of(tmp_path, prepared)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(run_jobs, [job], 1).result() == []
    assert job.finished


def test_a_run_that_diverged_is_not_started_again(prepared, tmp_path):
    """docs/protocol.md: it counts as diverged, until its record is removed."""
    study = expand_grid("placement", "tiny", vocab_size=300, steps=4)
    study.base["optim.lr"] = 1e6
    del study.variants[1:]
    [job] = create_jobs(study, 1, tmp_path, prepared)

    def states():
        found = []
        assert run_jobs([job], 1, lambda _, state: found.append(state)) == [job]
        return found

    assert states() == ["running", "failed"]
    assert job.diverged, job.log.read_text()
    log = job.log.read_text()
    assert states() == ["failed"]
    assert job.log.read_text() == log
    job.failure.unlink()
    assert states() == ["running", "failed"]


def test_a_run_killed_before_it_had_a_configuration_begins_again(prepared, tmp_path):
    study = expand_grid("placement", "tiny", vocab_size=300, steps=4)
    [job] = jobs_of(tmp_path, prepared)
    job.run.mkdir(parents=True)
    (job.run / f".{CONFIG_FILE}.123.tmp").write_text(
        "data:\n"
    )  # what `write_text_atomic` leaves then
    train_and_score(study.config(study.variants[0], 0, prepared), job.run)
    assert job.finished
    assert not list(job.run.glob(".*.tmp"))


@pytest.mark.parametrize(
    "kept",
    [
        "checkpoints/step-00000002/weights.safetensors",
        "checkpoints/step-00000002.damaged-1/manifest.json",
        "best/model.safetensors",
        "final/model.safetensors",
        "test.json",
        "scores/minimal-pairs.json",
    ],
)
def test_a_run_never_begins_again_over_what_it_left(prepared, tmp_path, kept):
    [job] = jobs_of(tmp_path, prepared)
    path = job.run / kept
    path.parent.mkdir(parents=True)
    path.write_text("kept")
    (job.run / CONFIG_FILE).write_text(job.recipe.read_text())
    with pytest.raises(UserError, match=rf"holds {kept[:4]}.*, but nothing .*; move it") as error:
        train_and_score(RunConfig.load(job.recipe), job.run)
    assert "\n" not in str(error.value)
    assert path.read_text() == "kept"


def test_a_run_that_lost_its_configuration_is_kept(prepared, tmp_path):
    [job] = jobs_of(tmp_path, prepared)
    config = RunConfig.load(job.recipe)
    config.train.stop_at, config.checkpoint.every = 2, 2
    train(config, job.run)
    (job.run / CONFIG_FILE).unlink()
    assert run_jobs([job], 1) == [job]
    assert job.failure.read_text().startswith(f"exit code 2: lpa: error: {job.run}: holds check")
    assert started(tmp_path) == {job.run: 2}


def test_another_study_resumes_a_run_in_the_words_it_started_with(prepared, tmp_path):
    [job] = jobs_of(tmp_path, prepared)
    config = RunConfig.from_dict(yaml.safe_load(job.recipe.read_text()))
    config.train.stop_at, config.checkpoint.every = 2, 2
    train(config, job.run)
    assert started(tmp_path) == {job.run: 2}
    records = read_metrics(job.run)
    tuning = expand_grid("tuning", "tiny", vocab_size=300, steps=4)
    same = next(j for j in create_jobs(tuning, 1, tmp_path, prepared) if j.run == job.run)
    assert run_jobs([same], 1) == [], same.log.read_text()
    assert read_metrics(job.run)[: len(records)] == records, "the run began anew"


def test_seeds_come_one_after_the_other_in_turns(prepared, tmp_path):
    study = expand_grid("placement", "tiny", vocab_size=300)
    del study.variants[2:]
    order = [(job.variant, job.seed) for job in create_jobs(study, 3, tmp_path, prepared)]
    there, back = ["dense", "attention"], ["attention", "dense"]
    assert order == [
        (name, seed) for seed, names in enumerate((there, back, there)) for name in names
    ]


def test_variants_may_be_added_to_a_study(prepared, tmp_path):
    def jobs(variants, seeds):
        study = expand_grid("placement", "tiny", vocab_size=300, steps=4)
        study.variants = study.variants[:variants]
        return create_jobs(study, seeds, tmp_path, prepared)

    two = jobs(2, 2)
    four = jobs(4, 2)
    assert {job.run for job in two} < {job.run for job in four}
    [study] = find_studies([tmp_path])
    assert len(study.index.variants) == 4
    for variants, seeds in ((6, 1), (2, 3)):
        with pytest.raises(
            UserError, match=f"--seeds: got {seeds}; expected 2, as the variants in"
        ):
            jobs(variants, seeds)
    # Some of them alone, as a script that is started again asks for.
    assert jobs(2, 2) == two
    assert len(jobs(4, 1)) == 4
    [study] = find_studies([tmp_path])
    assert len(study.index.variants) == 4
    assert study.index.seeds == 2


def test_other_variants_join_those_of_an_earlier_start(prepared, tmp_path):
    def jobs(names, seeds=2, **options):
        study = expand_grid("rivals", "tiny", only=names, steps=4, **options)
        return create_jobs(study, seeds, tmp_path, prepared)

    first = jobs(["dense", "LPA"])
    second = jobs(["dense", "CoLA"])
    assert [job.variant for job in second] == ["dense", "CoLA", "CoLA", "dense"]
    [study] = find_studies([tmp_path])
    assert [variant.name for variant in study.index.variants] == ["dense", "LPA", "CoLA"]
    assert {run.run for run in study.index.runs} == {job.run_id for job in [*first, *second]}
    with pytest.raises(UserError, match="--seeds: got 3; expected 2, as the variants in"):
        jobs(["dense", "FFN"], seeds=3)
    with pytest.raises(UserError, match="other tuned settings, or another grid"):
        jobs(["dense", "FFN"], tuned={name: {"optim.lr": 0.5} for name in ("dense", "FFN")})
    assert jobs(["dense", "LPA"]) == first
    [again] = find_studies([tmp_path])
    assert again.index == study.index


def test_a_tuning_is_not_run_in_part(prepared, tmp_path):
    def jobs(names, rates):
        study = expand_grid("rivals", "tiny", only=names)
        return create_jobs(tune_learning_rates(study, rates), 1, tmp_path, prepared)

    jobs(["dense", "LPA", "FFN"], [0.002, 0.004])
    assert len(jobs(["dense", "LPA", "FFN"], [0.002, 0.004, 0.008])) == 9
    with pytest.raises(UserError, match="other tuned settings, or another grid"):
        jobs(["dense", "LPA"], [0.002, 0.004])


def test_a_study_goes_on_where_another_version_counted_or_kept_otherwise(prepared, tmp_path):
    study = expand_grid("placement", "tiny")
    first = create_jobs(study, 1, tmp_path, prepared)
    path = index_path(study, tmp_path)
    earlier = json.loads(path.read_text())
    earlier["variants"][0]["train_flops_per_token"] += 1
    earlier["variants"][0]["parameters"] += 1
    earlier["base"] |= {"checkpoint.keep_latest_k": 7, "model.attn_implementation": "sdpa"}
    path.write_text(json.dumps(earlier))
    assert create_jobs(study, 1, tmp_path, prepared) == first
    [found] = find_studies([tmp_path])
    assert found.index.variants == study.variants
    earlier["variants"][0]["overrides"] |= {"optim.lr": 0.5}
    path.write_text(json.dumps(earlier))
    with pytest.raises(UserError, match="other tuned settings, or another grid"):
        create_jobs(study, 1, tmp_path, prepared)
