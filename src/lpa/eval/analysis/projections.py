"""The projections in the layers of any decoder of transformers, and cutting one to a rank."""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lpa.errors import LPAWarning, UserError
from lpa.lowrank import LowRankLinear

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Projection:
    """One projection of one layer.

    Attributes:
        layer: number of the layer.
        name: within the sublayer, as `q_proj` or `c_attn`; where that repeats there, the path within the
            layer, as `output.dense`.
        sublayer: `attention` or `ffn`.
        path: within the model.
        module: `nn.Linear`, `LowRankLinear`, or the `Conv1D` of GPT-2.
    """

    layer: int
    name: str
    sublayer: str
    path: str
    module: Any

    @property
    def max_rank(self) -> int:
        """The rank that the effective matrix can have at most."""
        if isinstance(self.module, LowRankLinear):
            return self.module.rank
        return min(self.module.weight.shape)


def list_projections(model: nn.Module) -> list[Projection]:
    """The `nn.Linear`, `Conv1D` and pairs inside the layers of a model, in its order.

    It warns of the other matrices there.

    Raises:
        UserError: there is none.
    """
    from transformers.pytorch_utils import Conv1D

    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        if _LAYER.search(path) is None or path.rpartition(".")[0] in found:
            continue  # the factors of a pair are no separate projections
        if not isinstance(module, nn.Linear | Conv1D | LowRankLinear):
            continue
        if isinstance(module, LowRankLinear) and type(module) is not LowRankLinear:
            raise UserError(
                f"{type(model).__name__}: {path} is a {type(module).__name__}; expected dense projections or "
                "plain pairs, which have singular values to truncate"
            )
        found[path] = module
    if not found:
        raise UserError(
            f"{type(model).__name__}: has no nn.Linear, Conv1D or LowRankLinear in numbered layers"
        )
    _warn_of_other_matrices(model, found)
    return _name_projections(found)


def _name_projections(modules: dict[str, Any]) -> list[Projection]:
    """The projections by their paths, each with a name that is unique in its sublayer of its layer."""
    places = [(*_split_path(path), _sublayer(path), path) for path in modules]
    counts = Counter((layer, sublayer, _last(path)) for layer, _, sublayer, path in places)
    repeated = {(sublayer, name) for (_, sublayer, name), count in counts.items() if count > 1}
    return [
        Projection(
            layer=layer,
            name=within if (sublayer, _last(path)) in repeated else _last(path),
            sublayer=sublayer,
            path=path,
            module=modules[path],
        )
        for layer, within, sublayer, path in places
    ]


def _split_path(path: str) -> tuple[int, str]:
    """The number of the layer, and the path within it."""
    layer = _LAYER.search(path)
    assert layer is not None
    return int(layer[1]), path[layer.end() :]


def _sublayer(path: str) -> str:
    return "attention" if "attn" in path or "attention" in path else "ffn"


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _warn_of_other_matrices(model: nn.Module, modules: dict[str, Any]) -> None:
    """Name what the layers hold beside the projections, such as experts in one 3-D parameter."""
    listed = {
        f"{path}.{name}"
        for path, module in modules.items()
        for name, _ in module.named_parameters()
    }
    others = [
        _split_path(path)[1]
        for path, parameter in model.named_parameters()
        if path not in listed and _LAYER.search(path) and parameter.squeeze().ndim > 1
    ]
    if others:
        warnings.warn(
            f"{type(model).__name__}: leaves {', '.join(dict.fromkeys(others))} of the layers out; only "
            "nn.Linear, Conv1D and LowRankLinear are analyzed",
            LPAWarning,
            stacklevel=3,
        )


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
