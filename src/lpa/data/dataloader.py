"""Samples to batches: which process reads which, ahead of time where workers are asked for."""

import atexit
import signal
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lpa.data.dataset import TokenDataset


def build_dataloader(
    dataset: TokenDataset,
    *,
    batch_size: int,
    start: int,
    stop: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Batches of samples `start` … `stop` - 1 of the stream, every `world_size`-th of them.

    The position of a run is one number, the next sample, whatever the processes and workers: sample
    start + i is read by rank i % world_size.

    Args:
        dataset: of samples.
        batch_size: samples per batch.
        rank, world_size: of this process among those that share the stream.
        num_workers: processes that read ahead; 0: this one reads when asked.
        pin_memory: give batches in memory from which a GPU copies beside its other work.

    Yields:
        What the dataset gives, stacked: (batch_size, context).
    """
    batches = iter(
        DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=range(start + rank, stop, world_size),
            num_workers=num_workers,
            pin_memory=pin_memory,
            # The loader draws a seed for its workers; not from the generator that dropout draws from.
            generator=torch.Generator(),
            worker_init_fn=_leave_signals_to_the_parent,
        )
    )
    if num_workers:  # which ignore the signal by which multiprocessing would end them
        atexit.register(_end_workers, weakref.ref(batches))
    return batches


def _end_workers(reference: "weakref.ref[Any]") -> None:
    """At the end of the process, of an iterator that is still there."""
    batches = reference()
    if batches is not None:
        batches._shutdown_workers()


def _leave_signals_to_the_parent(_: int) -> None:
    """The process that trains decides what a signal to the whole group means; its workers end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
