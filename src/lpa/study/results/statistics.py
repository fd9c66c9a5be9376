"""Means over seeds, paired differences with intervals, power laws; verdicts from intervals alone."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95

NO_DIFFERENCE = "no difference shown"
# Verdicts where there is no interval.
ONE_SEED = "undecided (one seed)"
NOT_FINITE = "undecided (a perplexity is not finite)"
A_RUN_DIVERGED = "undecided (a run diverged)"


@dataclass
class Summary:
    """Mean and deviation (of the sample, n - 1) over seeds; the deviation of one value is nan."""

    mean: float
    std: float
    count: int

    @classmethod
    def from_values(cls, values: Sequence[float]) -> "Summary":
        with np.errstate(all="ignore"):  # of a model that diverged, infinite or nan too
            std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
            return cls(float(np.mean(values)), std, len(values))


@dataclass
class Difference:
    """Change against a baseline, as a fraction of it; paired by seed.

    Attributes:
        mean: geometric mean of the ratios, minus 1; nan where a value is not a positive number.
        low, high: its 95% interval by Student's t over the log ratios; nan with fewer than two pairs, or
            where the mean is.
        count: pairs.
    """

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def between(cls, ours: dict[int, float], baseline: dict[int, float]) -> "Difference | None":
        """From values by seed, such as perplexities; None where no seed is in both."""
        count = len(ours.keys() & baseline.keys())
        if not count:
            return None
        logs = log_ratios(ours, baseline)
        if not len(logs):
            return cls(math.nan, math.nan, math.nan, count)
        mean, (low, high) = float(logs.mean()), mean_interval(logs)
        return cls(_change(mean), _change(low), _change(high), count)

    @property
    def verdict(self) -> str:
        """`better` or `worse` only where the whole interval is on one side of zero."""
        if math.isnan(self.mean):
            return NOT_FINITE
        if self.count < 2:
            return ONE_SEED
        if self.high < 0:
            return "better"
        if self.low > 0:
            return "worse"
        return NO_DIFFERENCE


def _change(log_ratio: float) -> float:
    """The change as a fraction; infinite beyond what a float holds."""
    with np.errstate(over="ignore"):
        return float(np.expm1(log_ratio))


def log_ratios(values: Mapping[int, float], baseline: Mapping[int, float]) -> np.ndarray:
    """Log ratios of the seeds that both have, in order; empty where a value is no positive number."""
    seeds = sorted(values.keys() & baseline.keys())
    pairs = np.array([(values[seed], baseline[seed]) for seed in seeds], dtype=np.float64)
    pairs = pairs.reshape(len(seeds), 2)
    if not (np.isfinite(pairs) & (pairs > 0)).all():
        return np.array([])
    return np.log(pairs[:, 0]) - np.log(pairs[:, 1])


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The 95% interval of a mean by Student's t; nan of fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    with warnings.catch_warnings():
        # Equal values have an interval too, without width; scipy warns of them.
        warnings.simplefilter("ignore", RuntimeWarning)
        found = stats.ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return float(found.low), float(found.high)


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
        """From the points that have logarithms; None with fewer than three different x among them."""
        points = np.array([x, y], dtype=np.float64)
        points = points[:, (np.isfinite(points) & (points > 0)).all(axis=0)]
        if len(set(points[0])) < 3:
            return None
        line = stats.linregress(*np.log(points))
        count = points.shape[1]
        error = np.nan_to_num(line.stderr)  # of equal values, whose correlation is nan
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 2) * error)
        slope = float(line.slope)
        with np.errstate(over="ignore"):
            factor = float(np.exp(line.intercept))
        return cls(factor, slope, slope - half, slope + half, count)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Numbers of the points, by cost, that no other point beats in cost and value, less being better."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    front: list[int] = []
    for i in order:
        if not front or points[i][1] < points[front[-1]][1]:
            front.append(i)
    return front
