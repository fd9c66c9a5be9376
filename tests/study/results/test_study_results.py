"""What tuning picks, from the files of runs."""

import html
import itertools
import json
import math
from xml.etree import ElementTree

import pytest
import yaml
from helpers.study_runs import record_divergence, set_perplexity
from markupsafe import escape

from lpa.display.escape import escape_unprintable
from lpa.display.html import draw_svg
from lpa.errors import LPAWarning, UserError
from lpa.storage.run_directory import RESULT_FILE, TEST_FILE
from lpa.study.design.grid import expand_grid
from lpa.study.execution.job import FAILURE_SUFFIX
from lpa.study.report.figures import study_figures
from lpa.study.report.study_report import (
    HEADINGS,
    claim_rows,
    row_cells,
    summarize,
    write_study_report,
)
from lpa.study.results.study_results import find_studies, read_study
from lpa.study.results.tuning_results import short_axes, write_tuned

pytestmark = pytest.mark.xdist_group("study")


@pytest.fixture
def tuning(runs_of):
    index, runs = runs_of("tuning")
    return index, {name: run for (name, _), run in runs.items()}


@pytest.fixture
def tuning_of_three(runs_of):
    return runs_of("tuning", seeds=3)


def test_validation_decides_and_a_value_at_the_end_of_an_axis_is_reported(tuning, tmp_path):
    index, runs = tuning
    for number, run in enumerate(runs.values()):
        set_perplexity(run, validation=100 + number, test=200 - number)
    rate = expand_grid("tuning", "tiny").base["optim.lr"]
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
    reported = {(placement, name): value for placement, name, value in short_axes(result)}
    assert reported[("attention", "optim.lr")] == 2 * rate
    assert reported[("ffn", "optim.lr")] == rate / 2  # 100 plus its number, so the first
    assert reported[("attention", "model.initializer_range")] == 0.02
    assert not any(placement == "none" for placement, _ in reported)
    words = " ".join(summarize(result))
    assert f"Best for placement none on the validation split: {best['none']}." in words
    assert f"With placement attention, optim.lr {2 * rate:g} is at the end" in words


def test_settings_of_one_placement_may_set_different_fields(tuning):
    """A trial without a field has the value that all runs share; a choice between words has no end."""
    index, _ = tuning
    result = read_study(index)
    for trial in result.index.variants[::2]:
        trial.overrides.pop("model.initializer_range")
        trial.overrides["model.dense_layers"] = [0]
    reported = {name for _, name, _ in short_axes(result)}
    assert "optim.lr" in reported
    assert "model.dense_layers" not in reported


def test_a_placement_that_never_finished_leaves_nothing_tuned(tuning, tmp_path):
    index, runs = tuning
    for name, run in runs.items():
        if "placement=none" in name:
            record_divergence(run)
    with pytest.raises(UserError, match="no setting of placement none has finished"):
        write_tuned(read_study(index), tmp_path / "tuned.yaml")
    assert not (tmp_path / "tuned.yaml").exists()
    assert "Best so far for placement attention" in " ".join(summarize(read_study(index)))


@pytest.mark.parametrize("content", [None, "{"])
def test_a_trial_that_is_lost_leaves_nothing_tuned(tuning, tmp_path, content):
    """It might be the best; one that diverged is the worst."""
    index, runs = tuning
    trial, run = next(iter(runs.items()))
    (run / "test.json").unlink() if content is None else (run / "test.json").write_text(content)
    with pytest.raises(UserError, match="not finished and did not diverge") as error:
        write_tuned(read_study(index), tmp_path / "tuned.yaml")
    assert trial in str(error.value)
    assert not (tmp_path / "tuned.yaml").exists()


def texts(result):
    """The table as it is read: variant -> heading -> text."""
    rows = [
        dict(zip(HEADINGS, (text for text, _ in row_cells(row)), strict=True))
        for row in result.rows
    ]
    return {row["variant"]: row for row in rows}


@pytest.fixture
def placement(runs_of):
    """Three seeds, in which attention is a tenth better than dense and a tenth faster, give or take."""
    index, runs = runs_of("placement", seeds=3)
    for (name, seed), run in runs.items():
        share = 0.9 + 0.001 * seed if name == "attention" else 1.0
        set_perplexity(run, validation=100, test=(100 + seed) * share)
        result = json.loads((run / "result.json").read_text())
        result |= {"wall_seconds": (10 + seed) * share, "tokens_per_second": (10 + seed) / share}
        (run / "result.json").write_text(json.dumps(result))
    return index, runs


def test_a_variant_says_what_it_is_compared_with_and_any_can_be_that(placement):
    index, _ = placement
    rows = texts(read_study(index))
    assert rows["dense"]["change"] == "baseline"
    assert rows["attention"]["against"] == "dense"
    assert rows["attention"]["verdict"] == "better"
    assert rows["attention"]["tokens/s"] == "12 ± 1"
    [other] = find_studies([index.parent], "attention")
    rows = texts(other)
    assert claim_rows(other) == []  # they are about dense
    assert rows["attention"]["change"] == "baseline"
    assert rows["dense"]["against"] == "attention"
    assert rows["dense"]["verdict"] == "worse"
    assert "Worse than attention, by an interval that excludes zero: dense" in " ".join(
        summarize(other)
    )
    with pytest.raises(
        UserError, match="--baseline: got 'denser'; expected a variant, such as dense"
    ):
        find_studies([index.parent], "denser")


def test_without_a_baseline_of_the_same_seed_nothing_is_called_one(placement):
    index, runs = placement
    for (name, _), run in runs.items():
        if name == "dense":
            (run / TEST_FILE).unlink()
    result = read_study(index)
    row = texts(result)["attention"]
    assert (row["against"], row["change"], row["verdict"]) == ("dense", "–", "–")
    assert "Not compared yet, without a baseline of the same seed: attention;" in " ".join(
        summarize(result)
    )


def test_a_failed_run_is_distinguished_from_a_pending_one(placement):
    index, runs = placement
    failed, waiting = runs["attention", 2], runs["ffn", 2]
    for run in (failed, waiting):
        (run / TEST_FILE).unlink()
    log = index.parent / "logs" / (failed.name + FAILURE_SUFFIX)
    log.parent.mkdir(exist_ok=True)
    log.write_text("exit code -9: no word\n")
    result = read_study(index)
    rows = texts(result)
    assert rows["attention"]["runs"] == "2 of 3, 1 failed"
    assert rows["attention"]["verdict"] == "better (2 of 3 seeds)"
    assert rows["ffn"]["runs"] == "2 of 3"
    words = " ".join(summarize(result))
    assert "Failed: attention with seed 2, exit code -9: no word." in words
    assert "Failed: ffn" not in words
    claim = next(claim for claim in claim_rows(result) if claim[0] == "attention")
    assert claim[2].endswith("(2 of 3 seeds)")
    assert claim[3].startswith("the same direction, at this size and length")


@pytest.mark.parametrize("seeds", [[2], [0, 1, 2]])
@pytest.mark.parametrize("variant", ["attention", "dense"])
def test_the_seeds_that_survive_decide_nothing_where_a_run_diverged(placement, variant, seeds):
    """Neither for a variant nor for what it is compared with."""
    index, runs = placement
    for seed in seeds:
        record_divergence(runs[variant, seed])
    result = read_study(index)
    row = next(row for row in result.rows if row.variant == "attention")
    assert row.verdict == "undecided (a run diverged)"
    assert texts(result)["attention"]["verdict"].startswith("undecided (a run diverged)")
    words = " ".join(summarize(result))
    assert "Undecided against dense, as a run diverged: attention" in words
    assert "Better than" not in words
    assert f"no run of which diverged is that of {variant}" not in words
    assert ("no run of which diverged is that of" in words) == (len(seeds) == 1)
    assert "Not compared yet" not in words
    claim = next(claim for claim in claim_rows(result) if claim[0] == "attention")
    expected = "not settled: undecided (a run diverged)" if len(seeds) == 1 else "–"
    assert claim[3] == expected
    for caption, draw in study_figures(result).items():
        assert ("1 of 3 diverged" in draw_svg(draw)) == (len(seeds) == 1), caption


DIVERGED = (math.inf, math.nan, 0.0, 1.0, 1e60)


@pytest.mark.parametrize("value", DIVERGED)
@pytest.mark.parametrize("variant", ["attention", "dense"])
def test_a_model_that_diverged_is_not_ranked(placement, variant, value):
    """Whichever side of the comparison it is on; perplexities of 0 and 1 have no logarithm of their loss."""
    index, runs = placement
    set_perplexity(runs[variant, 1], validation=value, test=value)
    set_perplexity(runs[variant, 2], validation=100, test=value)
    result = read_study(index)
    words = " ".join(summarize(result))
    if variant == "dense":
        change = texts(result)["attention"]["change"]
        undecided = value == 0.0 or not math.isfinite(value)
        assert (change == "–") == undecided
        assert (
            "as a perplexity is not finite: attention by no finite amount" in words
        ) == undecided
        return
    if value in (0.0, 1.0):
        return
    assert texts(result)["attention"]["verdict"] != "better"
    if math.isfinite(value):
        assert "Not distinguishable from dense: attention" in words
    else:
        assert "Undecided against dense, as a perplexity is not finite: attention" in words


COSTS = (0, 0.0, 1e308)


def test_costs_of_zero_or_beyond_sums_are_reported(placement):
    """Each in all runs of one of the variants."""
    index, runs = placement
    names = [name for name, seed in runs if seed == 1]
    costs = dict(zip(names, itertools.cycle(COSTS)))
    for (name, _), run in runs.items():
        result = json.loads((run / "result.json").read_text())
        for field in ("wall_seconds", "tokens_per_second", "peak_memory_bytes"):
            # A whole number of more bits is refused as the file is read.
            whole = not isinstance(result[field], float)
            result[field] = min(int(costs[name]), 2**62) if whole else costs[name]
        (run / "result.json").write_text(json.dumps(result))
    result = read_study(index)
    write_study_report([result], index.parent / "report.html")
    assert texts(result)["attention"]["verdict"] == "better"


NAMES = {
    "formula": r"$\frac$ and \$5, $a_b$",
    "markup of rich": "[bold]x[/nope] :smile:",
    "markup of pages": "<script>alert(1)</script> & 'x' \"y\"",
    "terminal": "red \x1b[31m \x07 \x9b2J",
    "direction": "a\u202eb",
    "hidden from legends": "_nolegend_",
    "two lines": "one\ntwo",
}


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("first", [0, 4])
def test_a_report_shows_names_as_they_are(placement, first):
    """No name is a formula, markup or an instruction to the terminal or the page."""
    index, _ = placement
    fields = json.loads(index.read_text())
    others = [row["name"] for row in fields["variants"] if row["name"] != "dense"]
    names = dict(zip(others, list(NAMES.values())[first : first + 4], strict=False))
    for variant in fields["variants"]:
        variant["name"] = names.get(variant["name"], variant["name"])
    for run in fields["runs"]:
        run["variant"] = names.get(run["variant"], run["variant"])
    fields["question"] = " ".join(names.values())
    index.write_text(json.dumps(fields))
    result = read_study(index)
    out = index.parent / "report.html"
    write_study_report([result], out)
    page = out.read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert not set(page) & {"\x1b", "\x07", "\x9b", "\u202e"}
    [drawing, *_] = sorted(out.with_name("report-figures").glob("*.svg"))
    labels = [
        node.text.strip()
        for node in ElementTree.parse(drawing).iter()
        if node.tag.endswith("}text") and node.text
    ]
    for shown in map(escape_unprintable, names.values()):
        assert page.count(html.escape(shown, quote=False)) or page.count(str(escape(shown)))
        for line in shown.split("\n"):
            assert line in labels


def test_the_last_evaluation_is_of_more_text_and_not_part_of_the_curve(placement):
    index, runs = placement
    losses = [5.0, 4.0, 9.0]
    run = runs["dense", 0]
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i, "validation_loss": x}) + "\n" for i, x in enumerate(losses))
    )
    [curve, *_] = read_study(index).curves["dense"]
    assert [record["validation_loss"] for record in curve] == losses[:2]
    (run / TEST_FILE).unlink()  # trained, and still to be scored
    [curve, *_] = read_study(index).curves["dense"]
    assert [record["validation_loss"] for record in curve] == losses[:2]
    (run / RESULT_FILE).unlink()  # still at work
    [curve, *_] = read_study(index).curves["dense"]
    assert [record["validation_loss"] for record in curve] == losses


def test_the_time_of_training_stands_beside_what_the_paper_says_of_it(placement):
    index, _ = placement
    claims = {text: (ours, verdict) for _, text, ours, verdict in claim_rows(read_study(index))}
    ours, verdict = claims["up to 12.4% less training time"]
    assert ours.startswith("-9.9% [-10.")
    assert verdict.startswith("not judged: runs shared the machine")


def test_a_report_replaces_an_earlier_one_and_nothing_else(placement):
    index, _ = placement
    before = index.read_bytes()
    with pytest.raises(UserError, match="is not a report"):
        write_study_report([read_study(index)], index)
    assert index.read_bytes() == before
    page = index.parent / "report.html"
    write_study_report([read_study(index)], page)
    figures = page.with_name("report-figures")
    (figures / "1-rank-tiny-9.png").write_text("of an earlier report")
    (figures / "mine.png").write_text("not of a report")
    write_study_report([read_study(index)], page)
    assert not (figures / "1-rank-tiny-9.png").exists()
    assert (figures / "mine.png").exists()


def test_a_tuning_of_fewer_seeds_than_before_chooses_by_those(tuning_of_three, lpa, prepared):
    index, runs = tuning_of_three
    for (name, seed), run in runs.items():
        set_perplexity(run, validation=50 if "init=0.005" in name else 60, test=1)
        if seed > 0:
            (run / TEST_FILE).unlink()
    command = ("study", "tuning", "--scale", "tiny", "--data", prepared, "--out", index.parent)
    finished = lpa(*command, "--seeds", 1)
    assert finished.code == 0, finished.stderr
    tuned = yaml.safe_load((index.parent / "tuned-tiny.yaml").read_text())
    assert {settings["model.initializer_range"] for settings in tuned.values()} == {0.005}
    assert json.loads(index.read_text())["seeds"] == 3


def test_a_tuning_that_chooses_nothing_ends_with_an_error(tuning, lpa, prepared):
    index, runs = tuning
    (next(iter(runs.values())) / TEST_FILE).write_text("{")
    command = ("study", "tuning", "--scale", "tiny", "--data", prepared, "--out", index.parent)
    finished = lpa(*command, "--seeds", 1)
    assert finished.code == 1
    assert "trials are not finished and did not diverge: " in finished.stderr


def test_a_verdict_about_rivals_is_corrected_for_their_number(runs_of):
    index, _ = runs_of("rivals", seeds=3)
    result = read_study(index)
    dense, ours, *others = result.rows
    assert len(others) > 5
    dense.perplexities = {0: 50.0, 1: 50.4, 2: 49.7}
    # Each of them by an interval that excludes zero, none after the correction.
    for row in (ours, *others):
        row.perplexities = {0: 48.5, 1: 49.3, 2: 48.0}
    result.compare()
    assert ours.difference.verdict == "better"
    assert {row.verdict for row in (ours, *others)} == {"no difference shown"}
    assert "Better than" not in " ".join(summarize(result))
    assert {row["verdict"] for row in result.table()["rows"]} == {None, "no difference shown"}
    ours.perplexities = {0: 40.0, 1: 40.32, 2: 39.76}
    result.compare()
    assert ours.verdict == "better"
    assert "Better than dense, by Holm's test over all variants" in " ".join(summarize(result))
    # One that is compared with another variant is not of the family, nor is its verdict.
    others[0].baseline, others[0].perplexities = ours.variant, {0: 40.0, 1: 40.33, 2: 39.77}
    result.compare()
    assert ours.verdict == "better"
    assert others[0].verdict == others[0].difference.verdict == "no difference shown"


def test_a_damaged_score_leaves_the_study_in_the_report(placement):
    index, runs = placement
    run = next(iter(runs.values()))
    (run / "scores").mkdir()
    (run / "scores" / "pairs.json").write_text('{"accuracy": 0.')
    with pytest.warns(LPAWarning, match="the scores of this run are left out"):
        result = read_study(index)
    assert not any(row.missing or row.scores for row in result.rows)


def test_a_directory_that_is_named_twice_is_read_once(placement, tmp_path):
    index, _ = placement
    link = tmp_path / "link"
    link.symlink_to(index.parent, target_is_directory=True)
    assert len(find_studies([index.parent, link, index.parent / "runs" / ".."])) == 1
