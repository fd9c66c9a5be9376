"""Counts what would make a host wait for its device, and what processes send to one another."""

from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten

# What gives a number, or a shape, that depends on the values of a tensor.
_READS = {
    _aten._local_scalar_dense.default: "item",
    _aten.is_nonzero.default: "bool",
    _aten.equal.default: "equal",
    _aten.nonzero.default: "nonzero",
    _aten.masked_select.default: "masked_select",
}
# What copies a tensor to the host, or a host's number to the device, for which it waits too. On a CPU a
# dispatch mode sees nothing of them.
_COPIES = {
    torch.Tensor.tolist: "tolist",
    torch.Tensor.cpu: "cpu",
    torch.tensor: "tensor",
    torch.as_tensor: "tensor",
}


class DeviceTraffic(TorchDispatchMode):
    """Within it: `reads` by kind, `collectives` by name, and the bytes that each process gets, `received`."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.collectives: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self._copies = _Copies(self.reads)

    def __enter__(self) -> "DeviceTraffic":
        self._copies.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._copies.__exit__(*error)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if operation in _READS:
            self.reads[_READS[operation]] += 1
        if operation.namespace == "c10d":
            name = operation.overloadpacket.__name__.strip("_")
            self.collectives[name] += 1
            self.received[name] += _bytes(args[0])
        return operation(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    def __init__(self, reads: Counter[str]) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function in _COPIES:
            self._reads[_COPIES[function]] += 1
        return function(*args, **(kwargs or {}))


def _bytes(tensors: Any) -> int:
    if isinstance(tensors, torch.Tensor):
        return tensors.nbytes
    return sum(map(_bytes, tensors)) if isinstance(tensors, list | tuple) else 0
