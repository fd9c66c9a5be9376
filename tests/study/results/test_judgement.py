"""Judgements of studies whose perplexities follow a known law."""

import math

import pytest
from helpers.study_runs import rival_study

from lpa.study.results.curves import FittedCurve, InterpolatedCurve
from lpa.study.results.judgement import judge


def test_a_known_saving_is_found_at_every_length():
    found = judge([rival_study(20, 1.5), rival_study(2, 1.5), rival_study(6, 1.5)])
    assert [row.variant for row in found] == ["dense", "LPA"] * 3
    assert [row.tokens for row in found] == sorted(row.tokens for row in found)
    for row in found[1::2]:
        assert list(row.gains.values()) == pytest.approx([1.5] * 3)
        assert row.equal_flops.ratio < 1
        assert row.equal_flops.differs
        assert row.equal_tokens.ratio < 1


def test_two_lengths_give_no_curve():
    for row in judge([rival_study(2, 1.5), rival_study(6, 1.5)]):
        assert row.equal_flops is None
        assert row.gains == {}
        assert (row.equal_tokens is None) == (row.variant == "dense")


@pytest.mark.parametrize("kind", [FittedCurve.from_losses, InterpolatedCurve.from_losses])
def test_a_seed_that_lacks_a_length_of_the_curve_waits_for_it(kind):
    studies = [rival_study(length, 1.5) for length in (2, 6, 20, 60)]
    del studies[1].rows[0].perplexities[1]
    shortest, *longer = (found for found in judge(studies, kind=kind) if found.variant == "LPA")
    for found in (shortest, *longer):
        assert set(found.gains) == {0, 2}
    assert [found.equal_flops.count for found in longer] == [2] * 3
    if kind == InterpolatedCurve.from_losses:
        assert shortest.equal_flops is None


@pytest.mark.parametrize("kind", [FittedCurve.from_losses, InterpolatedCurve.from_losses])
def test_a_seed_with_as_many_lengths_but_others_has_another_curve(kind):
    """Of four lengths each seed has three."""
    studies = [rival_study(length, 1.5) for length in (2, 6, 20, 60)]
    for seed, result in enumerate(studies[:3]):
        del result.rows[0].perplexities[seed]
    assert not any(found.gains or found.equal_flops for found in judge(studies, kind=kind))


def test_two_lengths_give_a_line():
    """At the shortest length, LPA has fewer FLOPs than dense ever."""
    found = judge([rival_study(2, 1.5), rival_study(6, 1.5)], kind=InterpolatedCurve.from_losses)
    short, long = (row for row in found if row.variant == "LPA")
    for row in (short, long):
        assert list(row.gains.values()) == pytest.approx([1.5] * 3)
    assert short.equal_flops is None
    assert long.equal_flops.differs


def test_the_gain_of_the_baseline_says_how_far_its_curve_misses_it():
    """The losses of the middle length are lower than a power law's."""
    studies = [rival_study(length, 1.5) for length in (2, 6, 20)]
    middle = studies[1].rows[0]
    middle.perplexities = {seed: value * 0.96 for seed, value in middle.perplexities.items()}
    fitted = [row for row in judge(studies) if row.variant == "dense"]
    for row, above in zip(fitted, (False, True, False), strict=True):
        assert {gain > 1.02 for gain in row.gains.values()} == {above}
        assert {gain < 0.98 for gain in row.gains.values()} == {not above}
        assert row.equal_flops is None
    for row in judge(studies, kind=InterpolatedCurve.from_losses):
        if row.variant == "dense":
            assert list(row.gains.values()) == pytest.approx([1] * 3)


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0])
@pytest.mark.parametrize("variant", ["dense", "LPA"])
@pytest.mark.parametrize("kind", [FittedCurve.from_losses, InterpolatedCurve.from_losses])
def test_a_perplexity_that_is_none_leaves_the_other_seeds(kind, variant, value):
    studies = [rival_study(length, 1.5) for length in (2, 6, 20, 60)]
    row = next(row for row in studies[1].rows if row.variant == variant)
    row.perplexities[1] = value
    for found in judge(studies, kind=kind):
        lost = variant == "dense" or (found.variant, found.tokens) == ("LPA", row.tokens)
        assert set(found.gains) == ({0, 2} if lost else {0, 1, 2})
        assert all(math.isfinite(gain) for gain in found.gains.values())


DIVERGED = "exit code 2: lpa: error: training: step 3: the loss is nan"


def diverge(row):
    del row.perplexities[1]
    row.missing, row.failed = [1], {1: DIVERGED}


def test_a_variant_that_diverged_is_not_judged_by_the_seeds_that_survive():
    studies = [rival_study(length, 1.5) for length in (2, 6, 20)]
    diverge(studies[0].rows[1])
    ours, *longer = (found for found in judge(studies) if found.variant == "LPA")
    assert ours.equal_tokens.verdict == ours.equal_flops.verdict == "undecided (a run diverged)"
    assert ours.gains == {}
    assert all(found.equal_tokens.verdict == "better" for found in longer)
    assert all(found.equal_flops.verdict == "better" for found in longer)


def test_a_baseline_that_diverged_decides_nothing_at_its_length_and_by_its_curve():
    studies = [rival_study(length, 1.5) for length in (2, 6, 20)]
    diverge(studies[0].rows[0])
    judged = judge(studies)
    ours, *longer = (found for found in judged if found.variant == "LPA")
    assert ours.equal_tokens.diverged
    assert all(found.equal_tokens.verdict == "better" for found in longer)
    assert all(found.equal_flops.diverged for found in (ours, *longer))
    assert not any(found.gains for found in judged)


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
            assert (found.equal_flops, found.gains) == (None, by_dense["dense", tokens].gains)
        else:
            assert found.equal_tokens is None
            assert (found.equal_flops, found.gains) == (before.equal_flops, before.gains)
    for result in studies[1:]:
        del result.rows[1]
    dense, ours, *longer = judge(studies, "LPA")
    assert [found.variant for found in longer] == ["dense"] * 2
    assert all(found.equal_tokens is None for found in longer)
    assert dense.equal_tokens == by_lpa["dense", dense.tokens].equal_tokens
    assert ours.gains == by_dense["LPA", ours.tokens].gains
