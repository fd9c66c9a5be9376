"""Norm and scale of the gradients of a model whose parameters may be sharded."""

import math
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@torch.no_grad()
def square_grad_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """This process's part of the square of the gradient's Euclidean norm, (), float64, on the device.

    The parts of all processes add up to it: of what several of them hold, each has its fraction. It is nan
    or inf where a gradient is not finite. Nothing is sent, and the device is not waited for.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not any(isinstance(gradient, DTensor) for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients).double().square()
    by_holders: dict[int, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        assert isinstance(gradient, DTensor)
        by_holders[_holders(gradient)].append(gradient.to_local())
    return torch.stack(
        [
            torch.nn.utils.get_total_norm(local).double().square() / holders
            for holders, local in by_holders.items()
        ]
    ).sum()


def _holders(tensor: DTensor) -> int:
    """How many processes of the run hold the same part of a sharded tensor."""
    sizes = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    # Where FSDP and tensor parallelism split the same dimension torch's placement is of another class.
    shards = math.prod(size for size, placement in sizes if not placement.is_replicate())
    return dist.get_world_size() // shards


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], norm: float, max_norm: float) -> None:
    """Scale gradients of the given norm down to `max_norm` where it is larger, in place.

    The factor comes from the one number `norm`, which all processes must share: parameters that
    several of them hold would drift apart otherwise.
    """
    # In float32 and in the order of torch.nn.utils.clip_grads_with_norm_, which does not take shards of
    # several meshes.
    factor = np.float32(1) / (np.float32(norm) + np.float32(1e-6)) * np.float32(max_norm)
    if factor >= 1:
        return
    gradients: list[Tensor] = [
        p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad
        for p in parameters
        if p.grad is not None
    ]
    torch._foreach_mul_(gradients, float(factor))
