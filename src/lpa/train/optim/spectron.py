"""Spectron: steps of the factors that bound the spectral norm of the step of their product."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lpa.train.optim.group_optimizer import GroupOptimizer
from lpa.train.optim.muon import newton_schulz

# Power iteration ends when the norm grows by less than this.
_TOLERANCE = 1e-5
_MAX_ITERATIONS = 300


class Spectron(GroupOptimizer):
    """Spectron (Janson et al. 2026, arXiv 2602.12429) for low-rank pairs.

    Both factors of a pair step by ρ times the orthogonalized momentum, so that

        ‖ΔW‖₂ = ‖(B + ρ O_B)(A + ρ O_A) − B A‖₂ ≤ ρ (‖A‖₂ + ‖B‖₂) + ρ² ≤ η

    with η the learning rate. The paper takes ρ = η / (‖A‖₂ + ‖B‖₂ + 1), which suffices for ρ ≤ 1; the
    positive root of ρ (‖A‖₂ + ‖B‖₂) + ρ² = η is the largest ρ that the bound allows. Norms are
    found by power iteration, from the vector that the step before ended with. It comes from below, so a
    step can exceed η by a few percent where the step before was as large as the factors themselves.

    Args:
        params: factors, or groups of them: A and B of one pair, A and B of the next, and so on.
        lr: η, of the product.
        weight_decay: of the factors, decoupled, as AdamW's.
        momentum: the fraction of the past in the momentum.
        bound: `paper` or `exact`, how ρ is found.
        dtype: what to orthogonalize in; by default that of `Muon`.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        *,
        momentum: float = 0.95,
        bound: str = "paper",
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        if bound not in ("paper", "exact"):
            raise ValueError(f"bound: got {bound!r}; expected paper or exact")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.bound = bound
        self.dtype = dtype

    def step_group(self, group: dict[str, Any]) -> None:
        factors = iter(group["params"])
        for pair in zip(factors, factors, strict=True):
            if all(factor.grad is not None for factor in pair):
                self._step_pair(pair, group)

    def _step_pair(self, pair: tuple[Tensor, Tensor], group: dict[str, Any]) -> None:
        updates = [self._orthogonal_momentum(factor, group["momentum"]) for factor in pair]
        for factor in pair:
            factor.mul_(1 - group["lr"] * group["weight_decay"])
        norms = sum(self._spectral_norm(factor) for factor in pair)
        if self.bound == "paper":
            radius = group["lr"] / (norms + 1)
        else:  # the positive root, without cancellation
            radius = 2 * group["lr"] / (norms + math.sqrt(norms**2 + 4 * group["lr"]))
        for factor, update in zip(pair, updates, strict=True):
            factor.add_(update, alpha=-radius)

    def _orthogonal_momentum(self, factor: Tensor, momentum: float) -> Tensor:
        """About U Vᵀ of the momentum's SVD, no singular value above 1."""
        state = self.state[factor]
        assert factor.grad is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(factor)
            # Any direction will do but one that is orthogonal to all that matters.
            state["singular_vector"] = torch.linspace(1, 2, factor.shape[1]).to(factor)
        average = state["momentum_buffer"].lerp_(factor.grad, 1 - momentum)
        update = newton_schulz(average.to(self.dtype)[None])[0]
        # Muon's iteration ends between 0.68 and 1.21; this maps all of that to between 0.86 and 1.
        update = update.to(factor.dtype)
        rows, columns = update.shape
        cube = update @ (update.T @ update) if rows > columns else (update @ update.T) @ update
        return 1.5 * update - 0.5 * cube

    def _spectral_norm(self, factor: Tensor) -> float:
        """‖factor‖₂, from below."""
        vector = self.state[factor]["singular_vector"]
        # The last vector alone may be orthogonal to the new one after a step as large as the factor, and
        # the norm then seems to have converged. The longest row never is far from all that is large.
        vector.div_(torch.linalg.vector_norm(vector).clamp(min=1e-30))
        row = factor[torch.linalg.vector_norm(factor, dim=1).argmax()]
        vector.add_(row, alpha=1 / max(float(torch.linalg.vector_norm(row)), 1e-30))
        norm = 0.0
        for _ in range(_MAX_ITERATIONS):
            vector.div_(torch.linalg.vector_norm(vector).clamp(min=1e-30))
            image = factor @ vector
            last, norm = norm, float(torch.linalg.vector_norm(image))
            vector.copy_(factor.T @ image)
            if norm <= last * (1 + _TOLERANCE):
                break
        return norm
