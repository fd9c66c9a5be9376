"""The processes of a run: who they are, what they agree on, and what becomes of them when one dies."""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException

from lpa.device import resolve_device
from lpa.train.distributed.launch import agree_on_generation, end_with_agent

T = TypeVar("T")

# What NCCL's watchdog does unless the environment says otherwise: it ends a process when an exchange fails
# or takes too long, as torchrun asks too, and is itself watched. Where the main thread waits in the driver
# nothing else could.
NCCL_ENVIRONMENT = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "480",
}

# What agrees on work of the host: as gloo, and it waits as long as the longest such work may take.
_host_group: dist.ProcessGroup | None = None
_timeouts = {"step": timedelta(seconds=600), "host": timedelta(seconds=7200)}

# How long the others are given to say that they are alive, after a collective has failed.
ALIVE_TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True)
class World:
    """The processes that train one model together, as torchrun started them; one where it did not.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        device: what this process computes on.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def single_process(cls, device: str) -> "World":
        """The world of a process that trains alone."""
        return cls(0, 1, resolve_device(device))

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and talks to the user."""
        return self.rank == 0


def init_process_group(device: str, *, timeout: float, long_timeout: float) -> World:
    """Join the processes that torchrun started; without torchrun this one is alone.

    Tensors on the CPU are exchanged through gloo, those on GPUs through NCCL.

    Args:
        device: `auto`, `cpu`, `cuda`, …; of several GPUs each process takes that of its local rank.
        timeout: seconds that one process waits for another in a step before it gives up.
        long_timeout: likewise while one may verify data, or save.

    Raises:
        UserError: there is no such device.
    """
    end_with_agent()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World.single_process(device)
    local_device = resolve_device(device, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if local_device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        global _host_group
        _set_nccl_environment()
        wait_time = timedelta(seconds=timeout)
        _timeouts.update(step=wait_time, host=timedelta(seconds=long_timeout))
        store, rank, size = next(dist.rendezvous("env://", timeout=wait_time))
        generation = agree_on_generation(store, rank, size, timeout=timeout)
        own_store = dist.PrefixStore(generation, store)
        dist.init_process_group(
            backend, store=own_store, rank=rank, world_size=size, timeout=wait_time
        )
        _host_group = new_host_group()
    return World(dist.get_rank(), size, local_device)


def new_host_group() -> dist.ProcessGroup:
    """A group of all processes for what one of them may be long at; see `long_timeout`."""
    return dist.new_group(backend="gloo", timeout=_timeouts["host"])


def wait_as_in_a_step(group: dist.ProcessGroup) -> None:
    """Let a group that torch has made wait as long as a step does, not as long as torch's default says."""
    if dist.get_backend(group) != "fake":
        dist.distributed_c10d._set_pg_timeout(_timeouts["step"], group)


def _set_nccl_environment() -> None:
    for name, value in NCCL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def destroy_process_group() -> None:
    """End what `init_process_group` began."""
    global _host_group
    _host_group = None
    if dist.is_initialized():
        dist.destroy_process_group()


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """Add up each number of a host over all processes, in float64; all get the same bits.

    Like all exchanges of hosts it waits for work that takes long, and those of tensors do not.
    """
    if not dist.is_initialized():
        return list(values)
    numbers = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(numbers, group=_host_group)
    return numbers.tolist()


def all_reduce_tensor(tensor: Tensor) -> Tensor:
    """Add up a tensor over all processes, in place and on its device; all get the same bits."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def all_gather_objects(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """The value of every process, by rank. Small plain values: they travel pickled between own processes."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group or _host_group)
    return values


def barrier() -> None:
    """Wait until every process is here."""
    all_reduce_sum([0.0])


class OtherRankFailedError(Exception):
    """Another process has reported what is wrong; this one ends with the same code, silently."""


class LostRankError(Exception):
    """Another process is gone and cannot tell why; this one ends too."""


def run_on_all_ranks(function: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Do work that may fail in any process: if it does in one, that one raises its error and all end.

    The work itself exchanges nothing, as others would wait where one process fails before an exchange; or
    it gathers errors before each exchange, as `dcp.save` does.

    Args:
        group: the processes, by default all; for a thread beside the main one its own group.

    Raises:
        OtherRankFailedError: `function` failed in another process, but not before that in this one.
    """
    if not dist.is_initialized():
        return function()
    error, result = None, None
    try:
        result = function()
    # Whatever it is: the others must hear of it, or they wait for this process in vain.
    except (Exception, CheckpointException) as failure:
        error = failure
    try:
        answers = all_gather_objects(error is not None, group)
    except RuntimeError:
        if error is not None:  # which says more than that the others did not wait to hear of it
            raise error from None
        raise
    failed = [rank for rank, bad in enumerate(answers) if bad]
    if not failed:
        return result  # type: ignore[return-value]
    if error is not None and dist.get_rank() == failed[0]:
        raise error
    raise OtherRankFailedError


def run_on_main(function: Callable[[], T]) -> T:
    """Do work that may fail in the main process alone; all get its result, a small plain value.

    Raises:
        OtherRankFailedError: `function` failed, and this is not the main process.
    """
    is_main = not dist.is_initialized() or dist.get_rank() == 0
    results = all_gather_objects(run_on_all_ranks(lambda: function() if is_main else None))
    return results[0]  # type: ignore[return-value]


# In what gloo, NCCL and torch's store say of an exchange that failed.
_OF_EXCHANGES = re.compile(r"gloo|nccl|c10d|socket|connection|timed? ?out", re.IGNORECASE)


def is_of_an_exchange(error: RuntimeError) -> bool:
    """Whether an error is of messages between processes, not of this one alone, such as a lack of memory."""
    return isinstance(error, dist.DistError) or bool(_OF_EXCHANGES.search(str(error)))


def missing_ranks() -> list[int]:
    """Which processes do not answer, asked after a collective failed. Takes `ALIVE_TIMEOUT_SECONDS`.

    The survivors meet in the store that torchrun keeps beside them, which needs no collective.
    """
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"lpa/alive/{dist.get_rank()}", "1")
        deadline = time.monotonic() + ALIVE_TIMEOUT_SECONDS
        missing = list(range(dist.get_world_size()))
        while missing and time.monotonic() < deadline:
            missing = [rank for rank in missing if not store.check([f"lpa/alive/{rank}"])]
            time.sleep(0.1)
        return missing
    except (RuntimeError, ValueError):  # the store went with the process that kept it
        return []
