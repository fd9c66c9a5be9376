"""What each process reads for each step."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lpa.data.dataloader import build_dataloader
from lpa.data.dataset import IGNORE_INDEX, TokenDataset, TokenSplit, verify_shard
from lpa.data.manifest import Manifest, Shard
from lpa.data.tokenizer import verify_tokenizer
from lpa.data.verification import remember_verified, unverified_shards
from lpa.device import send_to_device
from lpa.display import console
from lpa.errors import UserError
from lpa.train.config import DataConfig
from lpa.train.distributed.process_group import World, all_gather_objects, run_on_all_ranks

# Tokens that are verified before anybody asks what takes so long.
_TOKENS_IN_SECONDS = 10**9


class TrainingData:
    """The tokens of a run: the stream to train on and the validation split.

    Raises:
        UserError: the directory is no prepared one, or damaged, or its tokenizer is not the manifest's, or
            the machines have different copies of it.
    """

    def __init__(self, config: DataConfig, seed: int, world: World) -> None:
        self._path = path = config.path
        self.manifest = run_on_all_ranks(lambda: Manifest.load(path))
        run_on_all_ranks(lambda: verify_tokenizer(path, self.manifest))
        self._intra_document_mask = config.intra_document_mask
        self.dataset = run_on_all_ranks(
            lambda: TokenDataset(
                path,
                "train",
                seq_len=config.seq_len,
                seed=seed,
                intra_document_mask=config.intra_document_mask,
                manifest=self.manifest,
            )
        )
        self._check_same_on_all_ranks(world)
        has_validation = "validation" in self.manifest.splits
        self.validation = run_on_all_ranks(
            lambda: TokenSplit(path, "validation", self.manifest) if has_validation else None
        )
        splits = ["train"] * config.verify + ["validation"] * has_validation
        _verify_shards(path, self.manifest, splits, world)

    def _check_same_on_all_ranks(self, world: World) -> None:
        """Each machine may have its own copy of the directory; what a run reads of them must be the same."""
        validation = self.manifest.splits.get("validation")
        own = self.fingerprints | {
            "validation": [shard.sha256 for shard in validation.shards] if validation else None,
            "vocab_size": self.manifest.vocab_size,
            "bos_token_id": self.manifest.bos_token_id,
            "eos_token_id": self.manifest.eos_token_id,
        }
        first = all_gather_objects(own)[0]

        def check() -> None:
            different = [name for name, value in own.items() if value != first[name]]
            if different:
                raise UserError(
                    f"data.path: got {self._path}, which on rank {world.rank} differs from that on rank 0 in "
                    f"{', '.join(different)}; expected the same data on all machines"
                )

        run_on_all_ranks(check)

    @property
    def document_end(self) -> int | None:
        """The token after which no other document is seen; None where documents see each other."""
        return self.manifest.eos_token_id if self._intra_document_mask else None

    def require_validation(self, field: str) -> None:
        """Raises:
        UserError: there is no validation split, naming the field that needs one.
        """
        if self.validation is None:
            raise UserError(
                f"{field}: got true; expected data with a validation split, which {self._path} lacks"
            )

    @property
    def validation_fingerprint(self) -> str | None:
        """The hash of the validation split; None where there is none."""
        split = self.manifest.splits.get("validation")
        return "+".join(shard.sha256 for shard in split.shards) if split else None

    @property
    def fingerprints(self) -> dict[str, str]:
        """Field -> hash of what is trained on; the same tokens in another directory are the same."""
        return {
            "data.tokens": "+".join(shard.sha256 for shard in self.manifest.split("train").shards),
            "data.tokenizer": self.manifest.tokenizer_sha256,
        }


def _verify_shards(path: Path, manifest: Manifest, splits: list[str], world: World) -> None:
    """Verify the shards that have changed since they were verified, each by one process that sees it.

    Processes share the work where they see the same files; each copy of the data is verified. All processes
    meet after each shard: none waits for another longer than one shard takes.
    """
    shards = [shard for split in splits for shard in manifest.split(split).shards]
    seen = run_on_all_ranks(lambda: (_file_ids(path, shards), unverified_shards(path, shards)))
    seen_by_rank = all_gather_objects(seen)
    sharing = [rank for rank, (files, _) in enumerate(seen_by_rank) if files == seen[0]]
    names = {shard.name for rank in sharing for shard in seen_by_rank[rank][1]}
    unverified = [shard for shard in shards if shard.name in names]
    own = unverified[sharing.index(world.rank) :: len(sharing)]
    by_rank = all_gather_objects(own)
    is_long = sum(shard.tokens for share in by_rank for shard in share) > _TOKENS_IN_SECONDS
    with console.progress_display(visible=world.is_main and is_long) as display:
        bar = display.add_task("verifying shards", total=sum(map(len, by_rank)), status="")
        for turn in range(max(map(len, by_rank))):
            run_on_all_ranks(partial(_verify_all, path, manifest, own[turn : turn + 1]))
            display.update(bar, advance=sum(turn < len(share) for share in by_rank))
    if world.rank == sharing[0] and unverified:
        remember_verified(path, unverified)


def _file_ids(path: Path, shards: list[Shard]) -> list[tuple[int, int]]:
    """Equal for two processes only where they see the same files, be it from different machines.

    Copies may by chance have the same inode numbers, but no program that copies sets the time of change.
    """
    found = [(path / shard.name).stat() for shard in shards]
    return [(status.st_ino, status.st_ctime_ns) for status in found]


def _verify_all(path: Path, manifest: Manifest, shards: list[Shard]) -> None:
    for shard in shards:
        verify_shard(path, manifest, shard)


@dataclass
class MicroBatch:
    """The samples of one forward pass.

    Attributes:
        inputs: what the model takes, (samples, context) each, on the device.
        sample_indices: their numbers in the stream.
        num_targets: tokens that count in the loss, counted before they are sent to the device.
    """

    inputs: dict[str, Tensor]
    sample_indices: list[int]
    num_targets: int


class BatchReader:
    """The micro-batches of one step after another, for one of the processes that share the stream.

    Args:
        start: the first sample of the first step, in the stream of all processes.
        steps: how many steps will be read.
        batch_size: samples per step of all processes.
        micro_batch_size: samples per forward pass of one.
        dp_rank, dp_size: which of them this is, and how many there are.
        num_workers: processes that read ahead.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        device: torch.device,
        *,
        start: int,
        steps: int,
        batch_size: int,
        micro_batch_size: int,
        dp_rank: int,
        dp_size: int,
        num_workers: int,
    ) -> None:
        self._device = device
        self._next = start + dp_rank
        self._stride = dp_size
        self._micro_batch_size = micro_batch_size
        self._ahead: list[MicroBatch] = []
        self._per_step = batch_size // (micro_batch_size * dp_size)
        self._batches = build_dataloader(
            dataset,
            batch_size=micro_batch_size,
            start=start,
            stop=start + steps * batch_size,
            rank=dp_rank,
            world_size=dp_size,
            num_workers=num_workers,
            pin_memory=device.type == "cuda",
        )

    def next_step(self) -> list[MicroBatch]:
        """The micro-batches of the next step.

        Raises:
            StopIteration: after the last step.
        """
        batches = self._ahead or self._read_step()
        self._ahead = []
        return batches

    def prefetch_step(self) -> int:
        """Read the next step's micro-batches and send them to the device, while it works on this step.

        Returns:
            Their tokens that count in the loss; 0 after the last step.
        """
        with suppress(StopIteration):
            self._ahead = self._ahead or self._read_step()
        return sum(batch.num_targets for batch in self._ahead)

    def _read_step(self) -> list[MicroBatch]:
        return [self._next_batch() for _ in range(self._per_step)]

    def _next_batch(self) -> MicroBatch:
        batch = next(self._batches)
        sample_indices = [
            self._next + offset * self._stride for offset in range(self._micro_batch_size)
        ]
        self._next = sample_indices[-1] + self._stride
        num_targets = int(np.count_nonzero(batch["shift_labels"].numpy() != IGNORE_INDEX))
        return MicroBatch(send_to_device(batch, self._device), sample_indices, num_targets)
