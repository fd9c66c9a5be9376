"""ReLoRA against LoRA trained by autograd and merged by hand."""

import pytest
import torch

from lpa.train.config import OptimConfig
from lpa.train.optim.lr_schedule import lr_at_step
from lpa.train.optim.relora import ReLoRA

LR, EVERY, RANK = 0.02, 60, 3


def problem(shape):
    random = torch.Generator().manual_seed(0)
    start, target = (torch.randn(shape, generator=random).double() for _ in range(2))

    def loss(weight):
        return ((weight - target) ** 2).mean() + (weight**4).mean() / 10

    return start, loss


def train(shape, steps):
    """Each weight after each step, and the optimizer's state."""
    weight, loss = problem(shape)
    weight = torch.nn.Parameter(weight)
    optimizer = ReLoRA([weight], LR, restart_every=EVERY, rank=RANK)
    config = OptimConfig(
        name="relora", restart_every=EVERY, lr=LR, warmup_steps=0, min_lr_ratio=1.0
    )
    weights = []
    for number in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = lr_at_step(config, number, steps)
        optimizer.zero_grad()
        loss(weight).backward()
        optimizer.step()
        weights.append(weight.detach().clone())
    return weights, optimizer.state[weight]


def test_the_rate_rises_anew_where_skipped_steps_have_moved_a_merge():
    config = OptimConfig(
        name="relora", restart_every=EVERY, lr=LR, warmup_steps=0, min_lr_ratio=1.0
    )
    rates = [lr_at_step(config, EVERY + 1 + skipped, 300, skipped) for skipped in (0, 1, 20)]
    assert rates == [LR / 50] * 3
    assert lr_at_step(config, EVERY + 1, 300, 1) == LR


def test_the_first_period_is_adamw():
    weight, loss = problem((5, 8))
    weight = torch.nn.Parameter(weight)
    adamw = torch.optim.AdamW([weight], LR, weight_decay=0.0)
    for ours in train((5, 8), EVERY)[0]:
        adamw.zero_grad()
        loss(weight).backward()
        adamw.step()
        torch.testing.assert_close(ours, weight.detach())


@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_a_later_period_trains_the_factors_of_lora(shape):
    """Autograd's gradients of A and B, torch's AdamW, and the authors' rate after a merge."""
    weights, _ = train(shape, 2 * EVERY)
    _, loss = problem(shape)
    base = weights[EVERY - 1]
    state = train(shape, EVERY + 1)[1]
    bound = shape[1] ** -0.5
    generator = torch.Generator().manual_seed(1)
    down = torch.empty(RANK, shape[1]).uniform_(-bound, bound, generator=generator).double()
    assert (state["down"] - down).abs().max() < 1e-12  # one step from B = 0 gives A no gradient
    factors = [torch.nn.Parameter(down), torch.nn.Parameter(torch.zeros(shape[0], RANK).double())]
    adamw = torch.optim.AdamW(factors, LR, weight_decay=0.0)
    for number, ours in enumerate(weights[EVERY:]):
        adamw.param_groups[0]["lr"] = LR * min(1, (number + 1) / 50)
        adamw.zero_grad()
        loss(base + 32 / RANK * factors[1] @ factors[0]).backward()
        adamw.step()
        torch.testing.assert_close(
            ours, base + 32 / RANK * (factors[1] @ factors[0]).detach(), rtol=1e-9, atol=1e-9
        )


def test_a_merge_changes_no_weight_and_updates_of_several_periods_add_up_to_a_higher_rank():
    weights, state = train((12, 16), 4 * EVERY)
    assert "exp_avg" not in state
    for period in (1, 2, 3):
        update = weights[(period + 1) * EVERY - 1] - weights[period * EVERY - 1]
        assert torch.linalg.matrix_rank(update, rtol=1e-8) == RANK
    total = weights[4 * EVERY - 1] - weights[EVERY - 1]
    assert torch.linalg.matrix_rank(total, rtol=1e-8) == 3 * RANK
    # The first step after a merge is at 1/50 of the rate; an entry of B steps by (1 - β1) / √(1 - β2) = 3.2
    # times that at most where its moments are zero, and 3 entries of A, 1/4 at most, take it to the matrix.
    for period in (2, 3):
        step = weights[period * EVERY] - weights[period * EVERY - 1]
        assert step.abs().max() <= 32 / RANK * 3 * 0.25 * 3.2 * LR / 50


def test_a_merge_keeps_the_moments_of_a_hundredth_of_the_entries():
    _, before = train((40, 50), 2 * EVERY)
    _, after = train((40, 50), 2 * EVERY + 1)
    # Of A, which has no gradient in the first step from B = 0, so that its moments only fade by then.
    mean, square = before["down_exp_avg"], before["down_exp_avg_sq"]
    kept = after["down_exp_avg"] != 0
    assert kept.sum() == round(0.01 * mean.numel())
    assert mean.abs()[kept].min() >= mean.abs()[~kept].max()
    torch.testing.assert_close(after["down_exp_avg"], 0.9 * mean * kept)
    torch.testing.assert_close(after["down_exp_avg_sq"], 0.999 * square * kept)
