import math

import numpy as np
import pytest
from scipy import stats

from lpa.study.results.comparison import compare_family, compute_equivalent_gain, holm


def test_holm_as_in_the_textbook():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
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
    assert found["steady"].p_adjusted == pytest.approx(2 * p)
    half = stats.t.ppf(1 - 0.025 / 2, 2) * np.std(logs, ddof=1) / math.sqrt(3)
    assert found["steady"].ratio == pytest.approx(math.exp(np.mean(logs)))
    assert found["steady"].high == pytest.approx(math.exp(np.mean(logs) + half))


def test_the_gain_is_what_dense_would_need_over_what_was_used():
    dense = {c: 8 * c**-0.05 for c in (1e13, 3e13, 1e14)}
    same, extrapolated = compute_equivalent_gain(dense[3e13], 3e13, dense)
    assert same == pytest.approx(1)
    assert not extrapolated
    half, _ = compute_equivalent_gain(dense[3e13], 1.5e13, dense)
    assert half == pytest.approx(2)
    assert compute_equivalent_gain(8 * 1e15**-0.05, 1e14, dense)[1]
    assert compute_equivalent_gain(4.0, 1e13, {1e13: 4.0, 2e13: 4.1, 3e13: 4.2}) is None
