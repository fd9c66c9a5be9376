"""Norm and scale of the gradients of a model whose parameters may be sharded."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def global_grad_norm(parameters: Iterable[nn.Parameter]) -> float:
    """The Euclidean norm of all gradients of all processes; nan or inf where one is not finite."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], norm: float, max_norm: float) -> None:
    """Scale gradients of the given norm down to `max_norm` where it is larger, in place.

    The factor comes from the one number `norm`, which all processes must share: parameters that
    several of them hold would drift apart otherwise.
    """
    gradients: list[Tensor] = [
        p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad
        for p in parameters
        if p.grad is not None
    ]
    # As torch.nn.utils.clip_grads_with_norm_, which does not take shards of several meshes.
    factor = torch.clamp(max_norm / (torch.tensor(norm, dtype=torch.float32) + 1e-6), max=1.0)
    torch._foreach_mul_(gradients, factor.item())
