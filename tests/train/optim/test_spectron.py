import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpa.train.optim.spectron import Spectron


def pair(seed: int, scale: float, rank: int = 4) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    return tuple(
        torch.nn.Parameter(scale * torch.randn(*shape, generator=random))
        for shape in ((rank, 12), (10, rank))
    )


def give_gradients(factors, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    for factor in factors:
        factor.grad = torch.randn(factor.shape, generator=random)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(1e-3, 10),
    lr=st.floats(1e-4, 1),
    bound=st.sampled_from(["paper", "exact"]),
)
def test_no_step_of_the_product_is_larger_than_the_rate(seed, scale, lr, bound):
    down, up = pair(seed, scale)
    optimizer = Spectron([down, up], lr, bound=bound, dtype=torch.float32)
    for number in range(3):
        give_gradients((down, up), seed + number)
        before = (up.double() @ down.double()).detach()
        optimizer.step()
        change = torch.linalg.matrix_norm(up.double() @ down.double() - before, 2).item()
        # Power iteration comes from below: by percents where a step as large as the factors leaves the
        # last vector far from the new one.
        assert change <= lr * 1.05 + 1e-6 * scale**2


@pytest.mark.parametrize("bound", ["paper", "exact"])
def test_both_factors_step_by_the_radius_of_the_bound(bound):
    down, up = pair(0, 0.5)
    norms = sum(torch.linalg.matrix_norm(factor, 2).item() for factor in (down, up))
    optimizer = Spectron([down, up], 0.1, bound=bound, dtype=torch.float32)
    give_gradients((down, up), 1)
    before = [factor.detach().clone() for factor in (down, up)]
    optimizer.step()
    # The root of a quadratic, found here by another formula.
    radius = 0.1 / (norms + 1) if bound == "paper" else (-norms + (norms**2 + 0.4) ** 0.5) / 2
    for factor, old in zip((down, up), before, strict=True):
        values = torch.linalg.svdvals(old - factor) / radius
        assert values.max() < 1.01
        assert values.min() > 0.8


def test_norms_warm_up_over_steps():
    down, up = pair(3, 1.0)
    optimizer = Spectron([down, up], 1e-6, dtype=torch.float32)
    for number in range(20):
        give_gradients((down, up), number)
        optimizer.step()
    for factor in (down, up):
        vector = torch.nn.functional.normalize(optimizer.state[factor]["singular_vector"], dim=0)
        assert torch.linalg.vector_norm(factor @ vector).item() == pytest.approx(
            torch.linalg.matrix_norm(factor, 2).item(), rel=1e-4
        )
