import pytest
import torch
from torch import nn

from lpa.errors import UserError
from lpa.lowrank import SLTrainLinear, singular_values, support_dtype


def sltrain(seed: int = 0, **fields) -> SLTrainLinear:
    return SLTrainLinear(24, 16, 3, **({"density": 0.1, "support_seed": seed} | fields))


def sparse_matrix(module: SLTrainLinear) -> torch.Tensor:
    matrix = torch.zeros(16 * 24)
    for place, value in zip(module.support.tolist(), module.sparse_values.tolist(), strict=True):
        matrix[place] = value
    return matrix.view(16, 24)


@pytest.mark.parametrize("bias", [False, True])
def test_adds_a_sparse_matrix_to_the_product(bias):
    module, x = sltrain(bias=bias), torch.randn(2, 5, 24)
    expected = x @ (module.up.weight @ module.down.weight + sparse_matrix(module)).T
    if bias:
        expected = expected + module.up.bias
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module.to_dense()(x), expected)
    values = singular_values(module)
    torch.testing.assert_close(values, torch.linalg.svdvals(module.dense_weight().double()))


def test_the_gradient_of_the_sparse_matrix_is_that_of_its_entries():
    module, x = sltrain(), torch.randn(7, 24)
    weight = module.dense_weight().detach().requires_grad_()
    target = torch.randn(7, 16)
    ((x @ weight.T - target) ** 2).sum().backward()
    ((module(x) - target) ** 2).sum().backward()
    assert module.sparse_values.grad.shape == (38,)
    torch.testing.assert_close(module.sparse_values.grad, weight.grad.flatten()[module.support])


def test_the_support_is_fixed_scattered_and_differs_between_projections():
    module = sltrain(density=0.03)
    assert len(module.sparse_values) == round(0.03 * 16 * 24) == len(set(module.support.tolist()))
    torch.manual_seed(1)
    assert torch.equal(module.support, sltrain(density=0.03).support)
    assert not torch.equal(module.support, sltrain(1, density=0.03).support)
    assert "support" not in module.state_dict()
    # A fifth of the places in each fifth of the matrix, to what chance allows.
    places = sltrain(density=0.5).support
    counts = torch.histc(places.float(), 4, min=0, max=16 * 24)
    assert (counts - 48).abs().max() < 20


def test_weights_under_autocast_keep_their_gradient():
    module = sltrain()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(torch.randn(2, 24)).sum().backward()
    assert module.sparse_values.grad.dtype == torch.float32


def test_a_dense_matrix_does_not_become_one():
    with pytest.raises(UserError, match=r"^sltrain: "):
        SLTrainLinear.from_dense(nn.Linear(24, 16), 3)


@pytest.mark.parametrize("assign", [False, True])
def test_weights_given_to_a_module_without_memory_find_their_support(assign):
    module, x = sltrain(), torch.randn(2, 24)
    empty = sltrain(device="meta")
    if not assign:
        empty.to_empty(device="cpu")
        empty.support.zero_()  # whatever the memory held
    empty.load_state_dict(module.state_dict(), assign=assign)
    assert torch.equal(empty.support, module.support)
    assert torch.equal(empty(x), module(x))


def test_places_take_four_bytes_where_that_is_enough():
    assert sltrain().support.dtype == torch.int32
    assert support_dtype(2**16, 2**15 - 1) == torch.int32
    assert support_dtype(2**16, 2**15) == torch.int64


def test_dense_rounds_the_exact_sum_once():
    module = sltrain(density=0.5).bfloat16()
    product = module.up.weight.double() @ module.down.weight.double()
    expected = product + sparse_matrix(module).double()
    assert torch.equal(module.to_dense().weight, expected.bfloat16())
