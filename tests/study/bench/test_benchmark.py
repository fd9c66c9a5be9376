import math
import re

import pytest

from lpa.cli.bench import _figures, _print
from lpa.study.bench.benchmark import BenchResult, ModelMeasurements
from lpa.study.bench.timing import median_ratio, time_interleaved

SMALL = ("--seq-len", 16, "--batch-size", 2, "--rounds", 2, "--threads", 1, "--device", "cpu")


def test_runs_take_turns_and_warm_up_apart():
    order = []
    seconds = time_interleaved(
        {name: lambda name=name: order.append(name) for name in "ab"}, rounds=2, warm_up=1
    )
    assert "".join(order) == "ab" + "ba" + "ab"
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_a_ratio_is_taken_within_rounds():
    # The second round was slow for both.
    middle, half_iqr = median_ratio({"a": [1.0, 10.0, 1.0], "b": [2.0, 20.0, 2.0]}, "a", "b")
    assert (middle, half_iqr) == (0.5, 0)
    middle, half_iqr = median_ratio({"a": [1.0], "b": [2.0]}, "a", "b")
    assert middle == 0.5
    assert math.isnan(half_iqr)


@pytest.mark.parametrize(
    ("step", "half_iqr", "sentence"),
    [
        (0.9, 0.01, "saves 10.0% of the dense step, 50% of the 20.0% in FLOPs"),
        (0.99, 0.02, "not faster than dense here, within what runs differ by"),
        (1.2, 0.02, "slower than dense here: 1.200 of its step time"),
        (1.2, math.nan, "1.200 of the dense step time; one round tells nothing of the next"),
    ],
)
def test_the_verdict_is_plain(step, half_iqr, sentence):
    figures = ModelMeasurements(step_ratio=step, step_ratio_half_iqr=half_iqr, flops_ratio=0.8)
    assert figures.verdict == sentence


@pytest.mark.parametrize(
    ("half_iqr", "cells"), [(0.02, "1.000 0.900 ± 0.020"), (math.nan, "1.000 0.900")]
)
def test_what_rounds_differ_by_is_shown_where_there_are_several(half_iqr, cells, capsys):
    models = {
        "none": ModelMeasurements(step_ratio_half_iqr=half_iqr * 0),
        "attention": ModelMeasurements(step_ratio=0.9, step_ratio_half_iqr=half_iqr),
    }
    _print("nano", BenchResult(models, [], {"flops": 128, "measured": 64}))
    [row] = [line for line in capsys.readouterr().out.splitlines() if "step / dense" in line]
    assert " ".join(re.sub("[│|]", " ", row).split()) == f"step / dense {cells}"


def test_json_has_the_verdict_on_each_low_rank_model():
    ours = ModelMeasurements(step_ratio=0.9, step_ratio_half_iqr=0.01, flops_ratio=0.8)
    models = _figures(BenchResult({"none": ModelMeasurements(), "all": ours}, {}, {}))["models"]
    assert models["all"]["verdict"] == ours.verdict
    assert "verdict" not in models["none"]


@pytest.mark.slow
def test_dense_and_low_rank_are_measured_side_by_side(lpa, tmp_path):
    figure = tmp_path / "bench.svg"
    run = lpa("bench", "nano", *SMALL, "--placement", "attention", "--figure", figure, "--json")
    assert run.code == 0, run.stderr
    models = run.json["models"]
    assert list(models) == ["none", "attention"]
    assert models["none"]["step_ratio"] == 1
    assert set(models["none"]["decode_tokens_per_second"]) == {"plain"}
    assert set(models["attention"]["decode_tokens_per_second"]) == {"plain", "latent"}
    for model in models.values():
        assert model["tokens_per_second"] == pytest.approx(32 / model["step_seconds"])
        # Weights, gradients and two moments of 4 bytes, at least.
        assert model["peak_memory_bytes"] > 16 * 2e6
    assert models["attention"]["flops_ratio"] < 1
    assert run.json["break_even_rank"]["flops"] == 128
    assert figure.read_text().lstrip().startswith("<svg")

    again = lpa("bench", "nano", *SMALL, "--figure", figure)
    assert again.code == 2
    assert "already exists; choose a new file or pass --overwrite" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["giant"], "preset: got 'giant'"),
        (["nano", "--placement", "some"], "--placement: got some; expected one of none"),
        (["nano", "--rounds", "0"], "--rounds: got 0; expected a whole number from 1"),
        (["nano", "--seq-len", "4096"], "--seq-len: got 4096; the model has 1024 positions"),
    ],
)
def test_bad_input_is_one_line(lpa, arguments, message):
    finished = lpa("bench", *arguments)
    assert finished.code == 2
    assert finished.stderr.count("\n") == 1
    assert message in finished.stderr
