"""How the two factors of a low-rank map start."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lpa.lowrank.linear import svd_factors

INITIALIZATIONS = ("linear", "scaled", "spectral", "orthogonal", "cola", "lora")


@torch.no_grad()
def init_factors(
    method: str,
    in_features: int,
    out_features: int,
    rank: int,
    std: float,
    *,
    scale: float = 1.0,
    device: Any = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw A and B from the global random state.

    The dense map that they replace would start with independent normal entries of standard
    deviation σ = scale · std. By method:

    - `linear`: each factor as torch initializes an `nn.Linear`, uniform within ±√(scale / its inputs),
      whatever `std` is; the entries of B·A then have standard deviation scale / (3 √in_features).
    - `scaled`: normal entries, so that those of B·A have deviation σ.
    - `spectral`: the best approximation of rank r of a dense matrix drawn with σ, its singular values
      split evenly (Khodak et al. 2021, section 3.1). Costs an SVD of the dense shape in float64.
    - `orthogonal`: A has orthonormal rows and B orthonormal columns, times the same gain, so that the
      r singular values of B·A are equal and its entries have deviation σ.
    - `cola`: as `scaled`, with σ = scale / √(in_features + out_features), whatever `std` is: the start in the
      code of CoLA's authors (`ColaLayer`; Liu et al. 2025, arXiv 2502.10940).
    - `lora`: A as torch initializes an `nn.Linear`, B zero, so that the map starts at zero (Hu et al. 2022,
      section 4.1); SLTrain's factors start so (Han et al. 2024, section 3.3).

    Args:
        method: one of `INITIALIZATIONS`.
        in_features, out_features, rank: the shape of the map.
        std: that of the dense map.
        scale: of the product; each factor takes its square root.

    Returns:
        A: (rank, in_features), and B: (out_features, rank).
    """
    down = torch.empty(rank, in_features, device=device, dtype=dtype)
    up = torch.empty(out_features, rank, device=device, dtype=dtype)
    if method == "cola":
        std = (in_features + out_features) ** -0.5
    std *= scale
    match method:
        case "linear":
            for factor in (down, up):
                nn.init.kaiming_uniform_(factor, a=math.sqrt(5)).mul_(math.sqrt(scale))
        case "lora":
            nn.init.kaiming_uniform_(down, a=math.sqrt(5)).mul_(math.sqrt(scale))
            up.zero_()
        case "scaled" | "cola":
            # An entry of B·A sums r products of independent entries: its variance is r · (a factor's std)⁴.
            for factor in (down, up):
                factor.normal_(std=(std / rank**0.5) ** 0.5)
        case "spectral":
            dense = torch.empty(out_features, in_features, device=device, dtype=dtype)
            down, up = svd_factors(dense.normal_(std=std), rank)
        case "orthogonal":
            # r singular values s give the dense matrix's squared norm where r s² = σ² d_in d_out.
            singular = std * math.sqrt(in_features * out_features / rank)
            for factor in (down, up):
                # QR knows no dtype below float32.
                sample = torch.empty_like(factor, dtype=torch.float32)
                factor.copy_(nn.init.orthogonal_(sample, gain=math.sqrt(singular)))
        case _:
            raise ValueError(f"method: got {method!r}; expected one of {INITIALIZATIONS}")
    return down, up
