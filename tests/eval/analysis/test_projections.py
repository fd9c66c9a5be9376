import pytest
import torch
from helpers.small_models import small_model
from torch import nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from lpa.errors import LPAWarning, UserError
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


def test_a_name_that_repeats_in_a_block_is_the_path_within_the_layer():
    config = BertConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        is_decoder=True,
    )
    found = list_projections(BertLMHeadModel(config))
    blocks = [
        ("query", "attention"),
        ("key", "attention"),
        ("value", "attention"),
        ("dense", "attention"),
        ("intermediate.dense", "ffn"),
        ("output.dense", "ffn"),
    ]
    assert [(projection.name, projection.sublayer) for projection in found] == blocks * 2
    assert found[-1].path == "bert.encoder.layer.1.output.dense"


def test_matrices_that_are_no_projections_are_named_once():
    config = MixtralConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    with pytest.warns(LPAWarning) as caught:
        found = list_projections(MixtralForCausalLM(config))
    assert {projection.sublayer for projection in found} == {"attention"}
    assert [str(warning.message) for warning in caught] == [
        "MixtralForCausalLM: leaves mlp.gate.weight, mlp.experts.gate_up_proj, mlp.experts.down_proj of "
        "the layers out; only nn.Linear, Conv1D and LowRankLinear are analyzed"
    ]


def test_a_model_of_projections_alone_brings_no_warning(recwarn):
    for model in (small_model(placement="attention"), gpt2()):
        list_projections(model)
    assert not recwarn.list


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
