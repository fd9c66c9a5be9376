"""CoLALinear: a low-rank map with an activation between its factors."""

import torch.nn.functional as F
from torch import Tensor, nn

from lpa.errors import UserError
from lpa.lowrank.linear import LowRankLinear


class CoLALinear(LowRankLinear):
    """`y = SiLU(x Aᵀ) Bᵀ`: CoLA's auto-encoder (Liu et al. 2025, arXiv 2502.10940, eq. 3).

    The map is not linear, so no matrix stands for it: it neither merges nor comes from a dense one.

    Shapes: x (…, in_features) -> (…, out_features).
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.silu(self.down(x)))

    def to_dense(self) -> nn.Linear:
        """Raises:
        UserError: always.
        """
        raise UserError(
            "cola: the SiLU between the factors is not linear, so no single matrix does the same"
        )

    @classmethod
    def from_dense(cls, linear: nn.Linear, rank: int) -> LowRankLinear:
        """Raises:
        UserError: always.
        """
        raise UserError(
            "cola: a dense matrix has no equal with a SiLU in it; train CoLA from scratch"
        )
