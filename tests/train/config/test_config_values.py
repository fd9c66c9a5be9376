"""Configurations from plain values: what is accepted, what is turned into what, what is named."""

from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from helpers.small_runs import small_config

from lpa.errors import UserError
from lpa.train.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from lpa.train.dry_run import plan_run
from lpa.train.run import train


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


def choices() -> list[tuple[str, type, str]]:
    """Section, its class and name of each field that has choices."""
    return [
        (section, kind, field.name)
        for section, kind in get_type_hints(RunConfig).items()
        for field in fields(kind)
        if Literal in map(get_origin, [field.type, *get_args(field.type)])
    ]


def test_fields_with_choices_are_found():
    assert len(choices()) > 8


@pytest.mark.parametrize(("section", "kind", "name"), choices())
def test_a_wrong_choice_is_refused_in_python(section, kind, name):
    with pytest.raises(UserError, match=rf"{section}.{name}: got 'cosin'; expected one of"):
        kind(**{name: "cosin"})


def test_values_of_another_type_are_refused_in_python():
    with pytest.raises(UserError, match=r"train.compile: got 'false'; expected true or false"):
        TrainConfig(compile="false")
    with pytest.raises(UserError, match=r"optim.lr: got 'fast'; expected a number"):
        OptimConfig(lr="fast")
    with pytest.raises(UserError, match=r"data.path: got 5; expected a path"):
        DataConfig(path=5)
    assert OptimConfig(lr=1).lr == 1


def test_a_field_that_was_set_is_checked_before_anything_is_written(prepared, tmp_path):
    config = small_config(prepared)
    config.optim.trainable = "factor"
    for run in (lambda: train(config, tmp_path / "run"), lambda: plan_run(config)):
        with pytest.raises(UserError, match=r"optim.trainable: got 'factor'; .*mean factors"):
            run()
    assert not list(tmp_path.iterdir())


def test_tokens_that_were_set_decide_the_steps(prepared, tmp_path):
    config = small_config(prepared)
    config.train.tokens = 3 * config.train.batch_size * config.data.seq_len
    assert config.train.steps != 3
    assert plan_run(config).steps == 3
    assert train(config, tmp_path / "run").steps == 3
    assert RunConfig.load(tmp_path / "run" / "config.yaml").train.steps == 3


def test_configurations_that_share_a_section_do_not_change_each_other():
    shared = TrainConfig(tokens=4096, batch_size=4)
    short = RunConfig(data=DataConfig(Path("data"), seq_len=32), train=shared)
    long = RunConfig(data=DataConfig(Path("data"), seq_len=64), train=shared)
    assert (short.train.steps, long.train.steps) == (32, 16)
    assert shared == TrainConfig(tokens=4096, batch_size=4)
