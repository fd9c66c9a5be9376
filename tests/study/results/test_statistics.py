"""Intervals against values worked out by hand or known from tables."""

import math

import pytest

from lpa.study.results.statistics import Difference, PowerLaw, Summary, pareto_front


def test_paired_difference_is_students_t_over_log_ratios():
    dense = {0: 100.0, 1: 200.0, 2: 400.0}
    ours = {0: 100 * math.exp(-0.1), 1: 200 * math.exp(-0.2), 2: 400 * math.exp(-0.3)}
    found = Difference.between(ours, dense)
    # Deviation 0.1, so the error is 0.1/√3; t(0.975, 2) = 4.302653 in every table.
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert found.mean == pytest.approx(math.expm1(-0.2))
    assert found.low == pytest.approx(math.expm1(-0.2 - half), rel=1e-6)  # digits of the table
    assert found.high == pytest.approx(math.expm1(-0.2 + half), rel=1e-6)
    assert found.verdict == "no difference shown"


@pytest.mark.parametrize(("sign", "verdict"), [(-1, "better"), (1, "worse")])
def test_a_verdict_needs_the_whole_interval_on_one_side(sign, verdict):
    dense = {0: 100.0, 1: 120.0, 2: 90.0}
    ours = {seed: value * (1 + sign * (0.1 + 0.001 * seed)) for seed, value in dense.items()}
    assert Difference.between(ours, dense).verdict == verdict


def test_one_seed_decides_nothing_and_seeds_that_do_not_pair_are_left_out():
    assert Difference.between({0: 1.0, 5: 2.0}, {0: 9.0, 1: 2.0}).verdict == "undecided (one seed)"
    assert Difference.between({0: 1.0}, {1: 1.0}) is None
    assert math.isnan(Summary.from_values([1.0]).std)


def test_a_power_law_is_found_again():
    x = [1e3, 1e4, 1e5, 1e6]
    fit = PowerLaw.fit(x, [7 * value**-0.05 for value in x])
    assert fit.exponent == pytest.approx(-0.05)
    assert fit.factor == pytest.approx(7)
    assert fit.low <= fit.exponent <= fit.high
    assert PowerLaw.fit(x[:2], [1, 2]) is None


def test_the_front_holds_what_nothing_beats():
    assert pareto_front([(3, 1), (1, 3), (2, 4), (3, 2)]) == [1, 0]


VALUES = [0.0, -1.0, math.inf, math.nan, 1.0, 5.0, 1e-300, 1e308]


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("baseline", VALUES)
@pytest.mark.parametrize("ours", VALUES)
def test_any_two_values_have_a_difference_and_a_verdict(ours, baseline, seeds):
    """One pair that is no pair of positive numbers leaves all undecided, whichever side it is on."""
    left, right = dict.fromkeys(range(seeds), 4.0), dict.fromkeys(range(seeds), 4.0)
    left[0], right[0] = ours, baseline
    found = Difference.between(left, right)
    good = all(math.isfinite(value) and value > 0 for value in (ours, baseline))
    if not good:
        assert math.isnan(found.mean)
        assert math.isnan(found.low)
        assert found.verdict == "undecided (a perplexity is not finite)"
    elif seeds == 1:
        assert found.verdict == "undecided (one seed)"
        assert math.isnan(found.low)
    else:
        assert found.low <= found.mean <= found.high
    summary = Summary.from_values(list(left.values()))
    assert math.isnan(ours) == math.isnan(summary.mean)


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_equal_differences_have_an_interval_without_width(factor):
    dense = dict.fromkeys(range(3), 20.0)
    found = Difference.between({seed: factor * value for seed, value in dense.items()}, dense)
    assert found.low == pytest.approx(factor - 1, abs=1e-12)
    assert found.high == pytest.approx(factor - 1, abs=1e-12)
    assert found.verdict == {0.9: "better", 1.0: "no difference shown", 1.1: "worse"}[factor]


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_law_is_fitted_to_the_points_that_have_logarithms(value):
    x, y = [1e3, 1e4, 1e5], [3.0, 2.5, 2.0]
    expected = PowerLaw.fit(x, y)
    assert PowerLaw.fit([*x, 1e6], [*y, value]) == expected
    assert PowerLaw.fit([*x, value], [*y, 1.0]) == expected
    assert PowerLaw.fit([*x[:2], 1e6], [*y[:2], value]) is None


def test_a_law_of_equal_values_and_a_law_beyond_what_a_float_holds():
    flat = PowerLaw.fit([1e3, 1e4, 1e5], [2.0, 2.0, 2.0])
    assert (flat.exponent, flat.low, flat.high) == (0.0, 0.0, 0.0)
    steep = PowerLaw.fit([1e18, 1.01e18, 1.02e18], [1e300, 1e200, 1e100])
    assert math.isinf(steep.factor)
