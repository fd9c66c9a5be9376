"""The method on plain torch: the low-rank linear map and its arithmetic."""

from lpa.lowrank.cuts import (
    moment_root,
    squared_error,
    tail_energies,
    updated_up,
    whitened_factors,
)
from lpa.lowrank.initialisers import INITIALISATIONS, draw_factors
from lpa.lowrank.linear import LowRankLinear, best_factors
from lpa.lowrank.rank import break_even_rank, check_rank
from lpa.lowrank.spectra import entropy_rank, singular_values, stable_rank

__all__ = [
    "INITIALISATIONS",
    "LowRankLinear",
    "best_factors",
    "break_even_rank",
    "check_rank",
    "draw_factors",
    "entropy_rank",
    "moment_root",
    "singular_values",
    "squared_error",
    "stable_rank",
    "tail_energies",
    "updated_up",
    "whitened_factors",
]
