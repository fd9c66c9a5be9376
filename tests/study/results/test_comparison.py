import math

import numpy as np
import pytest
from scipy import stats

from lpa.study.results.comparison import compare_family, holm


def test_holm_as_in_the_textbook():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}, 4)
    adjusted = {name: p for name, (p, _) in found.items()}
    assert adjusted == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    levels = {name: level for name, (_, level) in found.items()}
    assert levels == pytest.approx({"d": 0.05 / 4, "a": 0.05 / 3, "c": 0.05 / 2, "b": 0.05})


def test_a_family_is_compared_pair_by_pair_at_the_levels_of_holm():
    dense = {0: 50.0, 1: 52.0, 2: 51.0}
    ours = {
        "steady": {0: 45.0, 1: 46.9, 2: 45.8},
        "noisy": {0: 45.0, 1: 55.0, 2: 48.0},
        "one seed": {0: 40.0},
    }
    found = compare_family(ours, dense)
    assert set(found) == {"steady", "noisy"}
    assert found["steady"].differs
    assert not found["noisy"].differs
    logs = [math.log(ours["steady"][s] / dense[s]) for s in dense]
    p = stats.ttest_1samp(logs, 0).pvalue
    assert found["steady"].p_adjusted == pytest.approx(3 * p)  # the one to come counts
    half = stats.t.ppf(1 - 0.05 / 3 / 2, 2) * np.std(logs, ddof=1) / math.sqrt(3)
    assert found["steady"].ratio == pytest.approx(math.exp(np.mean(logs)))
    assert found["steady"].high == pytest.approx(math.exp(np.mean(logs) + half))


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0, 1e60])
def test_a_figure_that_is_no_perplexity_changes_no_other_comparison(value):
    dense = {0: 50.0, 1: 52.0, 2: 51.0}
    steady = {0: 45.0, 1: 46.9, 2: 45.8}
    expected = compare_family({"steady": steady, "other": {}}, dense)["steady"]
    for names in (("steady", "other"), ("other", "steady")):
        ours = {"steady": steady, "other": {0: 49.0, 1: value, 2: 50.0}}
        found = compare_family({name: ours[name] for name in names}, dense)
        assert found["steady"] == expected
        assert ("other" in found) == (value == 1e60)
        with_baseline = compare_family(ours, {**dense, 1: value})
        assert set(with_baseline) == (set(names) if value == 1e60 else set())


def test_one_of_a_family_that_diverged_is_not_compared_and_still_counts():
    dense = {0: 50.0, 1: 52.0, 2: 51.0}
    ours = {"steady": {0: 45.0, 1: 46.9, 2: 45.8}, "survivors": {0: 25.0, 1: 26.0}}
    found = compare_family(ours, dense, diverged={"survivors"})
    assert found["survivors"].verdict == "undecided (a run diverged)"
    assert not found["survivors"].differs
    assert math.isnan(found["survivors"].ratio)
    assert found["steady"] == compare_family({**ours, "survivors": {}}, dense)["steady"]
    assert found["steady"].verdict == "better"
    assert compare_family({"steady": dense}, ours["steady"])["steady"].verdict == "worse"
    assert compare_family({"same": dense}, dense)["same"].verdict == "no difference shown"


def test_equal_figures_differ_least():
    dense = {0: 50.0, 1: 52.0}
    found = compare_family({"same": dense, "less": {0: 40.0, 1: 41.7}}, dense)
    assert found["same"].p_adjusted == 1
    assert found["less"].p_adjusted < 1
