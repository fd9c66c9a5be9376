"""Every way in which torch differentiates and maps functions, beside the stock Llama."""

import pytest
import torch
from helpers.small_models import small_model
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from lpa.convert.merge import merge_to_llama

WEIGHT = "model.norm.weight"  # which both models have, and which is small


@pytest.fixture(scope="module", params=[True, False], ids=["logits", "loss alone"])
def losses(request):
    """The loss of each model as a function of one weight and of tokens."""
    model = small_model(num_hidden_layers=1).train()
    llama = merge_to_llama(model).train()
    # torch's fused attention has neither second derivatives nor forward ones.
    for one in (model, llama):
        one.set_attn_implementation("eager")

    def loss_of(one, **options):
        def loss(weight, tokens):
            call = {"input_ids": tokens, "labels": tokens, "use_cache": False, **options}
            return functional_call(one, {WEIGHT: weight}, kwargs=call).loss

        return loss

    weight = model.get_parameter(WEIGHT).detach()
    return loss_of(model, return_logits=request.param), loss_of(llama), weight


TOKENS = torch.randint(97, (3, 12), generator=torch.Generator().manual_seed(0))


def forward_mode(loss, weight, tokens):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(weight, torch.ones_like(weight))
        return forward_ad.unpack_dual(loss(dual, tokens)).tangent


def double_backward(loss, weight, tokens):
    weight = weight.clone().requires_grad_()
    [first] = torch.autograd.grad(loss(weight, tokens), weight, create_graph=True)
    return torch.autograd.grad(first.square().sum(), weight)[0]


TRANSFORMS = {
    "grad": lambda f, w, x: grad(f)(w, x),
    "vjp": lambda f, w, x: vjp(lambda v: f(v, x), w)[1](torch.tensor(2.0))[0],
    "jvp": lambda f, w, x: jvp(lambda v: f(v, x), (w,), (torch.ones_like(w),))[1],
    "jacrev": lambda f, w, x: jacrev(f)(w, x),
    "jacfwd": lambda f, w, x: jacfwd(f)(w, x),
    "hessian": lambda f, w, x: hessian(f)(w, x),
    "jacrev of jacrev": lambda f, w, x: jacrev(jacrev(f))(w, x),
    "vmap": lambda f, w, x: vmap(f, (None, 0))(w, x[:, None]),
    "gradients of each sample": lambda f, w, x: vmap(grad(f), (None, 0))(w, x[:, None]),
    "gradients at several weights": lambda f, w, x: vmap(grad(f), (0, None))(
        torch.stack([w, 2 * w]), x
    ),
    "forward mode": forward_mode,
    "double backward": double_backward,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_of_the_loss_is_that_of_the_merged_llama(losses, name):
    ours, theirs, weight = losses
    found, expected = (TRANSFORMS[name](f, weight, TOKENS) for f in (ours, theirs))
    # Rounding, as products of factors are merged ones in another order.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
