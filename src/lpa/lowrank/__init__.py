"""The method on plain torch: the low-rank linear map and its arithmetic."""

from lpa.lowrank.linear import LowRankLinear
from lpa.lowrank.rank import break_even_rank, check_rank

__all__ = ["LowRankLinear", "break_even_rank", "check_rank"]
