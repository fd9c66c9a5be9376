"""Judgements of studies whose perplexities follow a known law."""

import math

import pytest
from helpers.study_runs import rival_study

from lpa.study.results.judgement import judge


def test_a_known_saving_is_found_at_every_length():
    found = judge([rival_study(20, 1.5), rival_study(2, 1.5), rival_study(6, 1.5)])
    assert [row.variant for row in found] == ["LPA"] * 3
    assert [row.tokens for row in found] == sorted(row.tokens for row in found)
    for row in found:
        assert list(row.gains.values()) == pytest.approx([1.5] * 3)
        assert row.equal_flops.ratio < 1
        assert row.equal_flops.differs
        assert row.equal_tokens.ratio < 1


def test_two_lengths_give_no_curve():
    for row in judge([rival_study(2, 1.5), rival_study(6, 1.5)]):
        assert row.equal_flops is None
        assert row.gains == {}
        assert row.equal_tokens is not None


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0])
@pytest.mark.parametrize("variant", ["dense", "LPA"])
def test_a_perplexity_that_is_none_leaves_the_other_seeds(variant, value):
    studies = [rival_study(length, 1.5) for length in (2, 6, 20)]
    row = next(row for row in studies[0].rows if row.variant == variant)
    row.perplexities[1] = value
    for found in judge(studies):
        assert set(found.gains) >= {0, 2}
        assert all(math.isfinite(gain) for gain in found.gains.values())


DIVERGED = "exit code 2: lpa: error: training: step 3: the loss is nan"


def diverge(row):
    del row.perplexities[1]
    row.missing, row.failed = [1], {1: DIVERGED}


def test_a_variant_that_diverged_is_not_judged_by_the_seeds_that_survive():
    studies = [rival_study(length, 1.5) for length in (2, 6, 20)]
    diverge(studies[0].rows[1])
    ours, *longer = judge(studies)
    assert ours.equal_tokens.verdict == ours.equal_flops.verdict == "undecided (a run diverged)"
    assert ours.gains == {}
    assert all(found.equal_tokens.verdict == "better" for found in longer)
    assert all(found.equal_flops.verdict == "better" for found in longer)


def test_a_baseline_that_diverged_decides_nothing_at_its_length_and_by_its_curve():
    studies = [rival_study(length, 1.5) for length in (2, 6, 20)]
    diverge(studies[0].rows[0])
    ours, *longer = judge(studies)
    assert ours.equal_tokens.diverged
    assert all(found.equal_tokens.verdict == "better" for found in longer)
    assert all(found.equal_flops.diverged and not found.gains for found in (ours, *longer))


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
            assert (found.equal_flops, found.gains) == (None, {})
        else:
            assert found.equal_tokens is None
            assert (found.equal_flops, found.gains) == (before.equal_flops, before.gains)
    for result in studies[1:]:
        del result.rows[1]
    [dense, ours] = judge(studies, "LPA")
    assert dense.equal_tokens == by_lpa["dense", dense.tokens].equal_tokens
    assert ours.gains == by_dense["LPA", ours.tokens].gains
