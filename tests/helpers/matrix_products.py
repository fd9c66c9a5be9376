"""Which matrix products torch does, and in which dtypes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear")


class MatrixProducts(TorchDispatchMode):
    """Collects the dtypes of the factors of each product that is done within it."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[set[torch.dtype]] = []

    @property
    def dtypes(self) -> set[torch.dtype]:
        return {dtype for dtypes in self.products for dtype in dtypes}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.overloadpacket.__name__ in _PRODUCTS:
            self.products.append({x.dtype for x in args if isinstance(x, torch.Tensor)})
        return operation(*args, **(kwargs or {}))
