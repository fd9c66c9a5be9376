"""Curves through known losses, and the gains that they give."""

import math

import pytest

from lpa.study.results.curves import FittedCurve, InterpolatedCurve, compute_equivalent_gain

KINDS = (FittedCurve.through, InterpolatedCurve.through)
LAW = {c: 8 * c**-0.05 for c in (1e13, 3e13, 1e14)}
BENT = {1e13: 4.0, 3e13: 3.7, 1e14: 3.6}


@pytest.mark.parametrize("kind", KINDS)
def test_the_gain_is_what_dense_would_need_over_what_was_used(kind):
    same, extrapolated = compute_equivalent_gain(LAW[3e13], 3e13, LAW, kind)
    assert same == pytest.approx(1)
    assert not extrapolated
    half, _ = compute_equivalent_gain(LAW[3e13], 1.5e13, LAW, kind)
    assert half == pytest.approx(2)
    for flops in (1e12, 1e15):
        gain, extrapolated = compute_equivalent_gain(8 * flops**-0.05, 1e14, LAW, kind)
        assert gain == pytest.approx(flops / 1e14)
        assert extrapolated
    assert compute_equivalent_gain(4.0, 1e13, {1e13: 4.0, 2e13: 4.1, 3e13: 4.2}, kind) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", [5.0, 0.0, -1.0, math.nan, math.inf])
def test_a_loss_that_the_curve_never_reaches_has_no_gain(loss, kind):
    almost_flat = {1e13: 5.7, 3e13: 5.6995, 1e14: 5.699}
    assert compute_equivalent_gain(loss, 1e13, almost_flat, kind) is None


def test_lines_meet_every_loss_of_a_bent_curve_which_a_power_law_misses():
    lines, law = InterpolatedCurve.through(BENT), FittedCurve.through(BENT)
    for flops, loss in BENT.items():
        assert lines.loss_at(flops) == pytest.approx(loss)
        assert lines.flops_at(loss) == pytest.approx(flops)
        assert law.loss_at(flops) != pytest.approx(loss, rel=1e-3)
    # Halfway in logarithms.
    assert lines.loss_at(math.sqrt(3e13 * 1e14)) == pytest.approx(math.sqrt(3.7 * 3.6))
    assert lines.flops_at(math.sqrt(4.0 * 3.7)) == pytest.approx(math.sqrt(1e13 * 3e13))


def test_lines_say_nothing_at_flops_beyond_the_lengths():
    lines = InterpolatedCurve.through(BENT)
    assert lines.loss_at(0.9e13) is None
    assert lines.loss_at(1.1e14) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_what_is_no_loss_is_no_point_of_a_curve(kind, value):
    assert kind({**BENT, 2e14: value}) == kind(BENT)


def test_how_many_lengths_a_curve_needs():
    two = dict(list(BENT.items())[:2])
    assert FittedCurve.through(two) is None
    assert InterpolatedCurve.through(two).loss_at(3e13) == pytest.approx(3.7)
    assert InterpolatedCurve.through({1e13: 4.0}) is None
