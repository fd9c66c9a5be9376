"""Muon in the precision that suits the device, over plain and sharded matrices."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lpa.train.shards import laid_out_like, whole


class Muon(torch.optim.Muon):
    """torch's Muon (Jordan et al. 2024) in a dtype of choice, for DTensors too.

    torch's own always orthogonalises in bfloat16, and on shards would communicate in each product of the
    iteration. Here every process gathers a matrix once, orthogonalises it whole and takes its share.

    The update is about U Vᵀ of the momentum's SVD U S Vᵀ: the iteration's five steps bring singular values
    down to 0.2% of the Frobenius norm to between 0.68 and 1.21, not to 1 exactly. It is scaled to a
    root mean square of about 0.2 whatever the matrix's shape, as AdamW's has, so that learning rate and
    weight decay are AdamW's too (Liu et al. 2025, eq. 4).

    Args:
        params: matrices, or groups of them.
        lr, weight_decay: as AdamW's.
        dtype: what to orthogonalise in; by default `fast_dtype` of each matrix's device.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.dtype = dtype

    def step(self, closure: None = None) -> None:
        with _Orthogonalising(self.dtype):
            super().step(closure)


class _Orthogonalising(TorchFunctionMode):
    """Steers the two calls of torch's step at which a matrix goes into the iteration and comes out of it."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function is Tensor.bfloat16:
            (matrix,) = args
            # Rounded before it is gathered, which in bfloat16 halves the bytes; a copy, for what torch
            # divides in place would else be the gradient or its momentum.
            return whole(matrix.to(self.dtype or fast_dtype(matrix.device.type), copy=True))
        if function is Tensor.add_:
            parameter, update = args
            args = (parameter, laid_out_like(update, parameter))
        return function(*args, **(kwargs or {}))


@cache
def fast_dtype(device_type: str) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, float32 where it would be emulated."""
    if device_type == "cpu":
        return _fast_cpu_dtype(torch.cpu.get_capabilities())
    if device_type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float32
    return torch.bfloat16


def _fast_cpu_dtype(capabilities: Mapping[str, Any]) -> torch.dtype:
    units = ("avx512_bf16", "amx_bf16", "bf16")  # the last is ARM's name
    return torch.bfloat16 if any(capabilities.get(unit) for unit in units) else torch.float32
