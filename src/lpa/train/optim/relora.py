"""ReLoRA: full rank from a sequence of low-rank updates, each merged into the matrix."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lpa.train.optim.matrix_optimizer import MatrixOptimizer, resolve_rank

_ALPHA = 32  # of LoRA: the update is ALPHA / rank times the product of the factors
_PRUNED = 0.99  # the fraction of the entries whose moments a merge sets to zero


class ReLoRA(MatrixOptimizer):
    """ReLoRA (Lialin et al. 2023, arXiv 2307.05695, algorithm 1) for dense matrices.

    The first period of `restart_every` steps trains whole matrices, the paper's warm start. In each later
    one a matrix is W + s B A, with W fixed, s = 32 / rank as in the authors' code, and AdamW trains A and
    B. At a restart the product is merged into W, B becomes zero and A random; `lr_at_step` warms the
    learning rate up again. A is drawn from the numbers of the matrix and the period, whatever the run's
    seed. Both moments become zero but for the hundredth of the entries whose first moment is largest:
    pruned each by its own size, one may lose its second moment alone and make a huge step.

    The model holds the sum at any time, so that a merge changes no weight. The gradients of the factors
    follow from that of the sum, G: s Bᵀ G of A and s G Aᵀ of B. The arithmetic is that of the dense model;
    beside it, an implementation with separate factors would save the gradients of whole matrices.

    Args:
        params: matrices, or groups of them.
        lr: as AdamW's, of whatever is trained.
        restart_every: steps of a period.
        settings: betas, eps, weight_decay and rank, the rank of A and B, as of `MatrixOptimizer`.
    """

    # What is no longer there after the first period.
    droppable_states = ("exp_avg", "exp_avg_sq")
    # It counts the updates to its merges, and `lr_at_step` those of the run.
    can_start_within_run = False

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        restart_every: int,
        **settings: Any,
    ) -> None:
        super().__init__(params, lr, **settings)
        self.restart_every = restart_every

    def step_matrix(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            self._init_state(state, weight)
        period, within = divmod(int(state["step"]), self.restart_every)
        if period and not within:
            self._restart(state, weight, period)
        state["step"] += 1
        if not period:
            _adamw_step(weight, gradient, state, "", group, within + 1)
            return
        down, up = state["down"], state["up"]
        scale = _ALPHA / len(down)
        before = up @ down
        gradients = {"down": scale * up.T @ gradient, "up": scale * gradient @ down.T}
        for name, of_factor in gradients.items():
            since_start = int(state["step"]) - self.restart_every
            _adamw_step(state[name], of_factor, state, f"{name}_", group, since_start)
        weight.add_(up @ down - before, alpha=scale)

    def _init_state(self, state: dict[str, Tensor], weight: Tensor) -> None:
        rows, columns = weight.shape
        rank = resolve_rank(weight.shape, self.rank)
        state["step"] = torch.zeros(())  # on the CPU, where it is read without a wait
        for name in self.droppable_states:
            state[name] = torch.zeros_like(weight)
        for name, shape in (("down", (rank, columns)), ("up", (rows, rank))):
            for suffix in ("", "_exp_avg", "_exp_avg_sq"):
                state[name + suffix] = weight.new_zeros(shape)

    def _restart(self, state: dict[str, Tensor], weight: Tensor, period: int) -> None:
        """Merge, which leaves the weight as it is, and begin with other factors."""
        for name in self.droppable_states:
            state.pop(name, None)
        down = state["down"]
        generator = torch.Generator().manual_seed(self.seed_of(weight, period))
        bound = down.shape[1] ** -0.5  # LoRA's own start, kaiming_uniform_(a=√5)
        down.copy_(torch.empty(down.shape).uniform_(-bound, bound, generator=generator))
        state["up"].zero_()
        for name in ("down", "up"):
            _prune(state[f"{name}_exp_avg"], state[f"{name}_exp_avg_sq"])


def _adamw_step(
    weight: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    prefix: str,
    group: dict[str, Any],
    step: int,
) -> None:
    """AdamW's step number `step` with the moments `prefix + exp_avg` and `prefix + exp_avg_sq`."""
    lr, (beta1, beta2) = group["lr"], group["betas"]
    mean = state[f"{prefix}exp_avg"].lerp_(gradient, 1 - beta1)
    square = state[f"{prefix}exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
    weight.mul_(1 - lr * group["weight_decay"])
    weight.addcdiv_(mean, denominator, value=-lr / (1 - beta1**step))


def _prune(mean: Tensor, square: Tensor) -> None:
    """Keep both moments where the first is largest, and of equal entries all."""
    size = mean.abs()
    kept = max(1, round((1 - _PRUNED) * size.numel()))
    is_kept = size >= size.flatten().kthvalue(size.numel() - kept + 1).values
    for moment in (mean, square):
        moment.mul_(is_kept)


def relora_state_count(shape: Sequence[int], rank: int | None) -> int:
    """Numbers in the states of a matrix in the first period, the most: its moments, and the factors with
    theirs."""
    rows, columns = shape
    rank = resolve_rank(shape, rank)
    return 2 * rows * columns + 3 * rank * (rows + columns)
