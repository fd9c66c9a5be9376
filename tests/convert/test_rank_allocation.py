"""One budget allocated to projections."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpa.convert.rank_allocation import allocate_ranks
from lpa.errors import UserError


@st.composite
def convex_curves(draw):
    """Tail energies: what is left of falling energies; whole numbers, so that sums are exact."""
    curves = {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        energies = sorted(draw(st.lists(st.integers(0, 50), min_size=1, max_size=4)), reverse=True)
        curves[name] = [sum(energies[rank:]) for rank in range(len(energies) + 1)]
    return curves


any_curves = st.dictionaries(
    st.sampled_from("abc"),
    st.lists(st.floats(0, 100), min_size=2, max_size=6),
    min_size=1,
)
unit_costs = st.fixed_dictionaries({name: st.integers(1, 5) for name in "abc"})
dense_costs = st.dictionaries(st.sampled_from("abc"), st.integers(1, 20))
extra = st.integers(0, 60)


def cost(ranks, cost_per_rank, dense=None):
    return sum(
        dense[name] if rank is None else rank * cost_per_rank[name] for name, rank in ranks.items()
    )


def loss(ranks, curves):
    return sum(0 if rank is None else curves[name][rank] for name, rank in ranks.items())


def least(curves, cost_per_rank, dense):
    return sum(min(cost_per_rank[name], dense.get(name, math.inf)) for name in curves)


def best_loss(curves, cost_per_rank, budget, dense):
    choices = [
        [*range(1, len(curve)), *([None] if name in dense else [])]
        for name, curve in curves.items()
    ]
    candidates = (dict(zip(curves, ranks, strict=True)) for ranks in itertools.product(*choices))
    return min(loss(c, curves) for c in candidates if cost(c, cost_per_rank, dense) <= budget)


@given(any_curves, unit_costs, dense_costs, extra)
@settings(deadline=None)
def test_never_over_the_budget_and_never_out_of_range(curves, cost_per_rank, dense, more):
    budget = least(curves, cost_per_rank, dense) + more
    ranks = allocate_ranks(curves, cost_per_rank, budget, dense)
    assert ranks.keys() == curves.keys()
    assert cost(ranks, cost_per_rank, dense) <= budget
    for name, rank in ranks.items():
        if rank is None:
            assert name in dense
        else:
            assert 1 <= rank < len(curves[name])
            assert rank * cost_per_rank[name] < dense.get(name, math.inf)


@given(convex_curves(), extra)
@settings(deadline=None)
def test_optimal_where_ranks_cost_the_same(curves, more):
    cost_per_rank = dict.fromkeys(curves, 3)
    budget = 3 * len(curves) + more
    ranks = allocate_ranks(curves, cost_per_rank, budget)
    assert loss(ranks, curves) == best_loss(curves, cost_per_rank, budget, {})


@given(convex_curves(), unit_costs, dense_costs, extra, st.integers(1, 20))
@settings(deadline=None)
def test_a_larger_budget_is_never_worse(curves, cost_per_rank, dense, more, raised):
    budget = least(curves, cost_per_rank, dense) + more
    before = allocate_ranks(curves, cost_per_rank, budget, dense)
    after = allocate_ranks(curves, cost_per_rank, budget + raised, dense)
    assert loss(after, curves) <= loss(before, curves)


@given(convex_curves(), unit_costs, dense_costs, extra)
@settings(deadline=None)
def test_away_from_the_optimum_by_one_step_at_most(curves, cost_per_rank, dense, more):
    budget = least(curves, cost_per_rank, dense) + more
    ranks = allocate_ranks(curves, cost_per_rank, budget, dense)
    steps = [
        *(
            curve[rank] - curve[rank + 1]
            for curve in curves.values()
            for rank in range(1, len(curve) - 1)
        ),
        *(curve[1] for name, curve in curves.items() if name in dense),
    ]
    optimum = best_loss(curves, cost_per_rank, budget, dense)
    assert optimum <= loss(ranks, curves) <= optimum + max(steps, default=0)


def test_steepest_first_by_what_a_rank_costs():
    """The same losses; a rank of `b` costs four times one of `a`."""
    curve = [16, 8, 4, 2, 1, 0.5]
    ranks = allocate_ranks({"a": curve, "b": curve}, {"a": 1, "b": 4}, 12)
    assert ranks == {"a": 4, "b": 2}


def test_measured_ranks_are_interpolated():
    curves = {"a": {8: 4.0, 16: 0.0}, "b": {0: 16.0, 8: 8.0, 16: 7.0}}
    ranks = allocate_ranks(curves, {"a": 1, "b": 1}, 20)
    assert ranks == {"a": 12, "b": 8}


def test_a_rank_that_rises_the_loss_is_not_bought():
    assert allocate_ranks({"a": [9, 3, 1, 5]}, {"a": 1}, 100) == {"a": 2}


def test_dense_from_break_even_on():
    curve = [10.0, 6.0, 3.0, 1.0, 0.0]
    assert allocate_ranks({"a": curve}, {"a": 2}, 5, {"a": 5}) == {"a": None}
    assert allocate_ranks({"a": curve}, {"a": 2}, 4, {"a": 5}) == {"a": 2}


@pytest.mark.parametrize(
    ("curves", "cost_per_rank", "budget", "message"),
    [
        ({"a": [2, 1], "b": [2, 1]}, {"a": 3, "b": 4}, 6, "budget: got 6; expected at least 7"),
        ({"a": [2, 1]}, {"a": 3}, math.nan, "budget: got nan"),
        ({"a": [2, math.nan]}, {"a": 3}, 6, "loss curve of a: has values that are no finite"),
        ({"a": [2]}, {"a": 3}, 6, "loss curve of a: got no rank"),
        ({"a": [2, 1]}, {"a": 0}, 6, "unit cost of a: got 0; expected a positive number"),
    ],
)
def test_what_cannot_be(curves, cost_per_rank, budget, message):
    with pytest.raises(UserError, match=message):
        allocate_ranks(curves, cost_per_rank, budget)
