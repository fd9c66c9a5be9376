"""Cutting a dense map to a rank: by its weights, by what its inputs are, and against drift.

With W of shape (out, in), inputs x and their second moment M = E[x xᵀ], all in float64. Plain truncated
SVD is `svd_factors`. Its kin weigh the columns of W first: ASVD (Yuan et al. 2023, arXiv 2312.05821) by a
diagonal, DRONE (Chen et al. 2021) and SVD-LLM (Wang et al. 2024, arXiv 2403.07378) by a root of M, which
is exact and what is done here.
"""

import torch
from torch import Tensor

from lpa.lowrank.linear import svd_factors

# Directions in which the inputs have less than this fraction of their largest moment count as absent:
# float64 keeps sixteen digits, and M came from squares of numbers that had seven.
_RELATIVE_TOLERANCE = 1e-12


@torch.no_grad()
def moment_sqrt(moment: Tensor) -> tuple[Tensor, Tensor]:
    """S with S Sᵀ = M, and its inverse on the support of M.

    The Cholesky factor where M is well conditioned; else the eigen square root V √Λ, with the
    pseudo-inverse Λ^(-1/2) Vᵀ over the directions in which the inputs have any extent. What is outside
    them the map never sees, so a singular moment (fewer tokens than features, dead features) is no
    error and the truncation stays exact on all inputs there were.

    Shapes: M (in, in), symmetric -> S (in, k), S⁻¹ (k, in), k the dimensions of the support.

    Raises:
        ValueError: M has an entry that is no finite number.
    """
    moment = moment.double()
    if not torch.isfinite(moment).all():
        raise ValueError("moment: has entries that are no finite numbers")
    moment = (moment + moment.T) / 2
    root, failed = torch.linalg.cholesky_ex(moment)
    # The diagonal of the factor bounds its condition from below; doubtful cases go the safe way.
    diagonal = root.diagonal()
    if not failed and (diagonal.min() / diagonal.max()) ** 2 > 1e-8:
        identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
        return root, torch.linalg.solve_triangular(root, identity, upper=False)
    values, vectors = torch.linalg.eigh(moment)
    kept = values > max(float(values[-1]), 0.0) * _RELATIVE_TOLERANCE
    scale = values[kept].sqrt()
    return vectors[:, kept] * scale, vectors[:, kept].T / scale[:, None]


@torch.no_grad()
def whitened_factors(weight: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A and B whose product minimizes E‖(W - B A) x‖² over all matrices of rank r.

    E‖(W - B A) x‖² = ‖(W - B A) S‖_F² with S Sᵀ = M, so the truncated SVD of W S = U Σ Vᵀ is the best
    (Eckart & Young 1936): B = U_r √Σ_r, A = √Σ_r V_rᵀ S⁻¹ (SVD-LLM, section 3.1). Where the support of
    M has fewer than r dimensions, they are all kept, and the ranks left over go to the best approximation
    of W on the directions that no input had; at full rank the result is W itself.

    Shapes: weight (out, in), moment (in, in) -> A (r, in), B (out, r), in the dtype of `weight`.
    """
    if rank == min(weight.shape):
        return svd_factors(weight, rank)  # without error, also where no input was
    dense = weight.double()
    root, inverse = moment_sqrt(moment)
    u, s, vh = torch.linalg.svd(dense @ root, full_matrices=False)
    num_kept = min(rank, len(s))
    scale = s[:num_kept].sqrt()
    down, up = (scale[:, None] * vh[:num_kept]) @ inverse, u[:, :num_kept] * scale
    if num_kept < rank:
        u, s, vh = torch.linalg.svd(dense - up @ down, full_matrices=False)
        scale = s[: rank - num_kept].sqrt()
        down = torch.cat([down, scale[:, None] * vh[: rank - num_kept]])
        up = torch.cat([up, u[:, : rank - num_kept] * scale], dim=1)
    return down.to(weight), up.to(weight)


@torch.no_grad()
def refit_up(weight: Tensor, cross: Tensor, moment: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """The up factor that brings B A x̃ closest to W x, A held: minimizes E‖W x - B A x̃‖².

    x is what the projection gets in the dense model, x̃ what it gets in the model factorized up to here,
    so that B makes up for the drift of what is before. With C = E[x x̃ᵀ] and M̃ = E[x̃ x̃ᵀ] the normal
    equations give B = W C Aᵀ (A M̃ Aᵀ)⁺ (the update of SVD-LLM, section 3.2, which has x̃ alone). With
    x̃ = x and whitened factors nothing changes, as those are optimal already: drift is all that this corrects.
    Solved as a correction to B, so directions of the latent that no input reaches keep what they had.

    Shapes: weight (out, in), cross and moment (in, in), down (r, in), up (out, r) -> (out, r).
    """
    a, b = down.double(), up.double()
    gram = a @ moment.double() @ a.T
    residual = (weight.double() @ cross.double() - b @ a @ moment.double()) @ a.T
    return (b + residual @ torch.linalg.pinv(gram, hermitian=True, rtol=1e-10)).to(up)


@torch.no_grad()
def squared_error(
    weight: Tensor, down: Tensor, up: Tensor, moment: Tensor | None = None
) -> tuple[float, float]:
    """‖W - B A‖_F² and ‖W‖_F², or E‖(W - B A) x‖² and E‖W x‖² where there is a moment."""
    dense = weight.double()
    residual = dense - up.double() @ down.double()

    def energy(matrix: Tensor) -> float:
        weighted = matrix if moment is None else matrix @ moment.double()
        return max(0.0, float((weighted * matrix).sum()))

    return energy(residual), energy(dense)


@torch.no_grad()
def tail_energies(weight: Tensor, moment: Tensor | None = None) -> list[float]:
    """The squared error of the best truncation to each rank r = 0, 1, …: Σ σ² of what is discarded.

    σ are the singular values of W, or of W S where there is a moment.
    """
    dense = weight.double()
    if moment is not None:
        dense = dense @ moment_sqrt(moment)[0]
    squares = torch.linalg.svdvals(dense).square()
    tails = squares.flip(0).cumsum(0).flip(0).tolist()
    limit = min(weight.shape)
    return (tails + [0.0] * (limit + 1 - len(tails)))[: limit + 1]
