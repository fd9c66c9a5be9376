"""Several low-rank maps of one input: their first factors as one product."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpa.lowrank import LowRankLinear, has_hooks, is_plain_linear


def project_fused(projections: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """What each projection makes of x.

    The first factors of low-rank projections read the same x, so they are stacked into one matrix: a
    product as wide as the ranks together runs nearer to the machine's peak than several narrow ones, and x
    is read once, as is its gradient. The second factors run one by one: batched they take longer. For the few
    tokens of a decoding step stacking costs more than it saves, so there each pair is called separately
    (`benchmarks/model/fused_projections.py`), as is whatever is more than a pair of plain linear maps
    (wrapped, hooked,
    quantized, sharded over processes).

    Shapes: x (…, in_features) -> (…, out_features) of each.
    """
    modules = [p for p in projections if isinstance(p, LowRankLinear)]
    is_small = not torch.compiler.is_compiling() and x.numel() // x.shape[-1] < _MIN_TOKENS
    if is_small or len(modules) < 2 or not all(map(_is_plain, modules)) or _are_mismatched(modules):
        return [projection(x) for projection in projections]
    latents = iter(_latents(modules, x))
    return [p.up(next(latents)) if isinstance(p, LowRankLinear) else p(x) for p in projections]


# Below so many tokens, one product of the first factors is slower than one for each.
_MIN_TOKENS = 512


def _latents(modules: Sequence[LowRankLinear], x: Tensor) -> tuple[Tensor, ...]:
    """x Aᵀ of each pair, (…, rank), by one product."""
    weight = torch.cat([module.down.weight for module in modules])
    biases = [module.down.bias for module in modules if module.down.bias is not None]
    bias = torch.cat(biases) if biases else None
    return F.linear(x, weight, bias).split([module.rank for module in modules], dim=-1)


def _is_plain(module: LowRankLinear) -> bool:
    """Whether calling a pair does no more than its two products."""
    return type(module) is LowRankLinear and not has_hooks(module) and is_plain_linear(module.down)


def _are_mismatched(modules: Sequence[LowRankLinear]) -> bool:
    """Whether some have a bias, a dtype or a device that others do not."""
    kinds = {
        (module.down.bias is None, module.down.weight.dtype, module.down.weight.device)
        for module in modules
    }
    return len(kinds) > 1
