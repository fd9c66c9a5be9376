import pytest
import torch
from torch import nn

from lpa.lowrank import LowRankLinear


def test_applies_down_then_up():
    pair = LowRankLinear(6, 4, 3, bias=True, down_bias=True)
    x = torch.randn(2, 5, 6)
    expected = (x @ pair.down.weight.T + pair.down.bias) @ pair.up.weight.T + pair.up.bias
    torch.testing.assert_close(pair(x), expected)


def test_has_r_times_in_plus_out_weights():
    pair = LowRankLinear(6, 4, 3)
    assert sum(p.numel() for p in pair.parameters()) == 3 * (6 + 4)
    assert {name: tuple(p.shape) for name, p in pair.named_parameters()} == {
        "down.weight": (3, 6),
        "up.weight": (4, 3),
    }


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("down_bias", [False, True])
def test_dense_is_the_same_map(bias, down_bias):
    pair = LowRankLinear(6, 4, 3, bias=bias, down_bias=down_bias)
    linear = pair.to_dense()
    assert (linear.bias is None) == (not bias and not down_bias)
    x = torch.randn(10, 6)
    torch.testing.assert_close(linear(x), pair(x))


def test_dense_rounds_the_exact_product_once():
    pair = LowRankLinear(64, 64, 48)
    exact = pair.up.weight.double() @ pair.down.weight.double()
    assert torch.equal(pair.to_dense().weight, exact.float())


def test_from_dense_leaves_the_error_that_no_rank_r_matrix_beats():
    torch.manual_seed(0)
    linear = nn.Linear(12, 9)
    pair = LowRankLinear.from_dense(linear, 4)
    singular = torch.linalg.svdvals(linear.weight.double())
    error = (linear.weight - pair.up.weight @ pair.down.weight).norm()
    torch.testing.assert_close(error.double(), singular[4:].norm(), rtol=1e-5, atol=0)


def test_from_dense_at_full_rank_gives_the_map_back():
    linear = nn.Linear(12, 9)
    x = torch.randn(10, 12)
    pair = LowRankLinear.from_dense(linear, 9)
    torch.testing.assert_close(pair(x), linear(x), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(pair.to_dense().weight, linear.weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rank", [0, -1, 5])
def test_refuses_a_rank_that_cannot_be(rank):
    with pytest.raises(ValueError, match=f"rank: got {rank}; expected an integer from 1 to 4"):
        LowRankLinear(6, 4, rank)
