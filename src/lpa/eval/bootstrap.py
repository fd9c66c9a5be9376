"""The bootstrap over parts of a text: how far a figure would move on another text of its kind."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
_AT_ONCE = 2**20  # numbers drawn, which bounds memory


def bootstrap(
    statistic: Callable[..., np.ndarray], *parts: np.ndarray, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Standard error and 95% percentile interval of a figure of sums over parts (Efron 1979).

    Each draw takes as many parts as there are, with replacement, the same of all quantities.

    Args:
        statistic: makes figures (draws,) of the sums of each quantity, (draws,) each.
        parts: one array (parts,) for each quantity, at least two parts.
    """

    def figure(*drawn: np.ndarray, axis: int = -1) -> Any:
        return statistic(*(values.sum(axis=axis) for values in drawn))

    # A model that diverged has losses without a mean; its figures are infinite or nan.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            parts,
            figure,
            paired=True,
            vectorized=True,
            n_resamples=NUM_RESAMPLES,
            batch=max(1, _AT_ONCE // len(parts[0])),
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    low, high = found.confidence_interval
    return float(found.standard_error), (float(low), float(high))
