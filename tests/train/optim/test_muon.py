import copy
import math

import pytest
import torch

from lpa.train.optim import muon
from lpa.train.optim.muon import Muon

SHAPES = [(96, 40), (40, 96), (64, 64), (17, 64)]


def stepped(make, shape, steps=5):
    """A matrix after some steps over gradients that are the same each time."""
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(shape))
    optimizer = make([parameter])
    for _ in range(steps):
        gradient = torch.randn(shape)
        parameter.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(parameter.grad, gradient)
    return parameter.detach()


def torch_muon(parameters):
    return torch.optim.Muon(parameters, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")


@pytest.mark.parametrize("shape", SHAPES)
def test_in_bfloat16_it_is_torchs_to_the_bit(shape):
    ours = stepped(lambda p: Muon(p, 1e-2, 0.1, dtype=torch.bfloat16), shape)
    assert torch.equal(ours, stepped(torch_muon, shape))


def test_stacks_of_several_shapes_and_groups_are_torchs_to_the_bit(monkeypatch):
    """More matrices of a shape than a stack holds, in their own groups rate and decay."""
    monkeypatch.setattr(muon, "_STACK", 2 * 96 * 40)

    def trained(make):
        torch.manual_seed(0)
        matrices = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES * 5]
        idle = torch.nn.Parameter(torch.ones(SHAPES[0]))  # has no gradient
        groups = [
            {"params": [*matrices[:7], idle], "lr": 1e-2, "weight_decay": 0.1},
            {"params": matrices[7:], "lr": 3e-2, "weight_decay": 0.0},
        ]
        optimizer = make(groups)
        for _ in range(3):
            for matrix in matrices:
                matrix.grad = torch.randn_like(matrix)
            optimizer.step()
        momenta = [optimizer.state[matrix]["momentum_buffer"] for matrix in matrices]
        return [*matrices, idle, *momenta]

    ours = trained(lambda groups: Muon(groups, 1e-2, dtype=torch.bfloat16))
    theirs = trained(torch_muon)
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(mine, other), number


def test_a_state_of_torchs_is_taken_up():
    """The optimizer's files are those of torch's Muon, whose step continues here to the bit."""
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(SHAPES[0])) for _ in range(2)]
    matrices[1].data.copy_(matrices[0])
    gradients = torch.randn(2, *SHAPES[0])
    theirs = torch_muon(matrices[:1])
    matrices[0].grad = gradients[0]
    theirs.step()
    ours = Muon(matrices[1:], 1e-2, 0.1, dtype=torch.bfloat16)
    matrices[1].data.copy_(matrices[0])
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for matrix, optimizer in zip(matrices, (theirs, ours), strict=True):
        matrix.grad = gradients[1]
        optimizer.step()
    assert torch.equal(*matrices)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_it_is_torchs_but_for_rounding(shape):
    ours = stepped(lambda p: Muon(p, 1e-2, 0.1, dtype=torch.float32), shape)
    theirs = stepped(torch_muon, shape)
    assert not torch.equal(ours, theirs)
    # Five updates of size 0.2 · lr; five iterations in bfloat16 err by a few percent of that each.
    assert (ours - theirs).square().mean().sqrt() < 0.05 * 5 * 0.2 * 1e-2


def first_update(gradient, dtype=torch.float32):
    parameter = torch.nn.Parameter(torch.zeros(gradient.shape))
    parameter.grad = gradient.float()
    Muon([parameter], 1.0, dtype=dtype).step()
    return -parameter.detach().double()


@pytest.mark.parametrize("shape", SHAPES)
def test_an_update_is_near_u_v_of_the_svd(shape):
    torch.manual_seed(0)
    # Singular values from 1 to a thousandth, so from about 0.4 to 0.0004 of the Frobenius norm.
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.logspace(0, -3, min(shape), dtype=torch.float64)
    update = first_update((u * values) @ v) / (0.2 * math.sqrt(max(shape)))
    inside = u.T @ update @ v.T
    # The same singular vectors; float32's rounding grows by 3.4445⁵ ≈ 500 for the smallest values.
    assert (inside - inside.diag().diag()).abs().max() < 500 * 1e-6
    promised = values / values.norm() >= 0.002
    assert 5 < promised.sum() < min(shape)
    assert inside.diag()[promised].min() > 0.68
    assert inside.diag()[promised].max() < 1.21


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_has_the_size_of_adamws(shape, dtype):
    torch.manual_seed(0)
    size = first_update(torch.randn(shape), dtype).square().mean().sqrt()
    # Singular values lie between 0.68 and 1.21, less bfloat16's rounding, rather than at 1.
    assert 0.2 * 0.66 < size < 0.2 * 1.23


def test_momentum_survives_the_step_in_float32():
    """torch divides in place what it orthogonalizes, which without its rounding would be the momentum."""
    parameter = torch.nn.Parameter(torch.zeros(4, 6))
    optimizer = Muon([parameter], 1.0, dtype=torch.float32)
    optimizer.param_groups[0]["nesterov"] = False
    parameter.grad = torch.full((4, 6), 3.0)
    optimizer.step()
    momentum = optimizer.state[parameter]["momentum_buffer"]
    torch.testing.assert_close(momentum, torch.full((4, 6), 3.0 * 0.05))


def test_a_gradient_of_zero_moves_nothing():
    parameter = torch.nn.Parameter(torch.ones(4, 6))
    parameter.grad = torch.zeros(4, 6)
    Muon([parameter], 1.0).step()
    assert torch.equal(parameter.detach(), torch.ones(4, 6))


def test_takes_matrices_only():
    with pytest.raises(ValueError, match="2D"):
        Muon([torch.nn.Parameter(torch.zeros(3))], 1.0)


def test_processes_divide_the_work_and_end_with_the_weights_of_one(run_ranks, tmp_path):
    results = run_ranks(4, "muon.py", tmp_path / "results.json")
    assert len(results) == 7
    for layout, found in results.items():
        assert all(equal for equal, _ in found), layout
        to_list = [count for _, count in found]
        # Ten matrices in two steps: eight of one shape, two each, and two that one process has.
        assert sum(to_list) == 20, layout
        assert sorted(to_list) == [4, 4, 4, 8], layout
