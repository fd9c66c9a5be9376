"""Judgments of studies whose perplexities follow a known law."""

import math

import pytest
from helpers.study_runs import rival_study

from lpa.study.results.judgment import judge

CURVES = ("fitted", "interpolated")


def test_a_known_saving_is_found_at_every_length():
    found = judge([rival_study(20, 1.5), rival_study(2, 1.5), rival_study(6, 1.5)])
    assert [row.variant for row in found] == ["dense", "LPA"] * 3
    assert [row.tokens for row in found] == sorted(row.tokens for row in found)
    for row in found[1::2]:
        assert list(row.fitted.gains.values()) == pytest.approx([1.5] * 3)
        assert row.fitted.equal_flops.ratio < 1
        assert row.fitted.equal_flops.differs
        assert row.equal_tokens.ratio < 1


def test_two_lengths_give_no_power_law():
    for row in judge([rival_study(2, 1.5), rival_study(6, 1.5)]):
        assert row.fitted.equal_flops is None
        assert row.fitted.gains == {}
        assert (row.equal_tokens is None) == (row.variant == "dense")


@pytest.mark.parametrize("curve", CURVES)
def test_a_seed_that_lacks_a_length_of_the_curve_waits_for_it(curve):
    studies = [rival_study(length, 1.5) for length in (2, 6, 20, 60)]
    del studies[1].rows[0].perplexities[1]
    ours = [getattr(found, curve) for found in judge(studies) if found.variant == "LPA"]
    assert [set(found.gains) for found in ours] == [{0, 2}] * 4
    shortest, *longer = (found.equal_flops for found in ours)
    assert [found.count for found in longer] == [2] * 3
    if curve == "interpolated":
        assert shortest is None


@pytest.mark.parametrize("curve", CURVES)
def test_a_seed_with_as_many_lengths_but_others_has_another_curve(curve):
    """Of four lengths each seed has three."""
    studies = [rival_study(length, 1.5) for length in (2, 6, 20, 60)]
    for seed, result in enumerate(studies[:3]):
        del result.rows[0].perplexities[seed]
    compared = [getattr(found, curve) for found in judge(studies)]
    assert not any(found.gains or found.equal_flops for found in compared)


def test_two_lengths_give_a_line():
    """At the shortest length, LPA has fewer FLOPs than dense ever."""
    found = judge([rival_study(2, 1.5), rival_study(6, 1.5)])
    short, long = (row.interpolated for row in found if row.variant == "LPA")
    for row in (short, long):
        assert list(row.gains.values()) == pytest.approx([1.5] * 3)
    assert short.equal_flops is None
    assert long.equal_flops.differs


def test_the_gain_of_the_baseline_says_how_far_its_curve_misses_it():
    """The losses of the middle length are lower than a power law's."""
    studies = [rival_study(length, 1.5) for length in (2, 6, 20)]
    middle = studies[1].rows[0]
    middle.perplexities = {seed: value * 0.96 for seed, value in middle.perplexities.items()}
    dense = [row for row in judge(studies) if row.variant == "dense"]
    for row, above in zip(dense, (False, True, False), strict=True):
        assert {gain > 1.02 for gain in row.fitted.gains.values()} == {above}
        assert {gain < 0.98 for gain in row.fitted.gains.values()} == {not above}
        assert row.fitted.equal_flops is None
        assert list(row.interpolated.gains.values()) == pytest.approx([1] * 3)


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0])
@pytest.mark.parametrize("variant", ["dense", "LPA"])
@pytest.mark.parametrize("curve", CURVES)
def test_a_perplexity_that_is_none_leaves_the_other_seeds(curve, variant, value):
    studies = [rival_study(length, 1.5) for length in (2, 6, 20, 60)]
    row = next(row for row in studies[1].rows if row.variant == variant)
    row.perplexities[1] = value
    for found in judge(studies):
        lost = variant == "dense" or (found.variant, found.tokens) == ("LPA", row.tokens)
        gains = getattr(found, curve).gains
        assert set(gains) == ({0, 2} if lost else {0, 1, 2})
        assert all(math.isfinite(gain) for gain in gains.values())


DIVERGED = "exit code 2: lpa: error: training: step 3: the loss is nan"


def diverge(row):
    del row.perplexities[1]
    row.missing, row.failed = [1], {1: DIVERGED}


def test_a_variant_that_diverged_is_not_judged_by_the_seeds_that_survive():
    studies = [rival_study(length, 1.5) for length in (2, 6, 20)]
    diverge(studies[0].rows[1])
    ours, *longer = (found for found in judge(studies) if found.variant == "LPA")
    assert ours.equal_tokens.verdict == "undecided (a run diverged)"
    assert ours.fitted.equal_flops.verdict == "undecided (a run diverged)"
    assert ours.fitted.gains == ours.interpolated.gains == {}
    assert all(found.equal_tokens.verdict == "better" for found in longer)
    assert all(found.fitted.equal_flops.verdict == "better" for found in longer)


def test_a_baseline_that_diverged_decides_nothing_at_its_length_and_by_its_curve():
    studies = [rival_study(length, 1.5) for length in (2, 6, 20)]
    diverge(studies[0].rows[0])
    judged = judge(studies)
    ours, *longer = (found for found in judged if found.variant == "LPA")
    assert ours.equal_tokens.diverged
    assert all(found.equal_tokens.verdict == "better" for found in longer)
    assert all(found.fitted.equal_flops.diverged for found in (ours, *longer))
    assert not any(found.fitted.gains or found.interpolated.gains for found in judged)


def test_another_baseline_is_that_of_equal_tokens_and_leaves_the_curve_alone():
    """Also where a length lacks it, which the curve still needs."""
    studies = [rival_study(length, 1.5) for length in (2, 6, 20)]
    by_dense = {(found.variant, found.tokens): found for found in judge(studies)}
    by_lpa = {(found.variant, found.tokens): found for found in judge(studies, "LPA")}
    assert set(by_lpa) == {(row.variant, row.tokens) for result in studies for row in result.rows}
    for (variant, tokens), found in by_lpa.items():
        before = by_dense["LPA", tokens]
        if variant == "dense":
            assert found.equal_tokens.ratio == pytest.approx(1 / before.equal_tokens.ratio)
            assert found.fitted.equal_flops is None
            assert found.fitted == by_dense["dense", tokens].fitted
        else:
            assert found.equal_tokens is None
            assert (found.fitted, found.interpolated) == (before.fitted, before.interpolated)
    for result in studies[1:]:
        del result.rows[1]
    dense, ours, *longer = judge(studies, "LPA")
    assert [found.variant for found in longer] == ["dense"] * 2
    assert all(found.equal_tokens is None for found in longer)
    assert dense.equal_tokens == by_lpa["dense", dense.tokens].equal_tokens
    assert ours.fitted.gains == by_dense["LPA", ours.tokens].fitted.gains
