"""The method on plain torch: the low-rank linear map and its arithmetic."""

from lpa.lowrank.cola import CoLALinear
from lpa.lowrank.initializers import INITIALIZATIONS, init_factors
from lpa.lowrank.linear import LowRankLinear, svd_factors
from lpa.lowrank.plain_linear import has_hooks, is_plain_linear
from lpa.lowrank.rank import break_even_rank, check_rank
from lpa.lowrank.sltrain import SLTrainLinear, sparse_entry_count, support_dtype
from lpa.lowrank.spectra import entropy_rank, singular_values, stable_rank
from lpa.lowrank.truncation import (
    moment_sqrt,
    refit_up,
    squared_error,
    tail_energies,
    whitened_factors,
)

__all__ = [
    "INITIALIZATIONS",
    "CoLALinear",
    "LowRankLinear",
    "SLTrainLinear",
    "break_even_rank",
    "check_rank",
    "entropy_rank",
    "has_hooks",
    "init_factors",
    "is_plain_linear",
    "moment_sqrt",
    "refit_up",
    "singular_values",
    "sparse_entry_count",
    "squared_error",
    "stable_rank",
    "support_dtype",
    "svd_factors",
    "tail_energies",
    "whitened_factors",
]
