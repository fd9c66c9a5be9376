"""Whole tensors from sharded ones and back; plain tensors pass through."""

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor on every rank; gathers where it is a DTensor."""
    if not isinstance(tensor, DTensor):
        return tensor
    # As full_tensor(), which finds this order too but warns of it.
    placements = list(tensor.placements)
    for dimension in range(len(placements)):
        placements[dimension] = Replicate()
        tensor = tensor.redistribute(placements=placements)
    return tensor.to_local()


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's share of a tensor that every rank has whole; communicates nothing."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
