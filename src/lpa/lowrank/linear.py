"""LowRankLinear: a linear map as two chained ones."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lpa.errors import UserError


class LowRankLinear(nn.Module):
    """`y = (x Aᵀ) Bᵀ`: a linear map through a latent of `rank` features (Lv et al. 2024, eq. 2).

    Children, both `nn.Linear`:
        down: A, of shape (rank, in_features).
        up: B, of shape (out_features, rank).

    Args:
        in_features: width of the input.
        out_features: width of the output.
        rank: width of the latent `x Aᵀ`.
        bias: whether `up` has a bias, as the bias of a dense map would be.
        down_bias: whether `down` has one (the paper's setting 1 has it there for q, k, v and fc1).

    Raises:
        ValueError: `rank` is not from 1 to the smaller width.

    Shapes: x (…, in_features) -> (…, out_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = False,
        *,
        down_bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        limit = min(in_features, out_features)
        if not 1 <= rank <= limit:
            raise ValueError(f"rank: got {rank}; expected an integer from 1 to {limit}")
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.down = nn.Linear(in_features, rank, bias=down_bias, device=device, dtype=dtype)
        self.up = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.rank} -> {self.out_features}"

    @torch.no_grad()
    def to_dense(self) -> nn.Linear:
        """Convert to one `nn.Linear` of the same map: W = B A, bias B·a + b, by float64, exact to rounding.

        Raises:
            UserError: a factor is no plain `nn.Linear`, such as one with an adapter.
        """
        for name, factor in (("down", self.down), ("up", self.up)):
            if type(factor) is not nn.Linear and not parametrize.is_parametrized(factor):
                raise UserError(
                    f"{name}: got a {type(factor).__name__}; expected an nn.Linear; merge adapters "
                    "(merge_and_unload of peft) or dequantize first"
                )
        up, down = self.up.weight.double(), self.down.weight.double()
        bias = None
        if self.down.bias is not None:
            bias = up @ self.down.bias.double()
        if self.up.bias is not None:
            bias = self.up.bias.double() + (0 if bias is None else bias)
        linear = nn.Linear(
            self.in_features,
            self.out_features,
            bias=bias is not None,
            device=self.up.weight.device,
            dtype=self.up.weight.dtype,
        )
        linear.weight.copy_(up @ down)
        if bias is not None:
            linear.bias.copy_(bias)
        return linear

    @classmethod
    @torch.no_grad()
    def from_dense(cls, linear: nn.Linear, rank: int) -> "LowRankLinear":
        """The best approximation of `linear` of the given rank (see `svd_factors`).

        The bias, if any, is that of `up`, unchanged.
        """
        module = cls(
            linear.in_features,
            linear.out_features,
            rank,
            bias=linear.bias is not None,
            device=linear.weight.device,
            dtype=linear.weight.dtype,
        )
        down, up = svd_factors(linear.weight, rank)
        module.down.weight.copy_(down)
        module.up.weight.copy_(up)
        if linear.bias is not None:
            module.up.bias.copy_(linear.bias)
        return module


@torch.no_grad()
def svd_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A and B whose product no other rank-r matrix beats as an approximation of `weight`.

    B = U_r √S_r, A = √S_r V_rᵀ from the truncated SVD of W, by float64; the best in Frobenius and in
    spectral norm (Eckart & Young 1936).

    Shapes: weight (out_features, in_features) -> A (rank, in_features), B (out_features, rank).
    """
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (root[:, None] * vh[:rank]).to(weight), (u[:, :rank] * root).to(weight)
