import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lpa.lowrank import LowRankLinear
from lpa.model.layers.fused_projections import project_fused


class Products(torch.overrides.TorchFunctionMode):
    """Counts the linear maps that are computed."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.nn.functional.linear
        return function(*args, **(kwargs or {}))


def projections(bias: bool = False, dense: int | None = None) -> list[nn.Module]:
    """Three maps of 24 features to 24, 12 and 12, of different ranks."""
    torch.manual_seed(0)
    modules: list[nn.Module] = [
        LowRankLinear(24, width, rank, down_bias=bias)
        for width, rank in ((24, 6), (12, 4), (12, 5))
    ]
    if dense is not None:
        modules[dense] = nn.Linear(24, 12, bias=bias)
    return modules


def results(modules, x, together: bool):
    outputs = project_fused(modules, x) if together else [module(x) for module in modules]
    parameters = [p for module in modules for p in module.parameters()]
    gradients = torch.autograd.grad(sum(o.square().sum() for o in outputs), [x, *parameters])
    return [*outputs, *gradients]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dense", [None, 0, 2])
def test_values_and_gradients_are_those_of_the_modules(bias, dense):
    modules = [module.double() for module in projections(bias, dense)]
    x = torch.randn(2, 256, 24, dtype=torch.float64, requires_grad=True)
    with Products() as products:
        together = results(modules, x, together=True)
    assert products.count == 4  # one of them for all first factors
    torch.testing.assert_close(together, results(modules, x, together=False))


def test_gradients_are_those_of_finite_differences():
    modules = [module.double() for module in projections(bias=True)]
    x = torch.randn(2, 256, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tuple(project_fused(modules, x)), x, fast_mode=True)


def test_few_tokens_go_through_each_pair_separately():
    with Products() as products:
        project_fused(projections(), torch.randn(2, 1, 24))
    assert products.count == 6


def test_no_arithmetic_is_added():
    modules, x = projections(), torch.randn(2, 256, 24)
    with FlopCounterMode(display=False) as together:
        project_fused(modules, x)
    with FlopCounterMode(display=False) as apart:
        for module in modules:
            module(x)
    assert together.get_total_flops() == apart.get_total_flops()


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def replace_down(pair):
    doubled = Doubled(24, pair.rank, bias=False)
    doubled.weight = pair.down.weight
    pair.down = doubled


@pytest.mark.parametrize(
    "change",
    [
        replace_down,
        lambda pair: pair.down.register_forward_hook(lambda module, x, output: 2 * output),
        lambda pair: pair.register_forward_pre_hook(lambda module, x: (2 * x[0],)),
        lambda pair: nn.utils.parametrize.register_parametrization(pair.down, "weight", Twice()),
    ],
    ids=["another class", "hook on down", "hook on the pair", "parametrization"],
)
def test_what_is_more_than_a_plain_pair_is_called(change):
    modules = projections()
    x = torch.randn(2, 256, 24)
    before = project_fused(modules, x)
    change(modules[1])
    after = project_fused(modules, x)
    torch.testing.assert_close(after[1], 2 * before[1])
    torch.testing.assert_close(after[0], before[0])


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_under_autocast_it_works_in_bfloat16():
    modules, x = projections(), torch.randn(2, 256, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together, apart = project_fused(modules, x), [module(x) for module in modules]
    for ours, theirs in zip(together, apart, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs)
