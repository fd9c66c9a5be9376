"""A world in which this process is alone and nothing has content."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor._redistribute import _gen_transform_infos
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.overrides import TorchFunctionMode


@contextmanager
def fake_process_group(processes: int) -> Iterator[None]:
    """A process group of that size of which this process is rank 0, and in which nothing is sent."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if processes == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        yield
    finally:
        dist.destroy_process_group()
        # What torch remembers of DTensors names groups of this world, which the next does not have.
        _clear_sharding_prop_cache()
        _gen_transform_infos.cache_clear()


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Within it tensors have shapes, devices and lifetimes, but no content; what is read is zero."""
    with FakeTensorMode(allow_non_fake_inputs=True), _ReadZero():
        yield


class _ReadZero(TorchFunctionMode):
    """Answers the host's questions about a tensor's content."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func is Tensor.tolist:
            return _nested_zeros(tuple(args[0].shape))
        if func in _READS:
            return _READS[func]
        return func(*args, **(kwargs or {}))


_READS: dict[Any, object] = {
    Tensor.item: 0.0,
    Tensor.__float__: 0.0,
    Tensor.__int__: 0,
    Tensor.__bool__: False,
}


def _nested_zeros(shape: tuple[int, ...]) -> Any:
    return 0.0 if not shape else [_nested_zeros(shape[1:]) for _ in range(shape[0])]


def zeros_like_batch(batch_size: int, seq_len: int, *, intra_document_mask: bool) -> dict[str, Any]:
    """Inputs of a model in the shapes that the token dataset gives."""
    inputs = {
        name: torch.zeros(batch_size, seq_len, dtype=torch.int64)
        for name in ("input_ids", "shift_labels")
    }
    if intra_document_mask:
        inputs["position_ids"] = torch.zeros(batch_size, seq_len, dtype=torch.int64)
    return inputs
