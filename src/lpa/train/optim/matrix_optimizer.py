"""What optimizers share that step matrix after matrix, with states or updates of a low rank."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from lpa.train.optim.group_optimizer import GroupOptimizer


class MatrixOptimizer(GroupOptimizer):
    """AdamW's settings, a rank, and a step for each matrix that has a gradient.

    Args:
        params: matrices, or groups of them.
        lr, betas, eps, weight_decay: as AdamW's.
        rank: of what is low-rank; by default a quarter of each matrix's shorter side.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rank: int | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.rank = rank
        self._numbers = {
            parameter: number
            for number, parameter in enumerate(p for g in self.param_groups for p in g["params"])
        }

    def step_group(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if parameter.grad is not None:
                self.step_matrix(parameter, parameter.grad, group)

    def step_matrix(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """One step of one matrix, in place."""
        raise NotImplementedError

    def seed_of(self, weight: Tensor, period: int) -> int:
        """What a matrix draws from in a period, on every process and after a resume."""
        return 1_000_003 * self._numbers[weight] + period


def resolve_rank(shape: Sequence[int], rank: int | None) -> int:
    """The rank for a matrix of a shape: the one asked for, or a quarter of its shorter side."""
    shorter = min(shape)
    return min(shorter, rank or max(1, shorter // 4))
