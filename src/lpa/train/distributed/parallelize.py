"""Spreading a model over processes: replication, full sharding, tensor parallelism and their products.

Tensor parallelism of a low-rank pair communicates its latent, r wide, never the d-wide stream:

| | factor | held | sent per token |
|---|---|---|---|
| q, k, v, gate, up, fc1 | down (A) | whole by every process | nothing |
| | up (B) | rows, that is heads or FFN columns | backward: the gradient of the latent, r |
| o, down_proj, fc2 | down (A) | columns, the heads or FFN columns that are here | forward: the latent, r |
| | up (B) | whole by every process | nothing |

A dense projection is split by rows or columns in the same places and sends d instead of r (Shoeybi et
al. 2019). Embedding and head are split by vocabulary, and so is the loss.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)

from lpa.errors import UserError
from lpa.lowrank import LowRankLinear
from lpa.model.configuration_lpa import RESIDUAL_PROJECTIONS, LPAConfig
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.train.config import ParallelConfig
from lpa.train.distributed.process_group import wait_as_in_a_step


@dataclass(frozen=True)
class ParallelLayout:
    """How the processes of a run divide the work: a grid of replicate × shard × tensor.

    Attributes:
        replicate: groups that hold the same weights and see other samples.
        shard: processes over which weights, gradients and optimizer states are divided (FSDP2, ZeRO 3);
            each sees other samples.
        tensor: processes that divide each matrix product and see the same samples.
    """

    replicate: int
    shard: int
    tensor: int

    @property
    def data_parallel_size(self) -> int:
        """Processes that see different samples."""
        return self.replicate * self.shard

    def dp_rank(self, rank: int) -> int:
        """Which of those a process is."""
        return rank // self.tensor

    def __str__(self) -> str:
        return f"{self.replicate} × {self.shard} × {self.tensor} (replicate × shard × tensor)"


def resolve_layout(config: ParallelConfig, world_size: int) -> ParallelLayout:
    """The grid that a configuration means for so many processes.

    Raises:
        UserError: they do not fill it.
    """
    shard = config.shard
    if shard is None:
        shard = max(1, world_size // (config.replicate * config.tensor))
    layout = ParallelLayout(config.replicate, shard, config.tensor)
    needed = math.prod((layout.replicate, layout.shard, layout.tensor))
    if needed != world_size:
        raise UserError(
            f"parallel: {layout} needs {needed} processes; this run has {world_size}; start it with "
            f"`torchrun --nproc-per-node {needed} -m lpa train …` or change parallel.*"
        )
    return layout


def parallelize(
    model: LPAForCausalLM, layout: ParallelLayout, device_type: str, dtype: torch.dtype
) -> None:
    """Shard a model on the meta device over the processes of the default group, in place.

    Args:
        dtype: of the arithmetic. Weights, gradients and their sums over processes stay float32.
    """
    if layout == ParallelLayout(1, 1, 1):
        return
    mesh = build_mesh(layout, device_type)
    if layout.tensor > 1:
        apply_tensor_parallel(model, mesh["tensor"])
    # Where only tensors are split this shards over one process: then all parameters are of one mesh.
    _apply_fsdp(model, mesh["replicate", "shard"] if layout.replicate > 1 else mesh["shard"], dtype)


def build_mesh(layout: ParallelLayout, device_type: str) -> DeviceMesh:
    """The grid of the processes of the default group."""
    mesh = init_device_mesh(
        device_type,
        (layout.replicate, layout.shard, layout.tensor),
        mesh_dim_names=("replicate", "shard", "tensor"),
    )
    for group in mesh.get_all_groups():
        wait_as_in_a_step(group)
    return mesh


def check_tensor_parallel_size(config: LPAConfig, tensor: int) -> None:
    """Refuse a degree of tensor parallelism that a model cannot be split into.

    Raises:
        UserError: naming the size that it does not divide.
    """
    if config.low_rank_method == "sltrain":
        raise UserError(
            f"parallel.tensor: got {tensor}; expected 1 with model.low_rank_method sltrain, which forms "
            "whole matrices; parallel.shard divides their weights"
        )
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
        size = getattr(config, name)
        if size % tensor:
            raise UserError(f"parallel.tensor: got {tensor}; expected a divisor of {name} ({size})")


def apply_tensor_parallel(model: LPAForCausalLM, mesh: DeviceMesh) -> None:
    """Divide the matrix products of a model on the meta device over the processes of a mesh, in place.

    Raises:
        UserError: its sizes are no multiples of their number.
    """
    check_tensor_parallel_size(model.config, mesh.size())
    for layer in model.model.layers:
        plan: dict[str, ParallelStyle] = {}
        for name, module in layer.named_modules():
            if isinstance(module, LowRankLinear):
                # What begins a branch is split by its outputs, what ends it by its inputs.
                begins = not name.endswith(RESIDUAL_PROJECTIONS)
                plan[f"{name}.down"] = _Replicated() if begins else RowwiseParallel()
                plan[f"{name}.up"] = _RoundedColwise() if begins else _Replicated()
            elif isinstance(module, nn.Linear) and not name.endswith((".down", ".up")):
                plan[name] = (
                    RowwiseParallel() if name.endswith(RESIDUAL_PROJECTIONS) else _RoundedColwise()
                )
            elif name.endswith("layernorm"):
                plan[name] = _Replicated()
        parallelize_module(layer, mesh, plan)
    ends: dict[str, ParallelStyle] = {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
        # The logits stay split: the loss is computed from the parts.
        "lm_head": _RoundedColwise(output_layouts=Shard(-1), use_local_output=False),
    }
    if model.config.decoder_type == "llama":
        ends["model.norm"] = _Replicated()
    else:
        ends["model.embed_positions"] = _Replicated()
    parallelize_module(model, mesh, ends)
    model.tie_weights()


class _Replicated(ParallelStyle):
    """A module that every process of the mesh holds and applies whole."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def to_mesh(_: nn.Module, inputs: tuple[Tensor, ...], mesh: DeviceMesh) -> tuple:
            return tuple(
                DTensor.from_local(x, mesh, [Replicate()], run_check=False) for x in inputs
            )

        def from_mesh(_: nn.Module, output: DTensor, __: DeviceMesh) -> Tensor:
            return output.to_local()

        return distribute_module(module, device_mesh, None, to_mesh, from_mesh)


class _RoundedColwise(ColwiseParallel):
    """A product split by its outputs, whose input is rounded as autocast does before it enters the mesh.

    So the gradient of the input is sent in the dtype in which each process has computed it.
    """

    @staticmethod
    def _prepare_input_fn(
        input_layouts: Any,
        desired: Any,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        mesh: DeviceMesh,
    ) -> DTensor:
        x, *others = inputs
        if torch.is_autocast_enabled(mesh.device_type):
            x = x.to(torch.get_autocast_dtype(mesh.device_type))
        return ColwiseParallel._prepare_input_fn(input_layouts, desired, module, (x, *others), mesh)


def _apply_fsdp(model: LPAForCausalLM, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """Shard each decoder layer separately, so that one at a time is whole, and then what is left."""
    # Autocast rounds what is multiplied, as in one process, and leaves the stream between layers and the
    # loss in float32; here only the layers' weights are rounded before they are sent.
    precision = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the tokens of all processes, so gradients add up; gloo knows no
            # other sum than the plain one.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def loss_parallel_context(layout: ParallelLayout) -> AbstractContextManager[None]:
    """Within it the loss of logits split by vocabulary is computed from the parts, and its gradient too."""
    return loss_parallel() if layout.tensor > 1 else nullcontext()


@contextmanager
def inference_context(model: nn.Module, layout: ParallelLayout) -> Iterator[None]:
    """Forward passes that no backward pass follows; after them all weights are sharded again.

    The embedding and the head stay whole after a forward pass, for the backward pass that mostly follows.
    """
    try:
        with loss_parallel_context(layout):
            yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def prepare_pass(model: nn.Module, *, is_last: bool, sync_each_batch: bool) -> None:
    """Say what FSDP does after the next backward pass of a step.

    Gradients are added up over processes after the last, or after each. Embedding and head are whole from the
    beginning of a forward pass to the end of its backward pass; they stay so until the last, and are
    gathered once a step.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last or sync_each_batch)
        model.set_reshard_after_backward(is_last, recurse=False)
