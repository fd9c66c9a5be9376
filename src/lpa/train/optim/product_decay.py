"""Weight decay of a low-rank pair as of the matrix that it stands for."""

from collections.abc import Iterable

import torch
from torch import nn

from lpa.lowrank import LowRankLinear
from lpa.train.distributed.dtensor import full_tensor, shard_like


class ProductDecay:
    """Frobenius decay (Khodak et al. 2021, section 3.2), decoupled from the gradient as AdamW's is.

    The gradient of ½ ‖B A‖² is (BᵀB) A for A and B (AAᵀ) for B, so a step of rate η with decay λ is

        A ← A − η λ (BᵀB) A        B ← B − η λ B (AAᵀ)

    from the factors as they are before it. The product is never formed: the middle matrices are
    rank × rank. Sharded factors are gathered, one pair at a time.

    Args:
        pairs: what to decay.
        decay: λ.
        down_lr_scale, up_lr_scale: multipliers of the learning rate for A and for B.
    """

    def __init__(
        self,
        pairs: Iterable[LowRankLinear],
        decay: float,
        *,
        down_lr_scale: float = 1.0,
        up_lr_scale: float = 1.0,
    ) -> None:
        self.weights: list[tuple[nn.Parameter, nn.Parameter]] = [
            (pair.down.weight, pair.up.weight) for pair in pairs
        ]
        self.decay = decay
        self.down_lr_scale = down_lr_scale
        self.up_lr_scale = up_lr_scale

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Decay every pair at a learning rate."""
        for down_weight, up_weight in self.weights:
            down, up = full_tensor(down_weight), full_tensor(up_weight)
            down_change, up_change = (up.T @ up) @ down, up @ (down @ down.T)
            strength = lr * self.decay
            down_weight.sub_(
                shard_like(down_change, down_weight), alpha=strength * self.down_lr_scale
            )
            up_weight.sub_(shard_like(up_change, up_weight), alpha=strength * self.up_lr_scale)
