"""Learning rates for longer runs, from tunings at two lengths (docs/protocol.md)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from lpa.errors import UserError
from lpa.study.rates.rate_tuning import best_rates, extend_rates
from lpa.study.results.families import are_comparable
from lpa.study.results.study_results import StudyResult, find_studies
from lpa.study.results.tuning_results import check_no_trial_lost

MAX_EXPONENT = 0.5


def read_finished_tuning(directory: Path) -> StudyResult:
    """The tuning in a directory, if its best rates are those that the protocol takes.

    Raises:
        UserError: there is no tuning or more than one, a trial was lost, or the rates are to be extended.
    """
    found = [
        study
        for study in find_studies([directory])
        if any(trial.tunes for trial in study.index.variants)
    ]
    if len(found) != 1:
        raise UserError(
            f"{directory}: holds {len(found)} tunings; expected one, as `lpa study rivals --tune` leaves it"
        )
    [result] = found
    check_no_trial_lost(result)
    rates = sorted({trial.overrides["optim.lr"] for trial in result.index.variants})
    best = best_rates(result)
    if extend_rates(rates, best.values()) != rates:
        arm = next(name for name in best if extend_rates(rates, [best[name]]) != rates)
        raise UserError(
            f"{directory}: the best rate of {arm} is at the end of those tried, {rates[0]:g} to "
            f"{rates[-1]:g}; start the tuning again to extend them"
        )
    return result


def loss_by_rate(result: StudyResult, variant: str) -> dict[float, float]:
    """The mean validation loss of each rate of a variant that has finished all its runs, none of them
    without a finite loss."""
    overrides = {trial.name: trial.overrides for trial in result.index.variants}
    tunes = {trial.name: trial.tunes for trial in result.index.variants}
    return {
        overrides[row.variant]["optim.lr"]: math.log(row.validation)
        for row in result.rows
        if tunes[row.variant] == variant
        and row.validation is not None
        and math.isfinite(row.validation)
        and not row.missing
    }


def is_inside(losses: dict[float, float]) -> bool:
    """Whether the best rate has a neighbor on both sides, so that a parabola can be fitted."""
    best = min(losses, key=losses.__getitem__)
    return min(losses) < best < max(losses)


def parabola_vertex(losses: dict[float, float]) -> float:
    """The rate at the lowest point of a parabola over ln(rate), through the best rate and its neighbors.

    The best rate itself where it has no neighbor on one side.
    """
    rates = sorted(losses)
    best = min(rates, key=losses.__getitem__)
    if not is_inside(losses):
        return best
    index = rates.index(best)
    # In closed form, as the last digits of a fit depend on the machine. Distances and slopes are from the
    # best rate.
    lower, upper = (math.log(rates[near] / best) for near in (index - 1, index + 1))
    falling, rising = (
        (losses[rates[near]] - losses[best]) / distance
        for near, distance in ((index - 1, lower), (index + 1, upper))
    )
    return best * math.exp((rising * lower - falling * upper) / (2 * (rising - falling)))


@dataclass
class RateShift:
    """How the best rate of a variant moves from one length to another.

    Attributes:
        short, long: the rate at the lowest loss of each length, see `parabola_vertex`.
        exponent: β of rate ∝ length^(−β) by these two.
        unfitted: the lengths, of `short` and `long`, at which no parabola was fitted.
    """

    short: float
    long: float
    exponent: float
    unfitted: list[float]


def rate_shifts(
    short: StudyResult, long: StudyResult, lengths: tuple[float, float], variants: Sequence[str]
) -> dict[str, RateShift]:
    """How the best rate shifts with the length, by variant.

    Args:
        short, long: tunings at the two lengths.

    Raises:
        UserError: a variant without a finished trial, or tunings that differ in more than the length.
    """
    if not are_comparable(short.index, long.index):
        raise UserError(
            f"{long.place}: the two tunings differ in data, split or settings; expected ones that differ in "
            "the length of training and in rates alone"
        )
    shifts = {}
    for variant in variants:
        found = [loss_by_rate(result, variant) for result in (short, long)]
        if not all(found):
            raise UserError(f"{variant}: no trial has finished all its runs in both tunings")
        before, after = map(parabola_vertex, found)
        shifts[variant] = RateShift(
            before,
            after,
            -math.log(after / before) / math.log(lengths[1] / lengths[0]),
            [
                length
                for length, losses in zip(lengths, found, strict=True)
                if not is_inside(losses)
            ],
        )
    return shifts


def rate_exponent(shifts: Mapping[str, RateShift]) -> float:
    """β of rate ∝ length^(−β): the mean of what the variants say, clipped to [0, 0.5]."""
    return min(max(fmean(shift.exponent for shift in shifts.values()), 0.0), MAX_EXPONENT)


def transfer_rates(
    tuned: dict[str, dict[str, float]], exponent: float, factor: float
) -> dict[str, dict[str, float]]:
    """Tuned settings with rates for runs that are `factor` times as long, in four digits.

    A rate is part of what names a run, and its last digits would depend on the machine.

    Raises:
        UserError: settings without a rate.
    """
    for name, settings in tuned.items():
        if "optim.lr" not in settings:
            raise UserError(f"{name}: got no optim.lr; expected the rate that a tuning chose")
    return {
        name: settings | {"optim.lr": float(f"{settings['optim.lr'] * factor**-exponent:.4g}")}
        for name, settings in tuned.items()
    }
