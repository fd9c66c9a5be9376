"""The optimizers of a run, and which parameters each of them has."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lpa.errors import UserError
from lpa.lowrank import LowRankLinear, SLTrainLinear
from lpa.model.layers.decoder import LPADecoderLayer
from lpa.train.config import OptimConfig
from lpa.train.optim.gradient_projection import APOLLO, GaLore, projected_state_count
from lpa.train.optim.muon import Muon
from lpa.train.optim.product_decay import ProductDecay
from lpa.train.optim.relora import ReLoRA, relora_state_count
from lpa.train.optim.spectron import Spectron


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


def build_optimizers(model: nn.Module, config: OptimConfig, dtype: torch.dtype) -> Optimizers:
    """The optimizers of a model whose parameters are plain tensors, or DTensors all alike.

    Matrices decay, embeddings and sparse ones among them; norm weights and biases do not. The factors of a
    low-rank pair have their own multipliers of the learning rate and their own decay. Muon, where asked
    for, has the matrices inside decoder layers; fused AdamW has everything else. GaLore, APOLLO and
    ReLoRA have what Muon would have; Spectron has the factors of pairs, and Muon the other matrices.

    Args:
        dtype: in which the run multiplies, and so Muon and Spectron orthogonalize, whatever machine it is on.

    Raises:
        UserError: an optimizer or a decay that the model or its layout does not go with.
    """
    check_optimizer(model, config)
    modules = [module for module in model.modules() if isinstance(module, LowRankLinear)]
    settings = _group_settings(modules, config)
    kinds = optimizer_kinds(model, config)

    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    grouped: dict[tuple[str, float, float], list[Tensor]] = defaultdict(list)
    for parameter in model.parameters():
        if parameter.requires_grad:
            grouped[kinds.get(parameter, "adamw"), *settings(parameter)].append(parameter)
    for (kind, decay, lr_scale), parameters in grouped.items():
        groups[kind].append({"params": parameters, "weight_decay": decay, "lr_scale": lr_scale})
    makers = _optimizer_makers(config, dtype)
    members = [makers[kind](groups[kind]) for kind in makers if groups[kind]]
    product_decay = None
    if config.low_rank_decay == "product":
        product_decay = ProductDecay(
            modules,
            config.weight_decay,
            down_lr_scale=config.down_lr_scale,
            up_lr_scale=config.up_lr_scale,
        )
    optimizers = Optimizers(members, product_decay)
    optimizers.set_lr(config.lr)
    return optimizers


def _optimizer_makers(
    config: OptimConfig, dtype: torch.dtype
) -> dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]]:
    adam: dict[str, Any] = {"betas": (config.beta1, config.beta2), "eps": config.eps}
    projected = adam | {"rank": config.projection_rank}
    bound = config.spectron_bound or "paper"
    return {
        "muon": lambda groups: Muon(groups, config.lr, dtype=dtype),
        "spectron": lambda groups: Spectron(groups, config.lr, bound=bound, dtype=dtype),
        "galore": lambda groups: GaLore(groups, config.lr, **projected),
        "apollo": lambda groups: APOLLO(groups, config.lr, **projected),
        "relora": lambda groups: ReLoRA(
            groups, config.lr, restart_every=config.restart_every or 1, **projected
        ),
        "adamw": lambda groups: torch.optim.AdamW(groups, config.lr, **adam, fused=True),
    }


def optimizer_kinds(model: nn.Module, config: OptimConfig) -> dict[Tensor, str]:
    """Parameter -> the optimizer that has it, where that is not AdamW."""
    if config.name == "adamw":
        return {}
    matrices = muon_parameters(model)
    if config.name != "spectron":
        return dict.fromkeys(matrices, config.name)
    pairs = [module for module in model.modules() if isinstance(module, LowRankLinear)]
    factors = {p for pair in pairs for p in (pair.down.weight, pair.up.weight)}
    return {p: "spectron" if p in factors else "muon" for p in matrices}


def optimizer_state_count(model: nn.Module, config: OptimConfig) -> int:
    """Numbers that the states of the optimizers of an unsharded model hold, single ones apart."""
    kinds = optimizer_kinds(model, config)
    per_parameter: dict[str, Callable[[Tensor], int]] = {
        "adamw": lambda p: 2 * p.numel(),
        "muon": lambda p: p.numel(),
        "spectron": lambda p: p.numel() + p.shape[1],
        "galore": lambda p: projected_state_count(p.shape, config.projection_rank, kept=True),
        "apollo": lambda p: projected_state_count(p.shape, config.projection_rank, kept=False),
        "relora": lambda p: relora_state_count(p.shape, config.projection_rank),
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    return sum(per_parameter[kinds.get(p, "adamw")](p) for p in trained)


def check_optimizer(model: nn.Module, config: OptimConfig) -> None:
    """Refuse an optimizer that does not go with the model.

    Raises:
        UserError: a sharded model where it works on whole matrices; or spectron without plain pairs, whose
            products its steps bound; or a decay of products where there are others.
    """
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    if config.name not in ("adamw", "muon") and sharded:
        raise UserError(
            f"optim.name: got {config.name} with several processes; expected adamw or muon, as "
            f"{config.name} works on whole matrices"
        )
    kinds = {type(module) for module in model.modules() if isinstance(module, LowRankLinear)}
    if config.name == "spectron" and kinds != {LowRankLinear}:
        raise UserError(
            "optim.name: got spectron; expected a model with low-rank projections and without "
            "model.low_rank_method, as it bounds the steps of their products"
        )
    if config.low_rank_decay == "product" and kinds - {LowRankLinear}:
        raise UserError(
            "optim.low_rank_decay: got product; expected factors with model.low_rank_method, whose "
            "projections are no plain products"
        )


def _group_settings(
    modules: list[LowRankLinear], config: OptimConfig
) -> Callable[[Tensor], tuple[float, float]]:
    """What tells a parameter's weight decay and its multiplier of the learning rate."""
    downs = {module.down.weight for module in modules}
    ups = {module.up.weight for module in modules}
    sparse = {module.sparse_values for module in modules if isinstance(module, SLTrainLinear)}

    def decay(own: float | None) -> float:
        if config.low_rank_decay == "product":
            return 0.0
        return config.weight_decay if own is None else own

    def settings(parameter: Tensor) -> tuple[float, float]:
        if parameter in downs:
            return decay(config.down_weight_decay), config.down_lr_scale
        if parameter in ups:
            return decay(config.up_weight_decay), config.up_lr_scale
        decays = parameter.ndim >= 2 or parameter in sparse
        return config.weight_decay if decays else 0.0, 1.0

    return settings


def muon_parameters(model: nn.Module) -> set[Tensor]:
    """What Muon has where it is asked for: dense matrices and factors of pairs in decoder layers."""
    layers = (module for module in model.modules() if isinstance(module, LPADecoderLayer))
    return {
        parameter for layer in layers for parameter in layer.parameters() if parameter.ndim == 2
    }
