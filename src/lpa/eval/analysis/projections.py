"""The projections in the layers of any decoder of transformers, and cutting one to a rank."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lpa.errors import UserError
from lpa.lowrank import LowRankLinear

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Projection:
    """One projection of one layer.

    Attributes:
        layer: number of the layer.
        name: within the layer, as `q_proj` or `c_attn`.
        sublayer: `attention` or `ffn`.
        module: `nn.Linear`, `LowRankLinear`, or the `Conv1D` of GPT-2.
    """

    layer: int
    name: str
    sublayer: str
    module: Any

    @property
    def max_rank(self) -> int:
        """The rank that the effective matrix can have at most."""
        if isinstance(self.module, LowRankLinear):
            return self.module.rank
        return min(self.module.weight.shape)


def list_projections(model: nn.Module) -> list[Projection]:
    """All maps between features inside the layers of a model, in its order.

    Raises:
        UserError: there is none.
    """
    from transformers.pytorch_utils import Conv1D

    found: list[Projection] = []
    inside: set[str] = set()
    for path, module in model.named_modules():
        layer = _LAYER.search(path)
        if layer is None or path.rpartition(".")[0] in inside:
            continue
        if isinstance(module, LowRankLinear):
            inside.add(path)  # its factors are no separate projections
        elif not isinstance(module, nn.Linear | Conv1D):
            continue
        if isinstance(module, LowRankLinear) and type(module) is not LowRankLinear:
            raise UserError(
                f"{type(model).__name__}: {path} is a {type(module).__name__}; expected dense projections or "
                "plain pairs, which have singular values to truncate"
            )
        sublayer = "attention" if "attn" in path or "attention" in path else "ffn"
        found.append(Projection(int(layer[1]), path.rpartition(".")[2], sublayer, module))
    if not found:
        raise UserError(
            f"{type(model).__name__}: has no nn.Linear, Conv1D or LowRankLinear in numbered layers"
        )
    return found


def as_linear(module: Any) -> nn.Linear | LowRankLinear:
    """A module whose `weight` is (out_features, in_features): `Conv1D` stores it transposed."""
    if isinstance(module, nn.Linear | LowRankLinear):
        return module
    linear = nn.Linear(*module.weight.shape, bias=False)
    linear.weight.data = module.weight.data.T
    return linear


@torch.no_grad()
def input_directions(module: Any) -> Tensor:
    """(directions, in_features): right singular vectors of the effective matrix, strongest first."""
    linear = as_linear(module)
    if isinstance(linear, LowRankLinear):
        weight = linear.to_dense().weight.double()
    else:
        weight = linear.weight.double()
    return torch.linalg.svd(weight, full_matrices=False).Vh


@contextmanager
def truncate_projections(
    projections: Sequence[Projection], directions: Sequence[Tensor], rank: int
) -> Iterator[None]:
    """Within, each projection is its best approximation of a rank; afterwards it is as before.

    W V_r V_rᵀ, with the r strongest right singular vectors V_r, is the truncated SVD of W (Eckart & Young
    1936). On a pair it falls on the down factor, so biases stay what they are.
    """
    with ExitStack() as stack:
        for projection, vectors in zip(projections, directions, strict=True):
            stack.enter_context(_truncated_module(projection.module, vectors[:rank]))
        yield


@contextmanager
@torch.no_grad()
def _truncated_module(module: Any, kept: Tensor) -> Iterator[None]:
    linear = as_linear(module)
    weight = linear.down.weight if isinstance(linear, LowRankLinear) else linear.weight
    before = weight.detach().clone()
    # In place: the linear map of a Conv1D shares its storage.
    weight.data.copy_(weight.double() @ kept.T @ kept)
    try:
        yield
    finally:
        weight.data.copy_(before)
