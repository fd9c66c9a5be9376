"""Configurations from plain values: what is accepted, what is turned into what, what is named."""

from pathlib import Path

import pytest
import yaml

from lpa.errors import UserError
from lpa.train.config import RunConfig


def test_a_configuration_comes_back_from_its_own_yaml():
    config = RunConfig.from_dict(
        {
            "data": {"path": "somewhere", "seq_len": 64},
            "model": {"rank": 8, "ranks": {"q_proj": [4, None]}},
            "optim": {"lr": 1, "down_weight_decay": 0},
            "distill": {"teacher": "parent"},
        }
    )
    assert config.data.path == Path("somewhere")
    assert config.distill.teacher == Path("parent")
    assert isinstance(config.optim.lr, float)
    assert RunConfig.from_dict(yaml.safe_load(config.to_yaml())) == config


def test_a_number_that_yaml_1_1_reads_as_text_is_a_number(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {path: data}\noptim: {lr: 1e-3, eps: 1E-8, weight_decay: .5e+1}\n")
    optim = RunConfig.load(recipe).optim
    assert (optim.lr, optim.eps, optim.weight_decay) == (1e-3, 1e-8, 5.0)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (
            "optim",
            {"name": "sgd"},
            "optim.name: got 'sgd'; expected one of adamw, muon",
        ),
        ("optim", {"speed": 1}, "optim.speed: unknown field; expected one of beta1"),
        ("optim", {"lr": "fast"}, "optim.lr: got 'fast'; expected a number"),
        ("optim", {"lr": True}, "optim.lr: got True; expected a number"),
        ("optim", {"up_weight_decay": "x"}, "expected a number or null"),
        ("optim", {"warmup_steps": 1.5}, "expected a whole number"),
        ("model", {"ranks": [1]}, "expected a mapping or null"),
    ],
)
def test_what_does_not_fit_is_named(section, values, message):
    with pytest.raises(UserError) as refused:
        RunConfig.from_dict({"data": {"path": "data"}, section: values})
    assert message in str(refused.value)


def test_an_unknown_section_is_named():
    with pytest.raises(UserError, match="section: got optimizer; expected one of data, model"):
        RunConfig.from_dict({"data": {"path": "data"}, "optimizer": {}})
