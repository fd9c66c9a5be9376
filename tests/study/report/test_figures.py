"""Figures and fits of studies whose runs have known losses."""

import itertools
import json
import math

import pytest
from helpers.study_runs import record_divergence, set_perplexity

from lpa.display.html import draw_svg
from lpa.study.report.figures import scaling_fits, study_figures
from lpa.study.report.study_report import summarize
from lpa.study.results.study_results import read_study

pytestmark = pytest.mark.xdist_group("study")


@pytest.fixture
def scale(runs_of):
    """Two seeds, whose losses are a power law of parameters and tokens, give or take."""
    index, runs = runs_of("scale", seeds=2)
    study = json.loads(index.read_text())
    variants = {v["name"]: v for v in study["variants"]}
    for (name, seed), run in runs.items():
        parameters, tokens = variants[name]["parameters"], variants[name]["tokens"]
        loss = 4 * (parameters / 1e4) ** -0.1 * (tokens / 1e3) ** -0.2 * (1 + 0.01 * seed)
        set_perplexity(run, validation=1, test=math.exp(loss))
    return index, runs


def test_fits_take_sizes_at_the_same_tokens_and_tokens_at_the_same_size(scale):
    index, _ = scale
    result = read_study(index)
    for kind, fit in scaling_fits(result, "parameters").items():
        assert (kind, fit.count) in (("dense", 4), ("LPA", 4))  # seeds of a size are one point
        assert fit.exponent == pytest.approx(-0.1)
    for fit in scaling_fits(result, "tokens").values():
        assert fit.count == 3
        assert fit.exponent == pytest.approx(-0.2)
    words = " ".join(summarize(result))
    assert (
        "Loss of LPA falls with training tokens of the largest model: to the power -0.2000" in words
    )


def test_a_loss_that_is_not_shown_to_fall_is_not_said_to(runs_of):
    index, runs = runs_of("scale")
    for number, run in enumerate(runs.values()):
        set_perplexity(run, validation=1, test=20 + number % 2)
    assert "Loss of LPA is not shown to fall with parameters" in " ".join(
        summarize(read_study(index))
    )


def test_a_model_of_which_a_run_diverged_is_in_no_fit(scale):
    """The seed that survives is no model of its size."""
    index, runs = scale
    record_divergence(runs["LPA d", 1])
    set_perplexity(runs["LPA d", 0], validation=1, test=math.exp(9))
    fits = scaling_fits(read_study(index), "parameters")
    assert (fits["dense"].count, fits["LPA"].count) == (4, 3)
    assert fits["LPA"].exponent == pytest.approx(-0.1)


@pytest.mark.parametrize("diverged", [1, 2])
def test_a_front_is_of_models_of_which_no_run_diverged(runs_of, diverged):
    """Two models, of which the smaller is far better where it survives."""
    index, runs = runs_of("placement", seeds=2)
    kept = ["dense", "all"]
    for (name, seed), run in runs.items():
        if name not in kept:
            (run / "test.json").unlink()
        else:
            set_perplexity(run, validation=100, test=50 if name == "all" else 100)
            if seed == 1 and name in kept[-diverged:]:
                record_divergence(run)
    result = read_study(index)
    caption = next(name for name in study_figures(result) if "perplexity" in name.lower())
    labels = draw_svg(study_figures(result)[caption])
    assert "all (1 of 2 diverged)" in labels
    assert ("front" in labels) == (diverged == 1)


DIVERGED = (math.inf, math.nan, 0.0, 1.0, 1e60)


@pytest.mark.parametrize("of_dense", [math.inf, 0.0, 100.0])
def test_figures_of_models_that_diverged_can_be_drawn(runs_of, of_dense):
    """All others diverge each in its own way."""
    index, runs = runs_of("placement", seeds=3)
    names = [name for name, seed in runs if seed == 1]
    for name, value in zip(names, itertools.cycle(DIVERGED)):
        own = of_dense if name == "dense" else value
        for seed in (1, 2):
            set_perplexity(runs[name, seed], validation=own, test=own)
    figures = study_figures(read_study(index))
    assert len(figures) > 1
    for draw in figures.values():
        assert "</svg>" in draw_svg(draw)
