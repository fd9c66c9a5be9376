"""A baseline's test loss as a function of training FLOPs, from its runs of one seed at several lengths."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lpa.study.results.statistics import PowerLaw

# Of a number of FLOPs, so that it is one that a float holds.
_MAX_EXPONENT = 700


class Curve(ABC):
    losses: tuple[float, ...]

    @abstractmethod
    def loss_at(self, flops: float) -> float | None:
        """None where the curve gives none."""

    @abstractmethod
    def flops_at(self, loss: float) -> float | None:
        """None where the curve does not fall, or reaches the loss at no number of FLOPs."""

    def covers(self, loss: float) -> bool:
        """Whether a loss is within those that the curve is made of."""
        return min(self.losses) <= loss <= max(self.losses)


# From FLOPs -> loss, all of them finite and positive; None where there are too few lengths.
CurveKind = Callable[[Mapping[float, float]], Curve | None]


@dataclass(frozen=True)
class FittedCurve(Curve):
    """The power law without a floor of docs/protocol.md, which need not meet the losses it is made of."""

    law: PowerLaw
    losses: tuple[float, ...]

    @classmethod
    def from_losses(cls, losses: Mapping[float, float]) -> "FittedCurve | None":
        """Fit the losses of three lengths or more; None for fewer."""
        law = PowerLaw.fit(list(losses), list(losses.values()))
        return None if law is None else cls(law, tuple(losses.values()))

    def loss_at(self, flops: float) -> float | None:
        return self.law.factor * flops**self.law.exponent

    def flops_at(self, loss: float) -> float | None:
        if self.law.exponent >= 0 or not is_loss(loss):
            return None
        return _exp(math.log(loss / self.law.factor) / self.law.exponent)


@dataclass(frozen=True)
class InterpolatedCurve(Curve):
    """Straight lines in logarithms from each length to the next.

    It meets the losses it is made of, gives none at FLOPs beyond its lengths, and extends its first and last
    line to losses beyond its own. Where losses bend as they do, falling ever more slowly, a line is slightly
    above what a run between two lengths would reach.
    """

    flops: tuple[float, ...]
    losses: tuple[float, ...]

    @classmethod
    def from_losses(cls, losses: Mapping[float, float]) -> "InterpolatedCurve | None":
        """Interpolate the losses of two lengths or more; None for fewer."""
        points = sorted(losses.items())
        return cls(*zip(*points, strict=True)) if len(points) > 1 else None

    def loss_at(self, flops: float) -> float | None:
        if not self.flops[0] <= flops <= self.flops[-1]:
            return None
        return math.exp(np.interp(math.log(flops), np.log(self.flops), np.log(self.losses)))

    def flops_at(self, loss: float) -> float | None:
        if not is_loss(loss) or not (np.diff(self.losses) < 0).all():
            return None
        later = int(np.searchsorted(-np.array(self.losses), -loss))
        end = min(max(later, 1), len(self.losses) - 1)
        x, x_end = map(math.log, self.flops[end - 1 : end + 1])
        y, y_end = map(math.log, self.losses[end - 1 : end + 1])
        return _exp(x + (math.log(loss) - y) / (y_end - y) * (x_end - x))


def compute_equivalent_gain(loss: float, flops: float, curve: Curve) -> tuple[float, bool] | None:
    """FLOPs that the baseline needs for a loss, by its curve, over those used.

    Returns:
        The gain, and whether it is extrapolated to a loss beyond the baseline's own; None where the curve
        has no such FLOPs.
    """
    needed = curve.flops_at(loss)
    return None if needed is None else (needed / flops, not curve.covers(loss))


def is_loss(value: float) -> bool:
    """Whether it has a logarithm, as the losses of a curve must."""
    return math.isfinite(value) and value > 0


def _exp(value: float) -> float | None:
    return math.exp(value) if abs(value) <= _MAX_EXPONENT else None
