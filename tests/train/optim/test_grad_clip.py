import math

import pytest
import torch

from lpa.model.cost import parameter_count
from lpa.model.presets import preset_config
from lpa.train.distributed.meta_init import build_meta_model
from lpa.train.distributed.parallelize import ParallelLayout, parallelize
from lpa.train.optim.grad_clip import clip_grad_norm, square_grad_norm
from lpa.train.simulation.fake_world import fake_process_group


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


@pytest.mark.parametrize(
    "layout", [(1, 8, 1), (8, 1, 1), (1, 1, 8), (1, 4, 2), (4, 1, 2), (2, 2, 2)]
)
def test_the_parts_of_all_processes_add_up_in_every_layout(layout):
    """Of gradients of ones, each process of an even layout has the same part of the number of weights."""
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 8, "vocab_size": 512}
    config = preset_config("nano", intermediate_size=512, **sizes)
    with fake_process_group(8):
        model = build_meta_model(config)
        parallelize(model, ParallelLayout(*layout), "cpu", torch.float32)
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        part = square_grad_norm(model.parameters()).item()
    assert 8 * part == pytest.approx(parameter_count(config))
