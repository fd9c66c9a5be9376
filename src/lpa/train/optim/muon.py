"""Muon in the precision that suits the device, over plain and sharded matrices."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lpa.train.distributed.matrix_exchange import MatrixExchange
from lpa.train.optim.group_optimizer import GroupOptimizer

# Of the iteration x ← a x + (b x xᵀ + c (x xᵀ)²) x (Jordan et al. 2024), whose slope at zero is steep.
_A, _B, _C = 3.4445, -4.775, 2.0315
_STEPS = 5
_EPSILON = 1e-7
_STACK = 2**24  # numbers of a stack that one process works on at once, where a matrix is smaller


class Muon(GroupOptimizer):
    """Muon (Jordan et al. 2024) in a dtype of choice.

    In bfloat16 on a CPU it is `torch.optim.Muon` to the bit, unless a side of a matrix is 16 or less: torch
    multiplies such small matrices by another kernel alone than in a stack, and some last bits differ.

    Matrices of one shape are orthogonalized as a stack. Of sharded ones each process gets some whole, for its
    shards of the others, and sends their shards back (Ahn et al. 2025), so that none is worked on twice.

    The update is about U Vᵀ of the momentum's SVD U S Vᵀ: the iteration's five steps bring singular values
    down to 0.2% of the Frobenius norm to between 0.68 and 1.21, not to 1 exactly. It is scaled to a
    root mean square of about 0.2 whatever the matrix's shape, as AdamW's has, so that learning rate and
    weight decay are AdamW's too (Liu et al. 2025, eq. 4).

    Args:
        params: matrices, or groups of them; DTensors all of one mesh.
        lr, weight_decay: as AdamW's.
        momentum: the fraction of the past in the momentum, by Nesterov's rule where `nesterov` is true.
        dtype: what to orthogonalize in; by default that of `torch.optim.Muon`.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(
                        f"Muon: got a parameter of shape {parameter.shape}; expected 2D"
                    )
        self.dtype = dtype

    def step_group(self, group: dict[str, Any]) -> None:
        for parameters in stack_by_shape(p for p in group["params"] if p.grad is not None):
            self._step_stack(parameters, group)

    def _step_stack(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        updates = _orthogonalize([self._momentum(parameter, group) for parameter in parameters])
        size = group["lr"] * 0.2 * sqrt(max(parameters[0].shape))
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-size)

    def _momentum(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """What is orthogonalized, rounded before it is gathered, which in bfloat16 halves the bytes."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(
                gradient, memory_format=torch.preserve_format
            )
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        if group["nesterov"]:
            momentum = gradient.lerp(momentum, group["momentum"])
        return momentum.to(self.dtype)


def stack_by_shape(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Group parameters of one shape and layout, as many as the processes of a mesh work on at once."""
    alike: dict[Any, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        placements = parameter.placements if isinstance(parameter, DTensor) else None
        alike[parameter.shape, parameter.dtype, parameter.device, placements].append(parameter)
    for same in alike.values():
        processes = same[0].device_mesh.size() if isinstance(same[0], DTensor) else 1
        count = processes * max(1, _STACK // same[0].numel())
        for start in range(0, len(same), count):
            yield same[start : start + count]


def _orthogonalize(matrices: list[Tensor]) -> list[Tensor]:
    """Matrices of one shape orthogonalized, laid out as they were."""
    like = matrices[0]
    if not isinstance(like, DTensor):
        return list(newton_schulz(torch.stack(matrices)))
    exchange = MatrixExchange(like, len(matrices))
    # In one expression, or what is gathered would stay while it is orthogonalized.
    done = exchange.distribute(
        newton_schulz(exchange.collect(torch.stack([matrix.to_local() for matrix in matrices])))
    )
    return [
        DTensor.from_local(
            local,
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )
        for local in done
    ]


def muon_temporary_bytes(parameters: Iterable[Tensor], itemsize: int) -> int:
    """The most that a step of `Muon` on such parameters holds at once beside its states, in rank 0.

    Args:
        parameters: all with a gradient; may be on the meta device.
        itemsize: bytes of a number in the dtype that is orthogonalized in.
    """
    return itemsize * max((_most_numbers(stack) for stack in stack_by_shape(parameters)), default=0)


def _most_numbers(matrices: list[Tensor]) -> int:
    """The most numbers that `_orthogonalize` holds at once, with those that it is given."""
    like, own, exchanging = matrices[0], len(matrices), 0
    given = own * like.numel()
    if isinstance(like, DTensor):
        given = own * like.to_local().numel()
        for level in MatrixExchange(like, own).levels:
            copies = 1 if level.axis is None else 2
            before = own * prod(level.shape)
            own = level.counts[0]
            exchanging = max(exchanging, before + copies * own * prod(level.collected_shape))
    iterating = own * (3 * like.numel() + 2 * min(like.shape) ** 2)
    return given + max(iterating, exchanging)


def newton_schulz(stack: Tensor) -> Tensor:
    """About U Vᵀ of each matrix U S Vᵀ of a stack (matrices, rows, columns), in its dtype."""
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    # Then no singular value is above 1.
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=_EPSILON)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT.contiguous() if tall else x
