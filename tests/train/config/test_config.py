from pathlib import Path

import pytest

from lpa.errors import UserError
from lpa.train.config import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)


def run_config(**sections) -> RunConfig:
    return RunConfig(**({"data": DataConfig(Path("data"))} | sections))


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        (DataConfig, {"path": "x", "seq_len": -1}, "data.seq_len: got -1; expected at least 0"),
        (OptimConfig, {"lr": float("nan")}, "optim.lr: got nan; expected a positive number"),
        (OptimConfig, {"lr": float("inf")}, "optim.lr: got inf"),
        (OptimConfig, {"lr": -1.0}, "optim.lr: got -1.0"),
        (OptimConfig, {"beta2": 1.0}, "optim.beta2: got 1.0; expected at least 0 and below 1"),
        (OptimConfig, {"weight_decay": -0.1}, "optim.weight_decay: got -0.1"),
        (OptimConfig, {"min_lr_ratio": 2.0}, "optim.min_lr_ratio: got 2.0; expected from 0 to 1"),
        (OptimConfig, {"warmup_steps": -1}, "optim.warmup_steps: got -1"),
        (TrainConfig, {"steps": 0}, "train.steps: got 0; expected at least 1"),
        (TrainConfig, {"seed": -1}, "train.seed: got -1"),
        (
            TrainConfig,
            {"micro_batch_size": 0},
            "train.micro_batch_size: got 0; expected at least 1",
        ),
        (
            TrainConfig,
            {"max_seconds": 0.0},
            "train.max_seconds: got 0.0; expected a positive number",
        ),
        (ParallelConfig, {"tensor": 0}, "parallel.tensor: got 0; expected at least 1"),
        (TrainConfig, {"stop_at": 0}, "train.stop_at: got 0"),
        (
            CheckpointConfig,
            {"keep_latest_k": 0},
            "checkpoint.keep_latest_k: got 0; expected at least 1",
        ),
    ],
)
def test_bad_values_are_refused_by_name(section, fields, message):
    with pytest.raises(UserError) as error:
        section(**fields)
    assert message in str(error.value)


def test_lengths_that_cannot_be_compared_yet_are_given_once():
    """Of a recipe whose context is that of `model.from`."""
    TrainConfig.check_lengths({"steps": 3}, 0)
    with pytest.raises(UserError, match=r"train.steps: got 3 beside train.tokens 9; expected one"):
        TrainConfig.check_lengths({"steps": 3, "tokens": 9}, 0)


def test_the_model_takes_vocabulary_and_positions_from_the_data():
    config = ModelConfig(preset="nano", placement="none").build(vocab_size=500, seq_len=64)
    assert (config.vocab_size, config.max_position_embeddings) == (500, 64)
    assert (config.hidden_size, config.placement) == (256, "none")


def test_the_model_takes_its_start_from_the_recipe():
    config = ModelConfig(initialization="spectral", residual_scaling=True)
    built = config.build(vocab_size=500, seq_len=64)
    assert (built.initialization, built.residual_scaling) == ("spectral", True)
    built = ModelConfig().build(vocab_size=500, seq_len=64)
    assert (built.initialization, built.residual_scaling) == ("scaled", False)


def test_the_model_may_have_a_larger_vocabulary_than_the_data_but_no_smaller():
    assert ModelConfig(vocab_size=512).build(vocab_size=500, seq_len=64).vocab_size == 512
    with pytest.raises(UserError, match=r"model.vocab_size: got 499; .* at least 500"):
        ModelConfig(vocab_size=499).build(vocab_size=500, seq_len=64)


@pytest.mark.parametrize(
    ("fields", "steps", "batch_size"),
    [
        ({"tokens": 10_000, "batch_size": 4}, 40, 4),  # 39.06 steps of 256 tokens
        ({"tokens": 10_240, "batch_size": 4}, 40, 4),
        ({"batch_tokens": 512, "steps": 7}, 7, 8),
        ({"batch_tokens": 512, "tokens": 1024}, 2, 8),
    ],
)
def test_tokens_decide_steps_and_samples(fields, steps, batch_size):
    config = run_config(data=DataConfig(Path("data"), seq_len=64), train=TrainConfig(**fields))
    assert (config.train.steps, config.train.batch_size) == (steps, batch_size)


def test_tokens_per_step_must_be_whole_samples():
    with pytest.raises(
        UserError, match=r"train.batch_tokens: got 100; expected a multiple of .*64"
    ):
        run_config(data=DataConfig(Path("data"), seq_len=64), train=TrainConfig(batch_tokens=100))


def test_a_step_is_divided_over_processes_and_forward_passes():
    assert TrainConfig(batch_size=8).resolve_micro_batch_size(1) == 8
    assert TrainConfig(batch_size=8).resolve_micro_batch_size(4) == 2
    assert TrainConfig(batch_size=8, micro_batch_size=1).resolve_micro_batch_size(4) == 1
    with pytest.raises(UserError, match=r"train.micro_batch_size: got 3; expected a divisor"):
        TrainConfig(batch_size=8, micro_batch_size=3).resolve_micro_batch_size(1)
    with pytest.raises(UserError, match=r"train.batch_size: got 8; expected a multiple of .*\(3\)"):
        TrainConfig(batch_size=8).resolve_micro_batch_size(3)
