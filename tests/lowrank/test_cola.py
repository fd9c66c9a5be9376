import pytest
import torch
from torch import nn

from lpa.errors import UserError
from lpa.lowrank import CoLALinear, singular_values


@pytest.mark.parametrize("bias", [False, True])
def test_applies_silu_between_the_factors(bias):
    module = CoLALinear(6, 4, 3, bias=bias)
    x = torch.randn(2, 5, 6)
    latent = x @ module.down.weight.T
    expected = (latent / (1 + torch.exp(-latent))) @ module.up.weight.T
    if bias:
        expected = expected + module.up.bias
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize(
    "use",
    [CoLALinear.to_dense, singular_values, lambda _: CoLALinear.from_dense(nn.Linear(6, 4), 3)],
)
def test_no_matrix_stands_for_it(use):
    with pytest.raises(UserError, match=r"^cola: "):
        use(CoLALinear(6, 4, 3))
