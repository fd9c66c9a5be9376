"""Curves through known losses, and the gains that they give."""

import math

import pytest

from lpa.study.results.curves import FittedCurve, InterpolatedCurve, compute_equivalent_gain

KINDS = (FittedCurve.from_losses, InterpolatedCurve.from_losses)
LAW = {c: 8 * c**-0.05 for c in (1e13, 3e13, 1e14)}
BENT = {1e13: 4.0, 3e13: 3.7, 1e14: 3.6}


def gain(loss, flops, losses, kind):
    return compute_equivalent_gain(loss, flops, kind(losses))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gain_is_what_dense_would_need_over_what_was_used(kind):
    same, extrapolated = gain(LAW[3e13], 3e13, LAW, kind)
    assert same == pytest.approx(1)
    assert not extrapolated
    half, _ = gain(LAW[3e13], 1.5e13, LAW, kind)
    assert half == pytest.approx(2)
    for flops in (1e12, 1e15):
        found, extrapolated = gain(8 * flops**-0.05, 1e14, LAW, kind)
        assert found == pytest.approx(flops / 1e14)
        assert extrapolated


@pytest.mark.parametrize(
    ("kind", "losses"),
    [
        (FittedCurve.from_losses, {1e13: 4.0, 2e13: 4.1, 3e13: 4.2}),
        (InterpolatedCurve.from_losses, {1e13: 4.0, 2e13: 4.1, 3e13: 4.2}),
        (InterpolatedCurve.from_losses, {1e13: 4.0, 3e13: 4.1, 1e14: 3.9}),
        (InterpolatedCurve.from_losses, {1e13: 4.0, 3e13: 4.0, 1e14: 3.9}),
    ],
)
def test_a_curve_that_does_not_fall_has_no_gain(kind, losses):
    assert gain(4.0, 1e13, losses, kind) is None
    assert kind(losses).loss_at(2e13) > 3.9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", [5.0, 7.0, 0.0, -1.0, math.nan, math.inf])
def test_a_loss_that_the_curve_never_reaches_has_no_gain(loss, kind):
    almost_flat = {1e13: 5.7, 3e13: 5.6995, 1e14: 5.699}
    assert gain(loss, 1e13, almost_flat, kind) is None


def test_lines_meet_every_loss_of_a_bent_curve_which_a_power_law_misses():
    lines, law = InterpolatedCurve.from_losses(BENT), FittedCurve.from_losses(BENT)
    for flops, loss in BENT.items():
        assert lines.loss_at(flops) == pytest.approx(loss)
        assert lines.flops_at(loss) == pytest.approx(flops)
        assert law.loss_at(flops) != pytest.approx(loss, rel=1e-3)
    # Halfway in logarithms.
    assert lines.loss_at(math.sqrt(3e13 * 1e14)) == pytest.approx(math.sqrt(3.7 * 3.6))
    assert lines.flops_at(math.sqrt(4.0 * 3.7)) == pytest.approx(math.sqrt(1e13 * 3e13))


def test_lines_say_nothing_at_flops_beyond_the_lengths():
    lines = InterpolatedCurve.from_losses(BENT)
    assert lines.loss_at(0.9e13) is None
    assert lines.loss_at(1.1e14) is None


def test_how_many_lengths_a_curve_needs():
    two = dict(list(BENT.items())[:2])
    assert FittedCurve.from_losses(two) is None
    assert InterpolatedCurve.from_losses(two).loss_at(3e13) == pytest.approx(3.7)
    assert InterpolatedCurve.from_losses({1e13: 4.0}) is None
