import pytest
import torch

from lpa.lowrank import LowRankLinear
from lpa.train.optim.product_decay import ProductDecay


@pytest.mark.parametrize("shape", [(12, 20, 5), (20, 12, 5), (6, 6, 6)])
def test_decays_along_the_gradient_of_half_the_products_squared_norm(shape):
    torch.manual_seed(0)
    pair = LowRankLinear(*shape, bias=True, down_bias=True).double()
    before = {name: p.detach().clone() for name, p in pair.named_parameters()}
    (0.5 * (pair.up.weight @ pair.down.weight).square().sum()).backward()

    ProductDecay([pair], 0.3, down_lr_scale=2.0, up_lr_scale=0.5).step(0.01)
    for name, scale in (("down.weight", 2.0), ("up.weight", 0.5)):
        parameter = pair.get_parameter(name)
        # Both from the factors before the step.
        expected = before[name] - 0.01 * 0.3 * scale * parameter.grad
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-14)
    for name in ("down.bias", "up.bias"):
        assert torch.equal(pair.get_parameter(name).detach(), before[name])


def test_shrinks_the_product_and_each_pair_separately():
    torch.manual_seed(0)
    pairs = [LowRankLinear(10, 10, 4) for _ in range(2)]

    def norms():
        return [pair.to_dense().weight.norm().item() for pair in pairs]

    start = norms()
    ProductDecay(pairs[:1], 0.1).step(0.1)
    assert norms()[0] < start[0]
    assert norms()[1] == start[1]


def test_a_rate_of_zero_changes_nothing():
    pair = LowRankLinear(10, 10, 4)
    before = pair.down.weight.detach().clone()
    ProductDecay([pair], 0.1).step(0.0)
    assert torch.equal(pair.down.weight.detach(), before)
