"""The bootstrap over parts of a text: how far a figure would move on another text of its kind."""

import numpy as np

DRAWS = 1000
CONFIDENCE = 0.95


def resampled_sums(parts: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Sums over parts drawn with replacement, as many as there are (Efron 1979).

    Args:
        parts: (quantities, parts).

    Returns:
        (draws, quantities); the quantities of a draw are of the same parts.
    """
    generator = np.random.default_rng(seed)
    count = parts.shape[1]
    sums = np.empty((draws, parts.shape[0]))
    for draw in range(draws):
        sums[draw] = parts[:, generator.integers(0, count, size=count)].sum(axis=1)
    return sums


def interval(values: np.ndarray) -> tuple[float, float]:
    """The percentile interval that holds 95% of the draws."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
