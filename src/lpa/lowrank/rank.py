"""Rank arithmetic: when two chained maps are cheaper than one."""

import math
import warnings

from lpa.errors import LPAWarning, UserError


def break_even_rank(in_features: int, out_features: int) -> float:
    """The rank at which a low-rank pair costs as many multiplications as the dense matrix.

    From `r (d_in + d_out) = d_in d_out` (Lv et al. 2024, section 3): below it the low-rank projection saves
    parameters and arithmetic, above costs more of both. Half the width when the matrix is square.

    Args:
        in_features: columns of the dense matrix.
        out_features: its rows.

    Returns:
        d_in d_out / (d_in + d_out), in general not a whole number.
    """
    return in_features * out_features / (in_features + out_features)


def check_rank(rank: int, in_features: int, out_features: int, field: str = "rank") -> None:
    """Refuse a rank that cannot be, and warn of one that saves nothing.

    Args:
        rank: the rank asked for.
        in_features, out_features: the shape of the projection.
        field: what to call the rank in messages.

    Raises:
        UserError: `rank` is not an integer from 1 to the smaller width.
    """
    limit = min(in_features, out_features)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= limit:
        raise UserError(
            f"{field}: got {rank!r}; expected an integer from 1 to {limit} "
            f"for a projection of {in_features} to {out_features} features"
        )
    limit_saving = break_even_rank(in_features, out_features)
    if rank >= limit_saving:
        warnings.warn(
            f"{field} {rank} saves nothing: a {in_features} to {out_features} projection saves "
            f"parameters only below its break-even rank, that is up to {math.ceil(limit_saving) - 1}",
            LPAWarning,
            stacklevel=3,
        )
