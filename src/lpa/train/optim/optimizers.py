"""The optimizers of a run, and which parameters each of them has."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lpa.errors import UserError
from lpa.lowrank import LowRankLinear
from lpa.model.layers.decoder import LPADecoderLayer
from lpa.train.config import OptimConfig
from lpa.train.optim.muon import Muon
from lpa.train.optim.product_decay import ProductDecay


class Optimizers:
    """Several optimizers that step as one.

    Attributes:
        members: each with its own groups; every group carries `lr_scale`, the multiplier of the
            run's learning rate.
        lr: the rate last set.
    """

    def __init__(
        self, members: list[torch.optim.Optimizer], product_decay: ProductDecay | None = None
    ) -> None:
        self.members = members
        self.product_decay = product_decay
        self.lr = 0.0

    def set_lr(self, lr: float) -> None:
        self.lr = lr
        for member in self.members:
            for group in member.param_groups:
                group["lr"] = lr * group["lr_scale"]

    def step(self) -> None:
        if self.product_decay is not None:
            self.product_decay.step(self.lr)
        for member in self.members:
            member.step()

    def zero_grad(self) -> None:
        for member in self.members:
            member.zero_grad(set_to_none=True)


def build_optimizers(model: nn.Module, config: OptimConfig) -> Optimizers:
    """The optimizers of a model whose parameters are plain tensors, or DTensors all alike.

    Matrices decay, embeddings among them; vectors (norm weights and biases) do not. The factors of a
    low-rank pair have their own multipliers of the learning rate and their own decay. Muon, where asked
    for, has the matrices inside decoder layers; fused AdamW has everything else.
    """
    modules = [module for module in model.modules() if isinstance(module, LowRankLinear)]
    settings = _group_settings(modules, config)
    muon_weights = muon_parameters(model) if config.name == "muon" else set()

    groups: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    grouped: dict[tuple[bool, float, float], list[Tensor]] = defaultdict(list)
    for parameter in model.parameters():
        if parameter.requires_grad:
            grouped[parameter in muon_weights, *settings(parameter)].append(parameter)
    for (muon, decay, lr_scale), parameters in grouped.items():
        groups[muon].append({"params": parameters, "weight_decay": decay, "lr_scale": lr_scale})

    members: list[torch.optim.Optimizer] = []
    if groups[True]:
        members.append(Muon(groups[True], config.lr))
    if groups[False]:
        betas = (config.beta1, config.beta2)
        members.append(
            torch.optim.AdamW(groups[False], config.lr, betas=betas, eps=config.eps, fused=True)
        )
    product_decay = None
    if config.low_rank_decay == "product":
        if any(type(module) is not LowRankLinear for module in modules):
            raise UserError(
                "optim.low_rank_decay: got product; expected factors with model.low_rank_method, whose "
                "projections are no plain products"
            )
        product_decay = ProductDecay(
            modules,
            config.weight_decay,
            down_lr_scale=config.down_lr_scale,
            up_lr_scale=config.up_lr_scale,
        )
    optimizers = Optimizers(members, product_decay)
    optimizers.set_lr(config.lr)
    return optimizers


def _group_settings(
    modules: list[LowRankLinear], config: OptimConfig
) -> Callable[[Tensor], tuple[float, float]]:
    """What tells a parameter's weight decay and its multiplier of the learning rate."""
    downs = {module.down.weight for module in modules}
    ups = {module.up.weight for module in modules}

    def decay(own: float | None) -> float:
        if config.low_rank_decay == "product":
            return 0.0
        return config.weight_decay if own is None else own

    def settings(parameter: Tensor) -> tuple[float, float]:
        if parameter in downs:
            return decay(config.down_weight_decay), config.down_lr_scale
        if parameter in ups:
            return decay(config.up_weight_decay), config.up_lr_scale
        return config.weight_decay if parameter.ndim >= 2 else 0.0, 1.0

    return settings


def muon_parameters(model: nn.Module) -> set[Tensor]:
    """What Muon has where it is asked for: dense matrices and factors of pairs in decoder layers."""
    layers = (module for module in model.modules() if isinstance(module, LPADecoderLayer))
    return {
        parameter for layer in layers for parameter in layer.parameters() if parameter.ndim == 2
    }
