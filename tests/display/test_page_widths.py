"""Pages of one model and of two, at the width of a window and of a phone."""

import pytest
from helpers.browser import BROWSER, layout_of
from matplotlib.figure import Figure

from lpa.eval.analysis.analysis_report import _heads
from lpa.study.bench.benchmark import BenchResult, ModelMeasurements, draw_bench
from lpa.study.demo.demo_report import TABLE_ROWS, write_demo_report

pytestmark = pytest.mark.xdist_group("study")


@pytest.fixture(scope="module")
def pages(tmp_path_factory, run, prepared, lpa):
    folder = tmp_path_factory.mktemp("pages")
    words = ["--data", prepared, "--tokens", 256, "--ranks", 4, "--device", "cpu"]
    finished = lpa("analyze", run, *words, "--out", folder / "analysis")
    assert finished.code == 0, finished.stderr
    figures = {name: {key: 1_234_567.0 for key, _, _ in TABLE_ROWS} for name in ("dense", "lpa")}
    curves = [{"step": step, "loss": 5.0 / step, "validation_loss": 5.5} for step in (1, 2)]
    write_demo_report(
        folder / "demo.html",
        figures=figures,
        curves={"dense": curves, "LPA": curves},
        samples={"dense": "a" * 500, "LPA": "We the people " * 30},
        settings={"steps": 2, "tokens": 100, "learning rate": {"dense": 1, "LPA": 2}, "seed": 0},
    )
    return {"analysis": folder / "analysis/report.html", "demo": folder / "demo.html"}


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["analysis", "demo"])
def test_nothing_runs_off_the_page(pages, name, width, tmp_path):
    seen = layout_of(pages[name], width, tmp_path)
    assert (seen["overflow"], seen["outside"]) == (0, [])
    assert set(seen["figures"]) == {seen["body"]}


def test_heads_that_differ_by_little_are_distinguished():
    figure = Figure()
    heads = [
        {
            "layer": number // 2,
            "head": number % 2,
            "relative_entropy": 0.99 + number / 1000,
            "distance": 90 + number,
        }
        for number in range(4)
    ]
    _heads(figure, heads)
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert [image.get_clim() for image in images] == [(0.99, 0.993), (90, 93)]


def test_the_legend_of_the_benchmark_covers_no_bar():
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    models = {name: ModelMeasurements() for name in ("none", "attention", "ffn", "all")}
    draw_bench(figure, BenchResult(models, {8: 0.5, 64: 1.2}, {"flops": 128.0, "measured": 8.0}))
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())
