"""SLTrainLinear: a low-rank map plus a sparse one."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpa.errors import UserError
from lpa.lowrank.linear import LowRankLinear
from lpa.lowrank.plain_linear import is_plain_linear


def sparse_entry_count(in_features: int, out_features: int, density: float) -> int:
    """Entries that S has, at least one."""
    return max(1, round(density * in_features * out_features))


def support_dtype(in_features: int, out_features: int) -> torch.dtype:
    """What holds the places of the entries of S."""
    places = in_features * out_features
    return torch.int32 if places <= torch.iinfo(torch.int32).max else torch.int64


class SLTrainLinear(LowRankLinear):
    """`y = x (B A + S)ᵀ`, S sparse on a fixed random support (Han et al. 2024, arXiv 2406.02214, eq. 2).

    The matrix is formed in each forward pass, as in the paper: the arithmetic is that of a dense map,
    and what it saves is the memory of weights, gradients and optimizer states. The paper's factor α / r
    on B A is 1.

    Beside the factors `down` and `up`:
        sparse_values: the entries of S, of shape (entries,).
        support: where they are in the flattened matrix, int32 where that is enough. It is drawn from
            `support_seed` by NumPy's `RandomState`, whose stream never changes, so it is in no file and
            models of all seeds share it.

    Args:
        density: the fraction δ of the entries of the matrix that S has; the paper takes 0.03.
        support_seed: differs between the projections of a model.

    Shapes: x (…, in_features) -> (…, out_features).
    """

    support: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = False,
        *,
        density: float,
        support_seed: int,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, rank, bias, device=device, dtype=dtype)
        self.support_seed = support_seed
        count = sparse_entry_count(in_features, out_features, density)
        self.sparse_values = nn.Parameter(torch.empty(count, device=device, dtype=dtype))
        support = torch.empty(count, device=device, dtype=support_dtype(in_features, out_features))
        self.register_buffer("support", support, persistent=False)
        self.register_load_state_dict_post_hook(_draw_missing_support)
        self.reset_support()
        self.reset_values()

    @torch.no_grad()
    def reset_support(self) -> None:
        """Draw the positions of the sparse entries, the same each time."""
        self.has_support = not self.support.is_meta
        if not self.has_support:
            return
        random = np.random.RandomState(self.support_seed)
        positions = random.permutation(self.in_features * self.out_features)[: len(self.support)]
        self.support.copy_(torch.from_numpy(np.sort(positions)))

    @torch.no_grad()
    def reset_values(self, scale: float = 1.0) -> None:
        """Draw the sparse entries, uniform within ±scale/√in_features (Han et al. 2024, section 3.3)."""
        bound = scale * self.in_features**-0.5
        self.sparse_values.uniform_(-bound, bound)

    def dense_weight(self) -> Tensor:
        """B A + S, (out_features, in_features)."""
        product = self.up.weight @ self.down.weight
        values = self.sparse_values.to(product.dtype)  # which autocast may have rounded
        return product.flatten().index_add(0, self.support, values).view_as(product)

    def forward(self, x: Tensor) -> Tensor:
        if is_plain_linear(self.down) and is_plain_linear(self.up):
            return F.linear(x, self.dense_weight(), self.up.bias)
        # An adapter on a factor, say: what is there is called, and S is applied beside it.
        return super().forward(x) + F.linear(x, self._sparse_weight().to(x.dtype))

    def _sparse_weight(self) -> Tensor:
        """S, (out_features, in_features)."""
        weight = self.sparse_values.new_zeros(self.out_features * self.in_features)
        weight = weight.index_add(0, self.support, self.sparse_values)
        return weight.view(self.out_features, self.in_features)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {len(self.sparse_values)} sparse entries"

    @torch.no_grad()
    def to_dense(self) -> nn.Linear:
        """Convert to one `nn.Linear` of the same map: W = B A + S."""
        linear = super().to_dense()
        weight = (self.up.weight.double() @ self.down.weight.double()).flatten()
        weight.index_add_(0, self.support, self.sparse_values.double())
        linear.weight.copy_(weight.view_as(linear.weight))
        return linear

    @classmethod
    def from_dense(cls, linear: nn.Linear, rank: int) -> LowRankLinear:
        """Raises:
        UserError: always.
        """
        raise UserError("sltrain: cannot be made from a dense matrix; train SLTrain from scratch")


def _draw_missing_support(module: nn.Module, _: Any) -> None:
    """Draw the support of a module that was made without memory and then given weights."""
    assert isinstance(module, SLTrainLinear)
    if module.has_support or module.sparse_values.is_meta:
        return
    if module.support.is_meta:
        module.support = torch.empty_like(module.support, device=module.sparse_values.device)
    module.reset_support()
