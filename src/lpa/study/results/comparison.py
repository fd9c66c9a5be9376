"""Comparisons of a family with its baseline, corrected for their number as docs/protocol.md says."""

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lpa.study.results.statistics import A_RUN_DIVERGED, NO_DIFFERENCE, log_ratios

LEVEL = 0.05


@dataclass
class Comparison:
    """A ratio to the baseline, paired by seed, as one of a family.

    Attributes:
        ratio: geometric mean over seeds.
        low, high: its interval at the level that Holm's step gives it.
        p_adjusted: by Holm's procedure.
        count: the seeds that it rests on.
        diverged: whether a run of one of the two did. The seeds that survive decide nothing then, and all
            figures are nan.
    """

    ratio: float
    low: float
    high: float
    p_adjusted: float
    count: int
    diverged: bool = False

    @property
    def differs(self) -> bool:
        return self.p_adjusted < LEVEL

    @property
    def verdict(self) -> str:
        if self.diverged:
            return A_RUN_DIVERGED
        if not self.differs:
            return NO_DIFFERENCE
        return "better" if self.ratio < 1 else "worse"


def holm(p_values: Mapping[str, float], count: int) -> dict[str, tuple[float, float]]:
    """Adjusted p-value and level of the test, by name (Holm 1979).

    The k-th smallest of m p-values is tested at 0.05 / (m - k + 1); adjusted p-values never fall with k.

    Args:
        count: m, where some of the family have no p-value yet.
    """
    largest = 0.0
    found = {}
    for index, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (count - index) * p_values[name]))
        found[name] = (largest, LEVEL / (count - index))
    return found


def compare_family(
    ours: Mapping[str, Mapping[int, float]],
    baseline: Mapping[int, float],
    diverged: Collection[str] = (),
) -> dict[str, Comparison]:
    """Each variant against the baseline, by Student's t over log ratios, corrected by Holm.

    Args:
        ours: variant -> seed -> a figure, such as a perplexity. All of them are the family, finished or not.
        diverged: those of them that are not judged, as a run of theirs or of the baseline diverged.

    Returns:
        Those that diverged, and those with two seeds or more in common with the baseline, of which all
        figures are positive numbers.
    """
    judged = {name: values for name, values in ours.items() if name not in diverged}
    logs = {name: log_ratios(values, baseline) for name, values in judged.items()}
    logs = {name: found for name, found in logs.items() if len(found) > 1}
    with warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of equal values
        tests = {name: stats.ttest_1samp(values, 0.0) for name, values in logs.items()}
        # Figures that are all those of the baseline have no p-value, and differ least.
        p_values = {
            name: float(np.nan_to_num(test.pvalue, nan=1.0)) for name, test in tests.items()
        }
        adjusted = holm(p_values, len(ours))
        compared = {
            name: Comparison(math.nan, math.nan, math.nan, math.nan, 0, diverged=True)
            for name in diverged
        }
        for name, test in tests.items():
            p_adjusted, level = adjusted[name]
            interval = test.confidence_interval(1 - level)
            mean, low, high = map(float, np.exp([logs[name].mean(), interval.low, interval.high]))
            compared[name] = Comparison(mean, low, high, p_adjusted, len(logs[name]))
    return compared
