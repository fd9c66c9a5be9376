"""Singular values of an effective projection, and how many of them count."""

import torch
from torch import Tensor

from lpa.lowrank.linear import LowRankLinear


@torch.no_grad()
def singular_values(module: torch.nn.Linear | LowRankLinear) -> Tensor:
    """The singular values of W or of B·A, descending, in float64.

    Those of a pair come from its factors alone: with Q R decompositions B = Q_B R_B and Aᵀ = Q_A R_A
    they are those of R_B R_Aᵀ, a matrix of rank × rank; there are `rank` of them. Of a pair that does
    more than multiply they are those of its dense matrix.

    Raises:
        UserError: the pair has no such matrix.
    """
    if type(module) is LowRankLinear:
        up = torch.linalg.qr(module.up.weight.double(), mode="r").R
        down = torch.linalg.qr(module.down.weight.double().T, mode="r").R
        return torch.linalg.svdvals(up @ down.T)
    weight = module.to_dense().weight if isinstance(module, LowRankLinear) else module.weight
    return torch.linalg.svdvals(weight.double())


def entropy_rank(values: Tensor) -> float:
    """exp(- Σ p ln p) with p = σ / Σ σ: the effective rank of Roy & Vetterli (2007, definition 1).

    As many as there are singular values where all are equal, 1 where one is all; 0 of a zero matrix.
    """
    total = values.sum()
    if total == 0:
        return 0.0
    fractions = values / total
    return float(torch.special.entr(fractions).sum().exp())


def stable_rank(values: Tensor) -> float:
    """‖W‖_F² / ‖W‖₂² = Σ σ² / σ₁² (Rudelson & Vershynin 2007, section 1); 0 of a zero matrix."""
    if values.numel() == 0 or values[0] == 0:
        return 0.0
    return float(values.square().sum() / values[0].square())
