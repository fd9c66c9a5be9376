"""What processes send to each other in a step."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed._tools.fake_collectives import CollectiveOp, collective_ops, sync_ops
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lpa.train.distributed.parallelize import ParallelLayout

# The names of torch's operations -> the collective that they are.
_KINDS = {
    "_allgather_base_": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
    "allreduce_": "all_reduce",
    "all_reduce": "all_reduce",
    "alltoall_base_": "all_to_all",
    "broadcast_": "broadcast",
}
# An all-reduce is a reduce-scatter and an all-gather: a process sends twice the message, in units of
# (n - 1) / n, by the ring algorithm (Patarasuk & Yuan 2009); in other exchanges once.
_RING_ROUNDS = {"all_reduce": 2}


@dataclass(frozen=True)
class Collective:
    """Exchanges of one kind along one dimension of the grid of processes, in one phase of a step.

    Attributes:
        phase: `forward_backward` or `optimizer`.
        dimension: along which the processes are: `replicate`, `shard`, `tensor`, or `all` of them.
        kind: `all_gather`, `reduce_scatter`, `all_reduce`, `all_to_all` or `broadcast`.
        processes: that take part in one exchange.
        count: exchanges.
        message_bytes: of all of them: what is gathered, reduced or broadcast, whole; in an `all_to_all`
            what one process has for all.
        sent_bytes: what one process sends, by the ring algorithm; of a `broadcast` its share.
    """

    phase: str
    dimension: str
    kind: str
    processes: int
    count: int
    message_bytes: int
    sent_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        rounds = _RING_ROUNDS.get(self.kind, 1)
        sent = rounds * self.message_bytes * (self.processes - 1) // self.processes
        object.__setattr__(self, "sent_bytes", sent)


def merge_collectives(collectives: Iterable[Collective]) -> list[Collective]:
    """Join the collectives that differ only in count and bytes."""
    counts: Counter[tuple[str, str, str, int]] = Counter()
    sizes: Counter[tuple[str, str, str, int]] = Counter()
    for c in collectives:
        key = (c.phase, c.dimension, c.kind, c.processes)
        counts[key] += c.count
        sizes[key] += c.message_bytes
    return [Collective(*key, count, sizes[key]) for key, count in counts.items()]


class CollectiveLog(TorchDispatchMode):
    """Records the collectives of what runs within it; those within one process are left out.

    Attributes:
        phase: the phase that is recorded now.
        repeat: how many times what runs now stands for.
    """

    def __init__(self, layout: ParallelLayout) -> None:
        super().__init__()
        self._layout = layout
        self._found: list[Collective] = []
        self.phase = "forward_backward"
        self.repeat = 1

    @property
    def collectives(self) -> list[Collective]:
        return merge_collectives(self._found)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        # A DTensor first becomes what is local and what is sent.
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        if func in collective_ops and func not in sync_ops:
            self._record(func, args, result)
        return result

    def _record(self, func: Any, args: Any, result: Any) -> None:
        ranks = dist.get_process_group_ranks(CollectiveOp.get_process_group(func, args))
        if len(ranks) == 1:
            return
        name = func._schema.name.split("::")[1]
        kind = _KINDS.get(name, name)
        sent = args[1] if kind == "all_to_all" else (args, result)
        sizes = [x.numel() * x.itemsize for x in tree_leaves(sent) if isinstance(x, Tensor)]
        self._found.append(
            Collective(
                self.phase,
                self._dimension(ranks),
                kind,
                len(ranks),
                self.repeat,
                # Mostly an input and an output, of which the larger is the whole and the other a part.
                self.repeat * max(sizes),
            )
        )

    def _dimension(self, ranks: list[int]) -> str:
        """The dimension of the grid along which these processes are, which is numbered row by row."""
        layout = self._layout
        strides = {
            "tensor": (layout.tensor, 1),
            "shard": (layout.shard, layout.tensor),
            "replicate": (layout.replicate, layout.tensor * layout.shard),
        }
        for name, (size, stride) in strides.items():
            if len(ranks) == size and ranks[1] - ranks[0] == stride:
                return name
        return "all"
