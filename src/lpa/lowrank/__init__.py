"""The method on plain torch: the low-rank linear map and its arithmetic."""

from lpa.lowrank.initialisers import INITIALISATIONS, draw_factors
from lpa.lowrank.linear import LowRankLinear
from lpa.lowrank.rank import break_even_rank, check_rank
from lpa.lowrank.spectra import entropy_rank, singular_values, stable_rank

__all__ = [
    "INITIALISATIONS",
    "LowRankLinear",
    "break_even_rank",
    "check_rank",
    "draw_factors",
    "entropy_rank",
    "singular_values",
    "stable_rank",
]
