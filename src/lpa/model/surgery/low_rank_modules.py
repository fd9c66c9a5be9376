"""One low-rank pair in the place of one dense projection."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lpa.errors import LPAWarning, UserError
from lpa.lowrank import LowRankLinear, check_rank


def dense_weight(module: nn.Module) -> Tensor:
    """The matrix of a projection as (out_features, in_features); Conv1D keeps it the other way round."""
    weight: Any = module.weight
    return weight.T if isinstance(module, Conv1D) else weight


def low_rank_like(module: nn.Module, rank: int) -> LowRankLinear:
    """An empty pair of a projection's shape, bias, device and dtype."""
    out_features, in_features = dense_weight(module).shape
    weight: Any = module.weight
    pair = LowRankLinear(
        in_features,
        out_features,
        rank,
        bias=module.bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    pair.register_load_state_dict_pre_hook(_drop_placeholder)
    return pair


def _drop_placeholder(_: nn.Module, state_dict: dict[str, Any], prefix: str, *__: Any) -> None:
    """Files have one in the place of the dense weight (see `quantizer`)."""
    state_dict.pop(f"{prefix}weight", None)


@torch.no_grad()
def set_factors(pair: LowRankLinear, module: nn.Module, down: Tensor, up: Tensor) -> LowRankLinear:
    """Write factors into a pair, and the bias of the projection whose place it takes."""
    pair.down.weight.copy_(down)
    pair.up.weight.copy_(up)
    if pair.up.bias is not None:
        pair.up.bias.copy_(module.bias)
    return pair


def insert_low_rank_modules(model: nn.Module, ranks: Mapping[str, int]) -> list[str]:
    """Put empty pairs of the given ranks in the place of modules, before weights are loaded.

    Names are those of the whole model; a model without its head has them without the first part.

    Returns:
        The names in this model.

    Raises:
        UserError: the model has no such projection, or it cannot have the rank.
    """
    if not isinstance(ranks, Mapping) or not ranks:
        raise UserError(
            f"quantization_config.ranks: got {ranks!r}; expected the rank of each projection by its name"
        )
    modules = dict(model.named_modules())
    names = []
    for name, rank in ranks.items():
        own = name if name in modules else name.partition(".")[2]
        module = modules.get(own)
        if not isinstance(module, nn.Linear | Conv1D):
            raise UserError(
                f"quantization_config.ranks: {type(model).__name__} has no projection {name}"
            )
        out_features, in_features = dense_weight(module).shape
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LPAWarning)  # said when the model was factorized
            check_rank(rank, in_features, out_features, field=f"quantization_config.ranks.{name}")
        model.set_submodule(own, low_rank_like(module, rank))
        # GPT-2 starts c_proj.weight by way of the block around it, which finds none now; the pair's own
        # weights come from the file. Blocks with buffers, as of GPT-J, have those to start.
        block: Any = modules[own.rpartition(".")[0]]
        if next(block.buffers(recurse=False), None) is None:
            block._is_hf_initialized = True
        names.append(own)
    return names


@contextmanager
def replacing(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Replace some modules of a model, which is in evaluation mode while that is done.

    Afterwards all modules have the modes that they had, and new ones those of the modules that they
    replace. Where what is done within fails, the modules are back in their places.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    except BaseException:
        for name, module in modules.items():
            model.set_submodule(name, module)
        raise
    finally:
        for name, module in modules.items():
            model.get_submodule(name).train(modes[module])
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def insert_dense_modules(model: PreTrainedModel) -> None:
    """Put the product of each pair in its place, in a module of the kind that the model's class builds."""
    pairs = {n: m for n, m in model.named_modules() if isinstance(m, LowRankLinear)}
    with torch.device("meta"):
        built = type(model)(copy.deepcopy(model.config))
    for name, pair in pairs.items():
        linear = pair.to_dense()
        dense: Any = built.get_submodule(name).to(linear.weight.dtype)
        dense.to_empty(device=linear.weight.device)
        dense_weight(dense).copy_(linear.weight)
        if dense.bias is not None:
            dense.bias.copy_(linear.bias)
        dense.requires_grad_(pair.up.weight.requires_grad)
        model.set_submodule(name, dense.train(pair.training))
