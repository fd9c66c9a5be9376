"""GaLore and APOLLO against their papers' algorithms, written out step by step."""

import math

import pytest
import torch

from lpa.train.optim import gradient_projection
from lpa.train.optim.gradient_projection import APOLLO, GaLore

BETA1, BETA2, EPS, LR, RANK = 0.9, 0.99, 1e-8, 0.01, 3


def gradients(shape, steps: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=random) for _ in range(steps)]


def train(kind, shape, steps: int, **options) -> tuple[torch.Tensor, dict]:
    weight = torch.nn.Parameter(torch.ones(shape))
    optimizer = kind([weight], LR, betas=(BETA1, BETA2), eps=EPS, rank=RANK, **options)
    for gradient in gradients(shape, steps):
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach(), optimizer.state[weight]


class Adam:
    def __init__(self) -> None:
        self.m, self.v, self.t = 0.0, 0.0, 0

    def __call__(self, g: torch.Tensor) -> torch.Tensor:
        self.t += 1
        self.m = BETA1 * self.m + (1 - BETA1) * g
        self.v = BETA2 * self.v + (1 - BETA2) * g**2
        return self.m / (self.v.sqrt() + EPS)

    @property
    def correction(self) -> float:
        return math.sqrt(1 - BETA2**self.t) / (1 - BETA1**self.t)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_galore_is_adam_in_the_gradients_first_directions(shape, monkeypatch):
    monkeypatch.setattr(gradient_projection, "UPDATE_PROJ_GAP", 4)
    weight, adam = torch.ones(shape), Adam()
    for number, g in enumerate(gradients(shape, 10)):
        if number % 4 == 0:
            u, _, vh = torch.linalg.svd(g, full_matrices=False)
        if shape[0] < shape[1]:
            p = u[:, :RANK]
            update = p @ adam(p.T @ g)
        else:
            p = vh[:RANK].T
            update = adam(g @ p) @ p.T
        weight = weight - LR * 0.25 * adam.correction * update
    torch.testing.assert_close(train(GaLore, shape, 10)[0], weight)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_apollo_scales_channels_as_adam_scales_the_projected_gradient(shape, monkeypatch):
    monkeypatch.setattr(gradient_projection, "UPDATE_PROJ_GAP", 4)
    weight, adam, last = torch.ones(shape), Adam(), None
    for number, g in enumerate(gradients(shape, 10)):
        p = torch.randn(6, RANK, generator=torch.Generator().manual_seed(number // 4)) / math.sqrt(
            RANK
        )
        short = shape[0] < shape[1]
        r = p.T @ g if short else g @ p
        d = adam(r)
        axis = 0 if short else 1
        update = g * (d.norm(dim=axis, keepdim=True) / r.norm(dim=axis, keepdim=True))
        if last is not None and update.norm() > 1.01 * last:
            update = update * (1.01 * last / update.norm())
        last = update.norm()
        weight = weight - LR * adam.correction * update
    torch.testing.assert_close(train(APOLLO, shape, 10)[0], weight, rtol=1e-5, atol=1e-6)


def test_apollo_keeps_no_projection():
    state = train(APOLLO, (6, 9), 2)[1]
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "step": (),
        "norm": (),
        "exp_avg": (RANK, 9),
        "exp_avg_sq": (RANK, 9),
    }


@pytest.mark.parametrize("kind", [GaLore, APOLLO])
def test_weights_decay_as_adamws(kind):
    plain, decayed = (train(kind, (6, 9), 1, weight_decay=decay)[0] for decay in (0.0, 0.5))
    torch.testing.assert_close(plain - decayed, torch.full((6, 9), LR * 0.5))
