"""Means over seeds, paired differences with intervals, power laws; verdicts from intervals alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95

# Verdicts where there is no interval.
ONE_SEED = "undecided (one seed)"
NOT_FINITE = "undecided (a perplexity is not finite)"


@dataclass
class Summary:
    """Mean and deviation (of the sample, n - 1) over seeds; the deviation of one value is nan."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary":
        with np.errstate(invalid="ignore"):  # of a model that diverged, nan too
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return cls(float(np.mean(values)), deviation, len(values))


@dataclass
class Difference:
    """Change of perplexity against a baseline, as a share of it; paired by seed.

    Attributes:
        mean: geometric mean of the ratios, minus 1.
        low, high: its 95% interval by Student's t over the log ratios; nan with fewer than two pairs, or
            where a model's perplexity is not finite.
        count: pairs.
    """

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, ours: dict[int, float], baseline: dict[int, float]) -> "Difference | None":
        """From perplexities by seed; None where no seed is in both."""
        seeds = sorted(ours.keys() & baseline.keys())
        if not seeds:
            return None
        logs = np.array([math.log(ours[seed] / baseline[seed]) for seed in seeds])
        mean, count = float(logs.mean()), len(logs)
        if count < 2 or not math.isfinite(mean):
            return cls(_change(mean), math.nan, math.nan, count)
        error = float(logs.std(ddof=1)) / math.sqrt(count)
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
        return cls(_change(mean), _change(mean - half), _change(mean + half), count)

    @property
    def verdict(self) -> str:
        """`better` or `worse` only where the whole interval is on one side of nought."""
        if self.count < 2:
            return ONE_SEED
        if math.isnan(self.low):
            return NOT_FINITE
        if self.high < 0:
            return "better"
        if self.low > 0:
            return "worse"
        return "no difference shown"


def _change(log_ratio: float) -> float:
    """As a share; infinite beyond what a float holds."""
    with np.errstate(over="ignore"):
        return float(np.expm1(log_ratio))


@dataclass
class PowerLaw:
    """y = factor · x^exponent, fitted to logarithms by least squares.

    Attributes:
        low, high: 95% interval of the exponent, by Student's t over the residuals of the points.
    """

    factor: float
    exponent: float
    low: float
    high: float
    count: int

    @classmethod
    def fit(cls, x: Sequence[float], y: Sequence[float]) -> "PowerLaw | None":
        """None with fewer than three different x."""
        if len(set(x)) < 3:
            return None
        line = stats.linregress(np.log(x), np.log(y))
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2)) * float(line.stderr)
        slope = float(line.slope)
        return cls(math.exp(line.intercept), slope, slope - half, slope + half, len(x))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Numbers of the points, by cost, that no other point beats in cost and value, less being better."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    front: list[int] = []
    for i in order:
        if not front or points[i][1] < points[front[-1]][1]:
            front.append(i)
    return front
