"""The section `optim` of a recipe: the optimizer and its schedule."""

from dataclasses import dataclass
from typing import Literal

from lpa.train.config.field_ranges import (
    MIN_FLOAT32,
    check_integer,
    check_positive,
    check_types,
    require,
)

# Settings of single optimizers.
_OPTIMIZERS_WITH = {
    "projection_rank": ("galore", "apollo", "relora"),
    "restart_every": ("relora",),
    "spectron_bound": ("spectron",),
}


@dataclass
class OptimConfig:
    """The optimizer (AdamW, Loshchilov & Hutter 2019; Muon, Jordan et al. 2024) and its schedule.

    Attributes:
        name: `adamw` for all weights; or, for the matrices of the decoder layers, with AdamW for the rest:
            `muon`; `galore` or `apollo` (low-rank optimizer states); `relora` (low-rank updates); or
            `spectron` for the factors of low-rank projections, with Muon for the other matrices. All but
            `adamw` and `muon` run in a single process only.
        projection_rank: of the states of galore and apollo and of the updates of relora; by default a quarter
            of a matrix's shorter side.
        restart_every: steps between two merges of relora; before the first merge it trains whole matrices.
        spectron_bound: how spectron bounds a step of the product: by default as the paper does, or exact.
        trainable: `all` weights, or only the `factors` of low-rank projections, their biases included; the
            others stay as they are, without gradients or optimizer states.
        lr: the peak learning rate, the same for Muon and AdamW: Muon's updates have the size of AdamW's.
        beta1: decay rate of AdamW's running mean of the gradient.
        beta2: decay rate of AdamW's running mean of the squared gradient.
        eps: added to the denominator of AdamW's update.
        weight_decay: on matrices only, not on norms and biases.
        low_rank_decay: what decays in a low-rank pair: its `factors`, as any matrix, or their `product`
            (Frobenius decay, Khodak et al. 2021), by weight_decay too.
        down_weight_decay: decay of the pairs' first factors where it differs from weight_decay; only with
            low_rank_decay factors.
        up_weight_decay: likewise of their second factors.
        down_lr_scale: multiplier of the learning rate for the pairs' first factors.
        up_lr_scale: likewise for their second factors.
        max_grad_norm: the largest gradient norm; larger gradients are scaled down to it.
        schedule: after the warmup `cosine`; `linear`; or `wsd`: constant, then linear decay.
        warmup_steps: steps of linear warmup.
        min_lr_ratio: the last learning rate as a fraction of the peak.
        decay_fraction: the fraction of all steps that `wsd` decays over.
    """

    name: Literal["adamw", "muon", "spectron", "galore", "apollo", "relora"] = "adamw"
    projection_rank: int | None = None
    restart_every: int | None = None
    spectron_bound: Literal["paper", "exact"] | None = None
    trainable: Literal["all", "factors"] = "all"
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    low_rank_decay: Literal["factors", "product"] = "factors"
    down_weight_decay: float | None = None
    up_weight_decay: float | None = None
    down_lr_scale: float = 1.0
    up_lr_scale: float = 1.0
    max_grad_norm: float = 1.0
    schedule: Literal["cosine", "wsd", "linear"] = "cosine"
    warmup_steps: int = 20
    min_lr_ratio: float = 0.1
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        check_types("optim", self)
        # Products of two of them must still have a float32; a clip without effect may be large.
        check_positive("optim", self, "lr", "eps", "down_lr_scale", "up_lr_scale", maximum=1e6)
        check_positive("optim", self, "max_grad_norm", maximum=1e30)
        require(self.eps >= MIN_FLOAT32, "optim.eps", self.eps, f"at least {MIN_FLOAT32:.2g}")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optim.{name}", value, "at least 0 and below 1")
        for name in ("min_lr_ratio", "decay_fraction"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"optim.{name}", value, "from 0 to 1")
        for name in ("weight_decay", "down_weight_decay", "up_weight_decay"):
            value = getattr(self, name)
            own = name != "weight_decay" and value is not None
            require(
                not (own and self.low_rank_decay == "product"),
                f"optim.{name}",
                value,
                "null with optim.low_rank_decay product, which decays by optim.weight_decay",
            )
            require(
                value is None or 0 <= value <= 1e6,
                f"optim.{name}",
                value,
                "a number from 0 to 1,000,000",
            )
        check_integer("optim", self, "warmup_steps", minimum=0)
        check_integer("optim", self, "projection_rank")
        check_integer("optim", self, "restart_every")
        require(
            self.name != "relora" or self.restart_every is not None,
            "optim.restart_every",
            self.restart_every,
            "steps from one merge to the next with optim.name relora",
        )
        for name, optimizers in _OPTIMIZERS_WITH.items():
            value = getattr(self, name)
            require(
                value is None or self.name in optimizers,
                f"optim.{name}",
                value,
                f"null unless optim.name is {' or '.join(optimizers)}",
            )
        for name in ("down_lr_scale", "up_lr_scale"):
            require(
                self.name != "spectron" or getattr(self, name) == 1,
                f"optim.{name}",
                getattr(self, name),
                "1 with optim.name spectron, which steps both factors of a pair together",
            )
        require(
            self.name != "spectron" or self.down_weight_decay == self.up_weight_decay,
            "optim.down_weight_decay",
            self.down_weight_decay,
            "that of optim.up_weight_decay with optim.name spectron",
        )
