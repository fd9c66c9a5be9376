import pytest
import torch
from helpers.small_models import small_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lpa.errors import UserError
from lpa.eval.analysis.projections import input_directions, list_projections, truncate_projections


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    )


def test_every_projection_of_every_layer_once():
    found = list_projections(small_model(placement="attention"))
    first = [
        (projection.name, projection.sublayer, projection.max_rank)
        for projection in found
        if projection.layer == 0
    ]
    assert first == [
        *((f"{name}_proj", "attention", 8) for name in "qkvo"),
        *((f"{name}_proj", "ffn", 32) for name in ("gate", "up", "down")),
    ]
    assert [projection.layer for projection in found] == [0] * 7 + [1] * 7


def test_fused_and_transposed_projections_of_gpt2():
    found = list_projections(gpt2())
    assert [(projection.name, projection.sublayer) for projection in found[:4]] == [
        ("c_attn", "attention"),
        ("c_proj", "attention"),
        ("c_fc", "ffn"),
        ("c_proj", "ffn"),
    ]
    assert input_directions(found[0].module).shape == (32, 32)


def test_a_model_without_layers_is_refused():
    with pytest.raises(UserError, match=r"Sequential: has no nn.Linear"):
        list_projections(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("model", [small_model(placement="attention"), gpt2()], ids=["lpa", "gpt2"])
def test_a_truncation_is_the_best_approximation_and_is_undone(model):
    x = torch.randn(5, 32)
    for projection in list_projections(model)[:3]:
        with torch.no_grad():
            before = projection.module(x)
            bias = projection.module(torch.zeros(1, 32))
            weight = (projection.module(torch.eye(32)) - bias).T.double()
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        best = (u[:, :4] * s[:4]) @ vh[:4]
        with (
            truncate_projections([projection], [input_directions(projection.module)], 4),
            torch.no_grad(),
        ):
            inside = projection.module(x)
        expected = x.double() @ best.T + bias
        assert torch.allclose(inside.double(), expected, atol=1e-5)
        with torch.no_grad():
            assert torch.equal(projection.module(x), before)


def test_a_truncation_is_undone_after_an_error():
    model = small_model(placement="attention")
    projection = list_projections(model)[0]
    before = projection.module.down.weight.clone()
    directions = [input_directions(projection.module)]

    def fail() -> None:
        with truncate_projections([projection], directions, 1):
            assert not torch.equal(projection.module.down.weight, before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.equal(projection.module.down.weight, before)
