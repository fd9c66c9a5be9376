"""The optimizers of a run, and which parameters each of them has."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lpa.lowrank import LowRankLinear
from lpa.model.modeling_lpa import LPADecoderLayer
from lpa.train.config import OptimConfig
from lpa.train.muon import Muon
from lpa.train.pair_decay import ProductDecay


class Optimizers:
    """Several optimizers that step as one.

    Attributes:
        members: each with groups of its own; every group carries `lr_scale`, the multiplier of the
            run's learning rate.
        learning_rate: the rate last set.
    """

    def __init__(
        self, members: list[torch.optim.Optimizer], pair_decay: ProductDecay | None = None
    ) -> None:
        self.members = members
        self.pair_decay = pair_decay
        self.learning_rate = 0.0

    def set_learning_rate(self, rate: float) -> None:
        self.learning_rate = rate
        for member in self.members:
            for group in member.param_groups:
                group["lr"] = rate * group["lr_scale"]

    def step(self) -> None:
        if self.pair_decay is not None:
            self.pair_decay.step(self.learning_rate)
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
    pairs = [module for module in model.modules() if isinstance(module, LowRankLinear)]
    settings = _settings(pairs, config)
    for_muon = matrices_in_layers(model) if config.name == "muon" else set()

    groups: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    members_of: dict[tuple[bool, float, float], list[Tensor]] = defaultdict(list)
    for parameter in model.parameters():
        if parameter.requires_grad:
            members_of[parameter in for_muon, *settings(parameter)].append(parameter)
    for (muon, decay, lr_scale), parameters in members_of.items():
        groups[muon].append({"params": parameters, "weight_decay": decay, "lr_scale": lr_scale})

    members: list[torch.optim.Optimizer] = []
    if groups[True]:
        members.append(Muon(groups[True], config.lr))
    if groups[False]:
        betas = (config.beta1, config.beta2)
        members.append(
            torch.optim.AdamW(groups[False], config.lr, betas=betas, eps=config.eps, fused=True)
        )
    pair_decay = None
    if config.pair_decay == "product":
        pair_decay = ProductDecay(
            pairs,
            config.weight_decay,
            down_lr_scale=config.down_lr_scale,
            up_lr_scale=config.up_lr_scale,
        )
    optimizers = Optimizers(members, pair_decay)
    optimizers.set_learning_rate(config.lr)
    return optimizers


def _settings(
    pairs: list[LowRankLinear], config: OptimConfig
) -> Callable[[Tensor], tuple[float, float]]:
    """What tells a parameter's weight decay and its multiplier of the learning rate."""
    downs = {pair.down.weight for pair in pairs}
    ups = {pair.up.weight for pair in pairs}

    def decay(own: float | None) -> float:
        if config.pair_decay == "product":
            return 0.0
        return config.weight_decay if own is None else own

    def settings(parameter: Tensor) -> tuple[float, float]:
        if parameter in downs:
            return decay(config.down_decay), config.down_lr_scale
        if parameter in ups:
            return decay(config.up_decay), config.up_lr_scale
        return config.weight_decay if parameter.ndim >= 2 else 0.0, 1.0

    return settings


def matrices_in_layers(model: nn.Module) -> set[Tensor]:
    """What Muon has where it is asked for: dense matrices and factors of pairs in decoder layers."""
    layers = (module for module in model.modules() if isinstance(module, LPADecoderLayer))
    return {
        parameter for layer in layers for parameter in layer.parameters() if parameter.ndim == 2
    }
