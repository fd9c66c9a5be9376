"""The judgements of docs/protocol.md: corrected for many comparisons, at equal FLOPs, as compute saved."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lpa.study.results.statistics import PowerLaw

LEVEL = 0.05


@dataclass
class Comparison:
    """A ratio to the baseline, paired by seed, as one of a family.

    Attributes:
        ratio: geometric mean over seeds.
        low, high: its interval at the level that Holm's step gives it.
        p_adjusted: by Holm's procedure; nan with fewer than two pairs.
    """

    ratio: float
    low: float
    high: float
    p_adjusted: float

    @property
    def differs(self) -> bool:
        return self.p_adjusted < LEVEL


def holm(p_values: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Adjusted p-value and level of the test, by name (Holm 1979).

    The k-th smallest of m p-values is tested at 0.05 / (m - k + 1); adjusted p-values never fall with k.
    """
    count, largest = len(p_values), 0.0
    found = {}
    for index, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (count - index) * p_values[name]))
        found[name] = (largest, LEVEL / (count - index))
    return found


def compare_family(
    ours: Mapping[str, Mapping[int, float]], baseline: Mapping[int, float]
) -> dict[str, Comparison]:
    """Each variant against the baseline, by Student's t over log ratios, corrected by Holm.

    Args:
        ours: variant -> seed -> a positive figure, such as a perplexity.

    Returns:
        Those with two seeds or more in common with the baseline; all of them are the family.
    """
    logs = {
        name: np.array(
            [math.log(values[s] / baseline[s]) for s in sorted(values.keys() & baseline.keys())]
        )
        for name, values in ours.items()
    }
    logs = {name: values for name, values in logs.items() if len(values) > 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of equal values
        tests = {name: stats.ttest_1samp(values, 0.0) for name, values in logs.items()}
        adjusted = holm({name: float(test.pvalue) for name, test in tests.items()})
        compared = {}
        for name, test in tests.items():
            p_adjusted, level = adjusted[name]
            interval = test.confidence_interval(1 - level)
            mean, low, high = (
                math.exp(x) for x in (logs[name].mean(), interval.low, interval.high)
            )
            compared[name] = Comparison(mean, low, high, p_adjusted)
    return compared


def compute_equivalent_gain(
    loss: float, flops: float, baseline: Mapping[float, float]
) -> tuple[float, bool] | None:
    """FLOPs that the baseline needs for a loss over those used: C_dense(L) / C with L = a C^(-b).

    Args:
        baseline: FLOPs -> loss of the baseline's runs with one seed, at three lengths or more.

    Returns:
        The gain, and whether the loss is outside the baseline's own; None where no falling curve fits.
    """
    law = PowerLaw.fit(list(baseline), list(baseline.values()))
    if law is None or law.exponent >= 0:
        return None
    needed = (loss / law.factor) ** (1 / law.exponent)
    losses = baseline.values()
    return needed / flops, not min(losses) <= loss <= max(losses)
