"""The configuration of a run: its sections, what a recipe may say, and the ranges of fields."""

from lpa.train.config.model_config import ModelConfig
from lpa.train.config.optim_config import OptimConfig
from lpa.train.config.run_config import RunConfig
from lpa.train.config.sections import CheckpointConfig, DataConfig, DistillConfig, ParallelConfig
from lpa.train.config.train_config import TrainConfig

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "DistillConfig",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "RunConfig",
    "TrainConfig",
]
