"""Whole matrices for each process to work on, from the shards of all; and shards again of the results.

Of a stack of matrices a process gets some whole, in exchange for its shards of the others. It sends about
what it holds, however many processes there are; to one that gets no matrix nothing is sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


class MatrixExchange:
    """The exchange of a stack of matrices that are all laid out as one of them.

    Args:
        like: a matrix of the stack.
        count: matrices of the stack.

    Attributes:
        levels: what is done along one dimension of the grid of processes after another; back in reverse.
    """

    def __init__(self, like: DTensor, count: int) -> None:
        self.levels = _levels(like, count)

    def collect(self, stack: Tensor) -> Tensor:
        """(count, local rows, local columns) -> this process's own matrices, (own, rows, columns)."""
        for level in self.levels:
            stack = level.collect(stack)
        return stack

    def distribute(self, matrices: Tensor) -> Tensor:
        """The reverse of `collect`."""
        for level in reversed(self.levels):
            matrices = level.distribute(matrices)
        return matrices


@dataclass
class Level:
    """The exchange among the processes that lie along one dimension of the grid.

    Attributes:
        dimension, group, rank: of the grid; its processes; which of them this is.
        counts: matrices that each process gets.
        axis: of the stack, along which the processes share each matrix; None where each holds the same.
        extents: of that axis, what each process holds.
        shape: of a matrix before, as this process holds it.
    """

    dimension: int
    group: dist.ProcessGroup
    rank: int
    counts: list[int]
    axis: int | None
    extents: list[int]
    shape: tuple[int, int]

    @property
    def collected_shape(self) -> tuple[int, int]:
        """Shape of a matrix after it is collected."""
        return self.shape if self.axis is None else self._with_extent(sum(self.extents))

    def collect(self, stack: Tensor) -> Tensor:
        if self.axis is None:
            return stack.split(self.counts)[self.rank].clone()  # the others' memory is free then
        own = self.counts[self.rank]
        shapes = [(own, *self._with_extent(extent)) for extent in self.extents]
        sizes = [prod(shape) for shape in shapes]
        pieces = self._all_to_all(stack, self._sizes(self.counts), sizes).split(sizes)
        parts = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
        return torch.cat(parts, dim=self.axis)

    def distribute(self, matrices: Tensor) -> Tensor:
        if self.axis is None:
            return self._gather(matrices)
        parts = matrices.split(self.extents, dim=self.axis)
        sizes = [part.numel() for part in parts]
        sent = matrices.new_empty(matrices.numel())
        for piece, part in zip(sent.split(sizes), parts, strict=True):
            piece.view(part.shape).copy_(part)
        received = self._all_to_all(sent, sizes, self._sizes(self.counts))
        return received.view(sum(self.counts), *self.shape)

    def _with_extent(self, extent: int) -> tuple[int, int]:
        rows, columns = self.shape
        return (extent, columns) if self.axis == 1 else (rows, extent)

    def _sizes(self, counts: Sequence[int]) -> list[int]:
        return [count * prod(self.shape) for count in counts]

    def _all_to_all(self, sent: Tensor, sizes: list[int], received: list[int]) -> Tensor:
        """Send each process a piece of so many numbers; returns the pieces from all, one after another."""
        output = sent.new_empty(sum(received))
        dist.all_to_all_single(output, sent.flatten(), received, sizes, group=self.group)
        return output

    def _gather(self, matrices: Tensor) -> Tensor:
        """Gather the matrices of all processes, without a message for those that have none."""
        gathered = matrices.new_empty(sum(self.counts), *self.shape)
        if len(set(self.counts)) == 1:
            dist.all_gather_single(gathered, matrices.contiguous(), group=self.group)
            return gathered
        parts = gathered.split(self.counts)
        parts[self.rank].copy_(matrices)
        for rank, part in enumerate(parts):
            if len(part):
                dist.broadcast(part, group_src=rank, group=self.group)
        return gathered


def _levels(like: DTensor, count: int) -> list[Level]:
    mesh, placements = like.device_mesh, like.placements
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    # First what all hold alike, which sends only shards. Where FSDP has split what tensor parallelism had
    # split before, its dimension comes first in the grid and is undone first.
    order = sorted(range(mesh.ndim), key=lambda dimension: not placements[dimension].is_replicate())
    shape = tuple(like.to_local().shape)
    levels = []
    for number, dimension in enumerate(order):
        size, rank = mesh.size(dimension), coordinate[dimension]
        if size == 1:
            continue
        placement = placements[dimension]
        axis, extents = None, []
        if not placement.is_replicate():
            axis = placement.dim + 1
            outer = prod(
                mesh.size(other)
                for other in order[number + 1 :]
                if not placements[other].is_replicate() and placements[other].dim == placement.dim
            )
            extents = _chunk_sizes(like.shape[placement.dim] // outer, size)
            assert extents[rank] == shape[placement.dim]
        counts = [count // size + (other < count % size) for other in range(size)]
        level = Level(dimension, mesh.get_group(dimension), rank, counts, axis, extents, shape)
        levels.append(level)
        count, shape = counts[rank], level.collected_shape
    return levels


def _chunk_sizes(whole: int, chunks: int) -> list[int]:
    """Sizes of the chunks into which torch.chunk and DTensor divide."""
    most = -(-whole // chunks)
    return [max(0, min(most, whole - number * most)) for number in range(chunks)]
