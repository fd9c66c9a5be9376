"""torch.compile for the decoder layers of a model."""

import sys
from contextlib import AbstractContextManager

import torch
from torch import nn

from lpa.errors import UserError


def compile_layers(model: nn.Module, device: torch.device) -> None:
    """Let torch.compile fuse each decoder layer of a model, in place, without graph breaks.

    All layers of one shape share one compilation, which happens in the first step; the results of the
    compiler are kept on disk between runs, in the directory that TORCHINDUCTOR_CACHE_DIR names.

    Args:
        device: where the model will run; it may still be on the meta device.

    Raises:
        UserError: there is no compiler for the processor's code.
    """
    if device.type == "cpu":  # on GPUs Triton brings its own compiler
        _require_compiler()
    _raise_recompile_limits(len(model.model.layers))
    for layer in model.model.layers:
        layer.compile(fullgraph=True)


# Graphs of one layer: training and evaluation, each of its first shape and then of any batch, with and
# without documents kept apart.
_GRAPHS_PER_LAYER = 8


def _raise_recompile_limits(layers: int) -> None:
    """Let each layer have its own graphs: all share one code, and torch's limit of eight is per code."""
    import torch._dynamo.config as settings

    graphs = _GRAPHS_PER_LAYER * layers
    settings.recompile_limit = max(settings.recompile_limit, graphs)
    settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, graphs)


def eager_layers() -> AbstractContextManager[None]:
    """Within it compiled layers run as they are: each token of a text would need a graph of its shape."""
    return torch.compiler.set_stance("force_eager")


def compile_seconds() -> float:
    """How long the compiler has worked in this process; little where it finds its results on disk."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo.calculate_time_spent()["total_wall_time"] if dynamo else 0.0


def _require_compiler() -> None:
    """Refuse at once, instead of in the first step, where code for the CPU cannot be built."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UserError(
            "train.compile: found no C++ compiler; install g++ or clang, name one in the environment "
            "variable CXX, or pass --train.compile false"
        ) from error
