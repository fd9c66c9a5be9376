"""What the optimizers of this room share: a step of the closure, then of each group."""

from collections.abc import Callable
from typing import Any

import torch


class GroupOptimizer(torch.optim.Optimizer):
    """An optimizer that says how it steps one group of parameters."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step every group; returns what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.step_group(group)
        return loss

    def step_group(self, group: dict[str, Any]) -> None:
        """One step of the parameters of a group that have gradients, in place."""
        raise NotImplementedError
