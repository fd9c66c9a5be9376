"""Configurations from plain values: what is accepted, what is turned into what, what is named."""

from pathlib import Path

import pytest
import yaml

from lpa.errors import UserError
from lpa.train.config import ModelConfig, OptimConfig, RunConfig
from lpa.train.field_types import typed_values


def test_a_configuration_comes_back_from_its_own_yaml():
    config = RunConfig.from_dict(
        {
            "data": {"path": "somewhere", "context": 64},
            "model": {"rank": 8, "ranks": {"q_proj": [4, None]}},
            "optim": {"lr": 1, "down_decay": 0},
            "distill": {"teacher": "parent"},
        }
    )
    assert config.data.path == Path("somewhere")
    assert config.distill.teacher == Path("parent")
    assert isinstance(config.optim.lr, float)
    assert RunConfig.from_dict(yaml.safe_load(config.to_yaml())) == config


def test_a_number_that_yaml_reads_as_text_is_a_number():
    assert yaml.safe_load("lr: 1e-3") == {"lr": "1e-3"}
    assert typed_values("optim", OptimConfig, {"lr": "1e-3"}) == {"lr": 0.001}


@pytest.mark.parametrize(
    ("section", "kind", "values", "message"),
    [
        (
            "optim",
            OptimConfig,
            {"name": "sgd"},
            "optim.name: got 'sgd'; expected one of adamw, muon",
        ),
        ("optim", OptimConfig, {"speed": 1}, "optim.speed: unknown field; expected one of beta1"),
        ("optim", OptimConfig, {"lr": "fast"}, "optim.lr: got 'fast'; expected a number"),
        ("optim", OptimConfig, {"lr": True}, "optim.lr: got True; expected a number"),
        ("optim", OptimConfig, {"up_decay": "x"}, "expected a number or null"),
        ("optim", OptimConfig, {"warmup_steps": 1.5}, "expected a whole number"),
        ("model", ModelConfig, {"ranks": [1]}, "expected a mapping or null"),
    ],
)
def test_what_does_not_fit_is_named(section, kind, values, message):
    with pytest.raises(UserError) as refused:
        typed_values(section, kind, values)
    assert message in str(refused.value)


def test_an_unknown_section_is_named():
    with pytest.raises(UserError, match="section: got optimizer; expected one of data, model"):
        RunConfig.from_dict({"data": {"path": "data"}, "optimizer": {}})
