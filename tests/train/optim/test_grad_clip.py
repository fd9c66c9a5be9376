import math

import pytest
import torch

from lpa.train.optim.grad_clip import clip_grad_norm, square_grad_norm


def parameters(*gradients) -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(made, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return [*made, torch.nn.Parameter(torch.zeros(2))]  # and one that had no part in the loss


def test_the_norm_is_of_all_gradients_together():
    assert square_grad_norm(parameters([3.0, 0.0], [0.0, 4.0])).item() == pytest.approx(25.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_none_shows_in_the_norm(bad):
    assert not math.isfinite(square_grad_norm(parameters([1.0], [bad])))


@pytest.mark.parametrize("largest", [0.5, 10.0])
def test_clipping_is_that_of_torch(largest):
    torch.manual_seed(0)
    ours = parameters(*torch.randn(3, 5).tolist())
    theirs = parameters(*[p.grad.tolist() for p in ours[:-1]])
    clip_grad_norm(ours, math.sqrt(square_grad_norm(ours)), largest)
    torch.nn.utils.clip_grad_norm_(theirs, largest)
    for a, b in zip(ours[:-1], theirs[:-1], strict=True):
        assert torch.equal(a.grad, b.grad)
