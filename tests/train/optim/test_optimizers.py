import pytest
import torch
from helpers.small_models import small_config

from lpa.errors import UserError
from lpa.model import LPAForCausalLM
from lpa.train.config import OptimConfig
from lpa.train.optim.muon import Muon
from lpa.train.optim.optimizers import build_optimizers

PAIR = "model.layers.0.self_attn.q_proj"


def model_and_groups(config, **fields):
    """A model, its optimizers, and for each parameter's name its optimizer and group."""
    model = LPAForCausalLM(small_config(**fields))
    optimizers = build_optimizers(model, config, torch.float32)
    groups = {
        parameter: (type(member), group)
        for member in optimizers.members
        for group in member.param_groups
        for parameter in group["params"]
    }
    return model, optimizers, {name: groups[p] for name, p in model.named_parameters()}


@pytest.mark.parametrize("decoder_type", ["llama", "paper"])
def test_matrices_decay_and_vectors_do_not(decoder_type):
    model, _, groups = model_and_groups(
        OptimConfig(weight_decay=0.3), decoder_type=decoder_type, lm_head_bias=True
    )
    for name, parameter in model.named_parameters():
        assert groups[name][1]["weight_decay"] == (0.0 if parameter.ndim == 1 else 0.3), name
    assert groups["model.embed_tokens.weight"][1]["weight_decay"] == 0.3
    assert groups["lm_head.bias"][1]["weight_decay"] == 0.0


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [False, True])
def test_each_parameter_is_stepped_once(name, tied):
    model, optimizers, _ = model_and_groups(
        OptimConfig(name=name, down_lr_scale=2.0, up_weight_decay=0.0), tie_word_embeddings=tied
    )
    stepped = [
        p for member in optimizers.members for group in member.param_groups for p in group["params"]
    ]
    assert len(stepped) == len(set(stepped)) == len(list(model.parameters()))


def test_muon_has_the_matrices_inside_layers_and_adamw_the_rest():
    model, _, groups = model_and_groups(OptimConfig(name="muon"), lm_head_bias=True)
    for name, parameter in model.named_parameters():
        inside = name.startswith("model.layers.") and parameter.ndim == 2
        assert groups[name][0] is (Muon if inside else torch.optim.AdamW), name
    assert {f"{PAIR}.down.weight", "model.embed_tokens.weight", "lm_head.weight"} < set(groups)


def test_a_frozen_parameter_is_in_no_optimizer():
    model = LPAForCausalLM(small_config())
    model.model.embed_tokens.requires_grad_(False)
    (adamw,) = build_optimizers(model, OptimConfig(), torch.float32).members
    stepped = {p for group in adamw.param_groups for p in group["params"]}
    assert stepped == {p for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_factors_of_a_pair_have_separate_rates_and_decays(name):
    config = OptimConfig(
        name=name,
        lr=0.01,
        weight_decay=0.3,
        down_weight_decay=0.05,
        down_lr_scale=2.0,
        up_lr_scale=0.5,
    )
    _, optimizers, groups = model_and_groups(config)

    def settings():
        return {
            name: (groups[name][1]["lr"], groups[name][1]["weight_decay"])
            for name in (
                *(f"{PAIR}.down.weight", f"{PAIR}.up.weight"),
                *("model.layers.0.mlp.gate_proj.weight", "lm_head.weight"),
            )
        }

    assert list(settings().values()) == [(0.02, 0.05), (0.005, 0.3), (0.01, 0.3), (0.01, 0.3)]
    optimizers.set_lr(1.0)
    assert optimizers.lr == 1.0
    assert list(settings().values()) == [(2.0, 0.05), (0.5, 0.3), (1.0, 0.3), (1.0, 0.3)]


def test_a_decay_of_zero_for_one_factor_is_not_the_default():
    _, _, groups = model_and_groups(OptimConfig(weight_decay=0.3, up_weight_decay=0.0))
    assert groups[f"{PAIR}.up.weight"][1]["weight_decay"] == 0.0
    assert groups[f"{PAIR}.down.weight"][1]["weight_decay"] == 0.3


def test_decay_of_products_takes_the_place_of_that_of_factors_alone():
    config = OptimConfig(weight_decay=0.3, low_rank_decay="product", down_lr_scale=2.0)
    model, optimizers, groups = model_and_groups(config)
    assert groups[f"{PAIR}.down.weight"][1]["weight_decay"] == 0.0
    assert groups[f"{PAIR}.up.weight"][1]["weight_decay"] == 0.0
    assert groups["model.layers.0.mlp.gate_proj.weight"][1]["weight_decay"] == 0.3

    pair = model.get_submodule(PAIR)
    down, up = pair.down.weight.detach().clone(), pair.up.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.set_lr(0.01)
    optimizers.step()
    # Without a gradient AdamW moves nothing, so what moves is the decay.
    near = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(
        pair.down.weight.detach(), down - 0.01 * 2.0 * 0.3 * up.T @ up @ down, **near
    )
    torch.testing.assert_close(
        pair.up.weight.detach(), up - 0.01 * 0.3 * up @ down @ down.T, **near
    )


def test_two_steps_are_adamw_by_hand():
    """Loshchilov & Hutter 2019, algorithm 2."""
    linear = torch.nn.Linear(3, 2, bias=False)
    expected = linear.weight.detach().double()
    config = OptimConfig(lr=0.01, weight_decay=0.1, beta1=0.8, beta2=0.9, eps=1e-8)
    optimizers = build_optimizers(linear, config, torch.float32)
    m = v = torch.zeros(2, 3, dtype=torch.float64)
    for step in (1, 2):
        gradient = torch.randn(2, 3)
        linear.weight.grad = gradient.clone()
        optimizers.step()
        g = gradient.double()
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        update = (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-8)
        expected = expected - 0.01 * (update + 0.1 * expected)
    torch.testing.assert_close(linear.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_freed():
    model, optimizers, _ = model_and_groups(OptimConfig(name="muon"))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"down_lr_scale": 0.0},
            "optim.down_lr_scale: got 0.0; expected a positive number, at most 1e+06",
        ),
        (
            {"up_lr_scale": -1.0},
            "optim.up_lr_scale: got -1.0; expected a positive number, at most 1e+06",
        ),
        (
            {"down_weight_decay": -0.1},
            "optim.down_weight_decay: got -0.1; expected a number from 0 to 1,000,000",
        ),
        (
            {"up_weight_decay": float("nan")},
            "optim.up_weight_decay: got nan; expected a number from 0 to 1,000,000",
        ),
        (
            {"low_rank_decay": "product", "up_weight_decay": 0.1},
            "optim.up_weight_decay: got 0.1; expected null with optim.low_rank_decay product, "
            "which decays by optim.weight_decay",
        ),
        ({"decay_fraction": 1.5}, "optim.decay_fraction: got 1.5; expected from 0 to 1"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_one_line(fields, message):
    with pytest.raises(UserError) as error:
        OptimConfig(**fields)
    assert str(error.value) == message


@pytest.mark.parametrize("option", ["--optim.name", "--optim.schedule", "--optim.low_rank_decay"])
def test_an_unknown_choice_is_refused_by_the_command(lpa, tmp_path, option):
    finished = lpa("train", "--data.path", tmp_path, "--out", tmp_path / "run", option, "sgd")
    assert finished.code == 2
    assert option.removeprefix("--") in finished.stderr
    assert "sgd" in finished.stderr
