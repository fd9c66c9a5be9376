"""What each process reads for each step."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lpa.data.dataset import IGNORE, TokenDataset, check_shards, split_tokens
from lpa.data.loader import sample_loader
from lpa.data.manifest import Manifest
from lpa.train.config import DataConfig
from lpa.train.distributed import World, together


class RunData:
    """The tokens of a run: the stream to train on and the validation split.

    Raises:
        UserError: the directory is no prepared one, or damaged.
    """

    def __init__(self, config: DataConfig, seed: int, world: World) -> None:
        path: Path = config.path
        self.manifest = Manifest.load(path)
        self.stream = TokenDataset(
            path,
            "train",
            context=config.context,
            seed=seed,
            separate_documents=config.separate_documents,
        )
        if config.verify:  # once for all, as it reads every shard
            together(lambda: check_shards(path, "train") if world.is_main else None)
        self.validation = None
        if "validation" in self.manifest.splits:
            self.validation = split_tokens(path, "validation")

    @property
    def identity(self) -> dict[str, str]:
        """Field -> hash of what is trained on; the same tokens in another directory are the same."""
        return {
            "data.tokens": "+".join(shard.sha256 for shard in self.manifest.split("train").shards),
            "data.tokenizer": self.manifest.tokenizer_sha256,
        }


@dataclass
class MicroBatch:
    """The samples of one forward pass.

    Attributes:
        inputs: what the model takes, (samples, context) each, on the device.
        samples: their numbers in the stream.
    """

    inputs: dict[str, Tensor]
    samples: list[int]

    @property
    def targets(self) -> int:
        """Tokens that count in the loss."""
        return int((self.inputs["shift_labels"] != IGNORE).sum())


class StepReader:
    """The micro-batches of one step after another, for one of the processes that share the stream.

    Args:
        start: the first sample of the first step, in the stream of all processes.
        steps: how many steps will be read.
        batch_size: samples per step of all processes.
        micro_batch: samples per forward pass of one.
        data_rank, data_size: which of them this is, and how many there are.
        workers: processes that read ahead.
    """

    def __init__(
        self,
        stream: TokenDataset,
        device: torch.device,
        *,
        start: int,
        steps: int,
        batch_size: int,
        micro_batch: int,
        data_rank: int,
        data_size: int,
        workers: int,
    ) -> None:
        self._device = device
        self._next = start + data_rank
        self._stride = data_size
        self._size = micro_batch
        self._per_step = batch_size // (micro_batch * data_size)
        self._batches = sample_loader(
            stream,
            batch_size=micro_batch,
            start=start,
            stop=start + steps * batch_size,
            rank=data_rank,
            world_size=data_size,
            workers=workers,
        )

    def next_step(self) -> list[MicroBatch]:
        return [self._next_batch() for _ in range(self._per_step)]

    def _next_batch(self) -> MicroBatch:
        batch = next(self._batches)
        samples = [self._next + place * self._stride for place in range(self._size)]
        self._next = samples[-1] + self._stride
        inputs = {
            name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()
        }
        return MicroBatch(inputs, samples)
