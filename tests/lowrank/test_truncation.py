import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpa.lowrank import (
    moment_sqrt,
    refit_up,
    squared_error,
    svd_factors,
    tail_energies,
    whitened_factors,
)


@st.composite
def cases(draw):
    """W, inputs (fewer than features at times, so that the moment is singular), and a rank."""
    out, into = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    weight = torch.randn(out, into, generator=generator, dtype=torch.float64)
    scale = torch.logspace(0, draw(st.integers(-4, 0)), into, dtype=torch.float64)
    x = torch.randn(draw(st.integers(1, 40)), into, generator=generator, dtype=torch.float64)
    drift = 0.3 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return weight, x * scale, (x + drift) * scale, draw(st.integers(1, min(out, into)))


def moment(x, y=None):
    return x.T @ (x if y is None else y) / len(x)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_truncated_svd_misses_exactly_the_discarded_singular_values(case):
    weight, _, _, rank = case
    error, _ = squared_error(weight, *svd_factors(weight, rank))
    # Sums of a hundred squares of order one in float64.
    assert error == pytest.approx(tail_energies(weight)[rank], abs=1e-11)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_whitened_is_never_worse_than_plain_on_the_inputs_and_as_good_as_its_bound(case):
    weight, x, _, rank = case
    m = moment(x)
    plain, whole = squared_error(weight, *svd_factors(weight, rank), m)
    white, _ = squared_error(weight, *whitened_factors(weight, m, rank), m)
    # The eigen root drops directions below 1e-12 of the largest moment.
    assert white <= plain + 1e-9 * whole + 1e-15
    assert white == pytest.approx(tail_energies(weight, m)[rank], abs=1e-9 * whole + 1e-15)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_update_is_never_worse_than_its_start(case):
    weight, x, drifted, rank = case
    down, up = whitened_factors(weight, moment(x), rank)
    after = refit_up(weight, moment(x, drifted), moment(drifted), down, up)

    def error(b):
        return float((x @ weight.T - drifted @ down.T @ b.T).square().sum())

    assert error(after) <= error(up) * (1 + 1e-9) + 1e-12


def test_without_drift_the_update_has_nothing_to_do():
    torch.manual_seed(0)
    weight, m = torch.randn(9, 7, dtype=torch.float64), moment(torch.randn(50, 7).double())
    down, up = whitened_factors(weight, m, 3)
    torch.testing.assert_close(refit_up(weight, m, m, down, up), up, atol=1e-10, rtol=0)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_full_rank_is_exact_whatever_the_moment(case):
    weight, x, _, _ = case
    down, up = whitened_factors(weight, moment(x), min(weight.shape))
    # Where the inputs' scales differ by 1e-4 their inverse multiplies rounding by 1e8 in the square.
    torch.testing.assert_close(up @ down, weight, atol=1e-6, rtol=0)


def test_the_root_of_a_singular_moment_is_that_of_its_support():
    x = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]], dtype=torch.float64)
    root, inverse = moment_sqrt(moment(x))
    assert root.shape == (3, 1)
    torch.testing.assert_close(root @ root.T, moment(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(inverse @ root, torch.eye(1, dtype=torch.float64))


def test_a_moment_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="no finite numbers"):
        moment_sqrt(torch.full((2, 2), torch.nan))
