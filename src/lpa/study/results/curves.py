"""A baseline's test loss as a function of training FLOPs, from its runs of one seed at several lengths."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lpa.study.results.statistics import PowerLaw

# Of a number of FLOPs, below what a float holds.
_MAX_EXPONENT = 700


class Curve(Protocol):
    def loss_at(self, flops: float) -> float | None:
        """None where the curve says nothing."""

    def flops_at(self, loss: float) -> float | None:
        """None where the curve does not fall, or reaches the loss at no number of FLOPs."""


# From FLOPs -> loss; None where there are too few lengths.
CurveKind = Callable[[Mapping[float, float]], Curve | None]


@dataclass(frozen=True)
class FittedCurve:
    """The power law without a floor of docs/protocol.md, which need not meet the baseline's own losses."""

    law: PowerLaw

    @classmethod
    def through(cls, losses: Mapping[float, float]) -> "FittedCurve | None":
        """From three lengths or more."""
        law = PowerLaw.fit(list(losses), list(losses.values()))
        return None if law is None else cls(law)

    def loss_at(self, flops: float) -> float | None:
        return self.law.factor * flops**self.law.exponent

    def flops_at(self, loss: float) -> float | None:
        if self.law.exponent >= 0 or not _has_logarithm(loss):
            return None
        return _exp(math.log(loss / self.law.factor) / self.law.exponent)


@dataclass(frozen=True)
class InterpolatedCurve:
    """Straight lines in logarithms from each of the baseline's lengths to the next.

    It meets the baseline's own losses, gives none at FLOPs beyond its lengths, and extends its first and
    last line to losses beyond its own.
    """

    log_flops: tuple[float, ...]
    log_losses: tuple[float, ...]

    @classmethod
    def through(cls, losses: Mapping[float, float]) -> "InterpolatedCurve | None":
        """From two lengths or more, of which the losses have logarithms."""
        points = sorted((flops, loss) for flops, loss in losses.items() if _has_logarithm(loss))
        if len(points) < 2:
            return None
        return cls(*(tuple(map(math.log, values)) for values in zip(*points, strict=True)))

    def loss_at(self, flops: float) -> float | None:
        at = math.log(flops)
        if not self.log_flops[0] <= at <= self.log_flops[-1]:
            return None
        return math.exp(np.interp(at, self.log_flops, self.log_losses))

    def flops_at(self, loss: float) -> float | None:
        if not _has_logarithm(loss) or not (np.diff(self.log_losses) < 0).all():
            return None
        wanted = math.log(loss)
        later = int(np.searchsorted(-np.array(self.log_losses), -wanted))
        end = min(max(later, 1), len(self.log_losses) - 1)
        (x, x_end), (y, y_end) = (
            self.log_flops[end - 1 : end + 1],
            self.log_losses[end - 1 : end + 1],
        )
        return _exp(x + (wanted - y) / (y_end - y) * (x_end - x))


def compute_equivalent_gain(
    loss: float, flops: float, baseline: Mapping[float, float], kind: CurveKind
) -> tuple[float, bool] | None:
    """FLOPs that the baseline needs for a loss, by its curve, over those used.

    Args:
        baseline: FLOPs -> loss of the baseline's runs with one seed.

    Returns:
        The gain, and whether the loss is outside the baseline's own; None where the curve has no such FLOPs.
    """
    curve = kind(baseline)
    needed = None if curve is None else curve.flops_at(loss)
    if needed is None:
        return None
    losses = baseline.values()
    return needed / flops, not min(losses) <= loss <= max(losses)


def _has_logarithm(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _exp(value: float) -> float | None:
    return math.exp(value) if value <= _MAX_EXPONENT else None
