"""Draws and intervals against the same written out, and what cannot be averaged."""

import math

import numpy as np
import pytest

from lpa.eval.bootstrap import NUM_RESAMPLES, bootstrap


def ratio(loss, size):
    return loss / size


@pytest.mark.parametrize("count", [2, 10, 3000])
def test_it_is_the_percentile_bootstrap_over_pairs(count, monkeypatch):
    generator = np.random.default_rng(1)
    loss, size = generator.gamma(3, 100, count), generator.integers(1, 80, count)
    monkeypatch.setattr("lpa.eval.bootstrap._AT_ONCE", 7 * count)  # several batches of draws
    error, (low, high) = bootstrap(ratio, loss, size)
    draws = np.random.default_rng(0).integers(0, count, (NUM_RESAMPLES, count))
    figures = loss[draws].sum(axis=1) / size[draws].sum(axis=1)
    assert error == pytest.approx(figures.std(ddof=1))  # sums in another order, as below
    assert (low, high) == pytest.approx(tuple(np.quantile(figures, [0.025, 0.975])))
    assert bootstrap(ratio, loss, size) == (error, (low, high))
    assert bootstrap(ratio, loss, size, seed=1)[0] != error


def test_equal_parts_leave_nothing_open():
    error, (low, high) = bootstrap(ratio, np.full(20, 3.0), np.full(20, 2))
    assert error == pytest.approx(0, abs=1e-12)  # rounding
    assert (low, high) == (1.5, 1.5)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("value", [math.inf, math.nan, 1e308])
def test_losses_without_a_mean_have_no_interval(value):
    loss = np.full(20, 3.0)
    loss[3] = value
    error, between = bootstrap(lambda loss, size: np.exp(loss / size), loss, np.full(20, 2))
    assert not math.isfinite(error)
    assert not math.isfinite(between[1])
