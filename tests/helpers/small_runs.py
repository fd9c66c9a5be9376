"""A trainer of a model so small that a step takes milliseconds."""

from pathlib import Path

import torch

from lpa.data.dataset import IGNORE_INDEX, TokenDataset
from lpa.train.config import (
    CheckpointConfig,
    DataConfig,
    DistillConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from lpa.train.distributed.process_group import World
from lpa.train.trainer import Trainer

MODEL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rank": 8,
}


class UnequalDocuments(TokenDataset):
    """Samples of which different parts do not count, as where documents of unequal length are padded."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = super().__getitem__(index)
        labels = sample["shift_labels"].clone()
        labels[: (index * 7) % len(labels)] = IGNORE_INDEX
        return {**sample, "shift_labels": labels}


def with_path(fields: dict, name: str) -> dict:
    """Fields that may have come through JSON, where a path is text."""
    return fields | ({name: Path(fields[name])} if fields.get(name) else {})


def small_config(
    data: Path,
    *,
    parallel: dict | None = None,
    model: dict | None = None,
    optim: dict | None = None,
    checkpoint: dict | None = None,
    distill: dict | None = None,
    intra_document_mask: bool = False,
    **train,
) -> RunConfig:
    return RunConfig(
        data=DataConfig(data, seq_len=32, intra_document_mask=intra_document_mask),
        model=ModelConfig(**with_path(MODEL | (model or {}), "from_")),
        optim=OptimConfig(**({"warmup_steps": 2, "max_grad_norm": 0.5} | (optim or {}))),
        train=TrainConfig(**({"steps": 10, "batch_size": 8, "device": "cpu"} | train)),
        checkpoint=CheckpointConfig(**(checkpoint or {})),
        parallel=ParallelConfig(**(parallel or {})),
        distill=DistillConfig(**with_path(distill or {}, "teacher")),
    )


def small_trainer(
    data: Path,
    world: World | None = None,
    *,
    out: Path = Path("unused"),
    unequal: bool = False,
    **fields,
) -> Trainer:
    trainer = Trainer(small_config(data, **fields), out, world)
    if unequal:
        trainer.data.dataset.__class__ = UnequalDocuments
    return trainer
