"""One budget for all projections: ranks where they lower the loss most."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lpa.errors import UserError

LossCurve = Sequence[float] | Mapping[int, float]


@dataclass(frozen=True)
class _Increment:
    """One projection's next rank, or from its rank to dense.

    Attributes:
        slope: loss that a unit of cost takes away.
        cost: what the step adds.
        before, after: the rank it starts from and leads to; None is dense.
    """

    slope: float
    cost: float
    before: int
    after: int | None


def allocate_ranks(
    curves: Mapping[str, LossCurve],
    cost_per_rank: Mapping[str, float],
    budget: float,
    dense_costs: Mapping[str, float] | None = None,
) -> dict[str, int | None]:
    """Ranks whose costs together stay within a budget and whose losses together are small.

    Minimizes Σ loss_i(r_i) subject to Σ cost_i · r_i ≤ budget. Each curve is replaced by its lower convex
    hull, and then single ranks are bought in the order of the loss that they take away per unit of cost.
    That is the solution of the Lagrangian relaxation of the problem, one multiplier for all projections,
    and so exact for what has been spent whenever the next rank in that order no longer fits (Everett 1963,
    theorem 1). What is then left of the budget goes to later ranks that do fit. Where all units cost the
    same and the curves are convex, as tail energies of singular values are, the result is the optimum;
    elsewhere it is away from it by no more than the loss that the first step which did not fit takes away.
    A larger budget never gives a larger sum of (convexified) losses.

    Args:
        curves: by projection, the loss at rank r: a sequence over r = 0, 1, …, or a mapping of a few
            ranks, between which it is interpolated. The smallest rank given, but at least 1, is the
            least that the projection gets and the largest the most.
        cost_per_rank: by projection, what one unit of rank costs: parameters, FLOPs, bytes of KV cache.
        budget: what all may cost together, in the same unit.
        dense_costs: by projection, what it costs to leave it dense, which has no loss; a projection
            that is missing is always factorized. From its break-even on a projection is dense.

    Returns:
        By projection its rank, or None: left dense.

    Raises:
        UserError: the budget does not pay for the least of each projection; a curve, a cost or the
            budget is not made of finite numbers, or a curve has no rank of 1 or more.
    """
    dense_costs = dense_costs or {}
    ranks: dict[str, int | None] = {}
    increments: list[tuple[str, _Increment]] = []
    spent = 0.0
    for name, curve in curves.items():
        cost_per_rank_unit = cost_per_rank[name]
        if not (math.isfinite(cost_per_rank_unit) and cost_per_rank_unit > 0):
            raise UserError(
                f"unit cost of {name}: got {cost_per_rank_unit}; expected a positive number"
            )
        points = _curve_points(name, curve)
        dense = dense_costs.get(name, math.inf)
        min_rank = points[0][0]
        if min_rank * cost_per_rank_unit >= dense:
            ranks[name] = None
            spent += dense
            continue
        ranks[name] = min_rank
        spent += min_rank * cost_per_rank_unit
        increments += [
            (name, increment) for increment in _increments(points, cost_per_rank_unit, dense)
        ]
    if not budget >= spent:
        raise UserError(
            f"budget: got {budget:,.0f}; expected at least {spent:,.0f}, what the least rank of each of "
            f"{len(ranks)} projections costs"
        )
    # Sorting is stable, and the steps of a projection get flatter: each comes after the one it needs.
    for name, increment in sorted(increments, key=lambda item: -item[1].slope):
        if (
            increment.slope > 0
            and ranks[name] == increment.before
            and spent + increment.cost <= budget
        ):
            ranks[name] = increment.after
            spent += increment.cost
    return ranks


def _curve_points(name: str, curve: LossCurve) -> list[tuple[int, float]]:
    """(rank, loss) from rank 1 or the smallest given."""
    given = sorted(curve.items() if isinstance(curve, Mapping) else enumerate(curve))
    if not all(math.isfinite(loss) for _, loss in given):
        raise UserError(f"loss curve of {name}: has values that are no finite numbers")
    points = [(rank, float(loss)) for rank, loss in given if rank >= 1]
    if not points:
        raise UserError(f"loss curve of {name}: got no rank; expected losses at ranks from 1 on")
    first = points[0][0]
    if first > 1 and given[0][0] == 0:
        at_zero = float(given[0][1])
        points.insert(0, (1, at_zero + (points[0][1] - at_zero) / first))
    return points


def _increments(
    points: list[tuple[int, float]], cost_per_rank_unit: float, dense: float
) -> Iterator[_Increment]:
    """What can be bought for one projection, from its least rank on, steepest first.

    Leaving it dense is the last point of the hull; the ranks that it passes over, up to break-even, come
    after it, for where there is no room for it.
    """
    is_dense_offered = not math.isfinite(dense)
    steepest = math.inf
    hull = _lower_hull(points)
    for (low, left), (high, right) in itertools.pairwise(hull):
        # Rounding must not put a step before the one it needs.
        steepest = min(steepest, (left - right) / ((high - low) * cost_per_rank_unit))
        for rank in range(low, high):
            if not is_dense_offered:
                loss = left + (right - left) * (rank - low) / (high - low)
                to_dense = _Increment(
                    loss / (dense - rank * cost_per_rank_unit),
                    dense - rank * cost_per_rank_unit,
                    rank,
                    None,
                )
                if (
                    is_dense_offered := to_dense.slope >= steepest
                    or (rank + 1) * cost_per_rank_unit >= dense
                ):
                    yield to_dense
            if (rank + 1) * cost_per_rank_unit >= dense:
                return
            yield _Increment(steepest, cost_per_rank_unit, rank, rank + 1)
    if not is_dense_offered:
        rank, loss = hull[-1]
        yield _Increment(
            loss / (dense - rank * cost_per_rank_unit),
            dense - rank * cost_per_rank_unit,
            rank,
            None,
        )


def _lower_hull(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The points on the lower convex hull, by rank (Andrew 1979)."""
    hull: list[tuple[int, float]] = []
    for rank, loss in points:
        while len(hull) >= 2:
            (r0, l0), (r1, l1) = hull[-2:]
            if (l1 - l0) * (rank - r0) < (loss - l0) * (r1 - r0):
                break
            hull.pop()
        hull.append((rank, loss))
    return hull
