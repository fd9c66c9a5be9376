from pathlib import Path

import pytest

from lpa.errors import UserError
from lpa.train.config import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    check_same,
)


def run_config(**sections) -> RunConfig:
    return RunConfig(**({"data": DataConfig(Path("data"))} | sections))


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        (DataConfig, {"path": "x", "context": 0}, "data.context: got 0; expected at least 1"),
        (OptimConfig, {"lr": float("nan")}, "optim.lr: got nan; expected a positive number"),
        (OptimConfig, {"lr": float("inf")}, "optim.lr: got inf"),
        (OptimConfig, {"lr": -1.0}, "optim.lr: got -1.0"),
        (OptimConfig, {"beta2": 1.0}, "optim.beta2: got 1.0; expected at least 0 and below 1"),
        (OptimConfig, {"weight_decay": -0.1}, "optim.weight_decay: got -0.1"),
        (OptimConfig, {"min_lr_ratio": 2.0}, "optim.min_lr_ratio: got 2.0; expected from 0 to 1"),
        (OptimConfig, {"warmup_steps": -1}, "optim.warmup_steps: got -1"),
        (TrainConfig, {"steps": 0}, "train.steps: got 0; expected at least 1"),
        (TrainConfig, {"seed": -1}, "train.seed: got -1"),
        (TrainConfig, {"micro_batch_size": 3}, "train.micro_batch_size: got 3; expected a divisor"),
        (TrainConfig, {"stop_at": 0}, "train.stop_at: got 0"),
        (CheckpointConfig, {"keep": 0}, "checkpoint.keep: got 0; expected at least 1"),
    ],
)
def test_bad_values_are_refused_by_name(section, fields, message):
    with pytest.raises(UserError) as error:
        section(**fields)
    assert message in str(error.value)


def test_the_model_takes_vocabulary_and_positions_from_the_data():
    config = ModelConfig(preset="nano", placement="none").build(vocab_size=500, context=64)
    assert (config.vocab_size, config.max_position_embeddings) == (500, 64)
    assert (config.hidden_size, config.placement) == (256, "none")


def test_the_model_takes_its_start_from_the_recipe():
    config = ModelConfig(initialization="spectral", residual_scaling=True)
    built = config.build(vocab_size=500, context=64)
    assert (built.initialization, built.residual_scaling) == ("spectral", True)
    built = ModelConfig().build(vocab_size=500, context=64)
    assert (built.initialization, built.residual_scaling) == ("scaled", False)


def test_the_model_may_have_a_larger_vocabulary_than_the_data_but_no_smaller():
    assert ModelConfig(vocab_size=512).build(vocab_size=500, context=64).vocab_size == 512
    with pytest.raises(UserError, match=r"model.vocab_size: got 499; .* at least 500"):
        ModelConfig(vocab_size=499).build(vocab_size=500, context=64)


def test_a_run_goes_on_with_its_own_configuration_alone():
    saved = run_config(train=TrainConfig(steps=60)).to_yaml()
    check_same(saved, run_config(train=TrainConfig(steps=60)))
    with pytest.raises(UserError) as error:
        check_same(
            saved, run_config(train=TrainConfig(steps=90, seed=1), optim=OptimConfig(lr=3e-3))
        )
    for difference in (
        "train.steps was 60, now 90",
        "train.seed was 0, now 1",
        "optim.lr was 0.001, now 0.003",
    ):
        assert difference in str(error.value)


def test_where_a_run_stops_and_what_it_keeps_may_change():
    saved = run_config(train=TrainConfig(stop_at=30)).to_yaml()
    check_same(saved, run_config(checkpoint=CheckpointConfig(every=7, keep=9)))
