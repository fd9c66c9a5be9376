import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from lpa.model.layers.ops import RMSNorm, apply_rotary, silu_mul


def random(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def gradients(function, *inputs):
    output = function(*inputs)
    return torch.autograd.grad(output.square().sum(), inputs)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    norm = RMSNorm(8).double()
    angles = torch.randn(1, 3, 4, dtype=torch.float64).repeat(1, 1, 2)
    assert gradcheck(norm, random(2, 3, 8))
    assert gradcheck(
        lambda x, weight: torch.func.functional_call(norm, {"weight": weight}, x),
        (random(2, 3, 8), random(8)),
    )
    assert gradcheck(silu_mul, (random(2, 3, 8), random(2, 3, 8)))
    assert gradcheck(
        lambda query, key: apply_rotary(query, key, angles.cos(), angles.sin()),
        (random(2, 4, 3, 8), random(2, 2, 3, 8)),
    )


def test_gradients_of_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    norm = RMSNorm(8).double()
    angles = torch.randn(1, 3, 4, dtype=torch.float64).repeat(1, 1, 2)
    assert gradgradcheck(
        lambda x, weight: torch.func.functional_call(norm, {"weight": weight}, x),
        (random(2, 3, 8), random(8)),
    )
    assert gradgradcheck(silu_mul, (random(2, 3, 8), random(2, 3, 8)))
    # A rotation's own second derivatives are zero: only what follows it has some.
    assert gradgradcheck(
        lambda query, key: apply_rotary(query.sin(), key.cos(), angles.cos(), angles.sin()),
        (random(2, 4, 3, 8), random(2, 2, 3, 8)),
    )


def test_values_and_gradients_are_those_of_the_plain_formulas():
    torch.manual_seed(0)
    ours, theirs = RMSNorm(64, eps=1e-6), LlamaRMSNorm(64, eps=1e-6)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.normal_())
    x = random(2, 16, 64, dtype=torch.float32)
    other = random(2, 16, 64, dtype=torch.float32)
    query, key = (random(2, 4, 16, 16, dtype=torch.float32) for _ in range(2))
    angles = torch.randn(1, 16, 8).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    pairs = [
        (ours, theirs, (x,)),
        (silu_mul, lambda gate, up: F.silu(gate) * up, (x, other)),
        (
            lambda q, k: torch.cat(apply_rotary(q, k, cos, sin)),
            lambda q, k: torch.cat(apply_rotary_pos_emb(q, k, cos, sin)),
            (query, key),
        ),
    ]
    for fast, plain, inputs in pairs:
        torch.testing.assert_close(fast(*inputs), plain(*inputs))
        # sums of 64 float32 terms in another order
        torch.testing.assert_close(
            gradients(fast, *inputs), gradients(plain, *inputs), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_low_precision_the_norm_is_that_of_transformers(dtype):
    x = torch.randn(4, 64).to(dtype)
    ours, theirs = RMSNorm(64).to(dtype), LlamaRMSNorm(64).to(dtype)
    assert torch.equal(ours(x), theirs(x))


def test_the_product_keeps_its_two_inputs_alone():
    gate, up = random(4, 8), random(4, 8)
    kept = []

    def keep(tensor):
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        silu_mul(gate, up)
    assert set(kept) == {gate.data_ptr(), up.data_ptr()}
