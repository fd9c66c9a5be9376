"""GaLore and APOLLO: AdamW whose states are those of a gradient projected to a low rank."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lpa.train.optim.matrix_optimizer import MatrixOptimizer, resolve_rank

UPDATE_PROJ_GAP = 200  # steps that a projection lasts, in both papers
_GALORE_SCALE = 0.25
_APOLLO_SCALE = 1.0
_NORM_GROWTH = (
    1.01  # most growth of an update's norm from step to step (Zhu et al. 2024, section 4)
)


class _ProjectedAdamW(MatrixOptimizer):
    """What GaLore and APOLLO share: AdamW's moments of the projected gradient.

    The shorter side of a matrix is projected: of a gradient G (rows, columns) it is Pᵀ G with P
    (rows, rank) where there are fewer rows than columns, else G P with P (columns, rank).
    """

    def step_matrix(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        update = self._update(weight, gradient, group)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update, alpha=-group["lr"])

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def _adam_direction(
        self, state: dict[str, Tensor], projected: Tensor, group: dict[str, Any]
    ) -> tuple[Tensor, float]:
        """AdamW's direction of the projected gradient before its bias is corrected, and the correction.

        Counts the step. As in the code of both papers' authors, eps is added before the correction.
        """
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(projected) for _ in range(2))
        beta1, beta2 = group["betas"]
        state["step"] += 1
        step = float(state["step"])
        mean = state["exp_avg"].lerp_(projected, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(projected, projected, value=1 - beta2)
        correction = (1 - beta2**step) ** 0.5 / (1 - beta1**step)
        return mean / square.sqrt().add_(group["eps"]), correction


def projected_state_count(shape: Sequence[int], rank: int | None, *, kept: bool) -> int:
    """Numbers in the states of a matrix: two projected moments, and P where it is kept."""
    shorter, longer = sorted(shape)
    rank = resolve_rank(shape, rank)
    return 2 * rank * longer + (rank * shorter if kept else 0)


def _project(gradient: Tensor, projection: Tensor) -> Tensor:
    rows, columns = gradient.shape
    return projection.T @ gradient if rows < columns else gradient @ projection


class GaLore(_ProjectedAdamW):
    """GaLore (Zhao et al. 2024, arXiv 2403.03507, algorithm 2).

    P holds the first singular vectors of the gradient, renewed every 200 steps. The step is 0.25 times
    AdamW's direction of the projected gradient, projected back.
    """

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        rows, columns = gradient.shape
        if not state:
            state["step"] = torch.zeros(())  # on the CPU, where it is read without a wait
            state["projection"] = gradient.new_zeros(
                min(rows, columns), resolve_rank(gradient.shape, self.rank)
            )
        projection = state["projection"]
        if int(state["step"]) % UPDATE_PROJ_GAP == 0:
            # Of the side that is projected.
            u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
            vectors = u if rows < columns else vh.T
            projection.copy_(vectors[:, : projection.shape[1]])
        direction, correction = self._adam_direction(state, _project(gradient, projection), group)
        back = projection @ direction if rows < columns else direction @ projection.T
        return _GALORE_SCALE * correction * back


class APOLLO(_ProjectedAdamW):
    """APOLLO (Zhu et al. 2024, arXiv 2412.05270, algorithm 1), with scaling by channel.

    P is random normal, of variance 1 / rank, and renewed every 200 steps from the numbers of the matrix and
    the projection, whatever the run's seed, so that it is never kept. The step is the gradient itself, each
    channel of the longer side scaled as AdamW scales the projected gradient; its norm grows by 1% a step at
    most. As in the authors' package `apollo-torch`, the bias of AdamW's moments is corrected after that
    limit.
    """

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # on the CPU, where it is read without a wait
            state["norm"] = torch.zeros((), device=gradient.device)
        projected = _project(gradient, self._projection(parameter, gradient, int(state["step"])))
        direction, correction = self._adam_direction(state, projected, group)
        axis = 0 if gradient.shape[0] < gradient.shape[1] else 1
        scale = direction.norm(dim=axis, keepdim=True) / (
            projected.norm(dim=axis, keepdim=True) + 1e-8
        )
        update = gradient * scale
        norm = update.norm()
        most = torch.where(state["norm"] > 0, _NORM_GROWTH * state["norm"], norm)
        limited = torch.minimum(norm, most)
        update = update * (limited / norm.clamp(min=1e-30))
        state["norm"].copy_(limited)
        return _APOLLO_SCALE**0.5 * correction * update

    def _projection(self, parameter: Tensor, gradient: Tensor, step: int) -> Tensor:
        """P of this step, from the parameter's number and the steps done."""
        rank = resolve_rank(gradient.shape, self.rank)
        seed = self.seed_of(parameter, step // UPDATE_PROJ_GAP)
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(min(gradient.shape), rank, generator=generator) / rank**0.5
        return draw.to(gradient)
