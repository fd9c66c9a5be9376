"""What a forward and backward pass takes beside weights and gradients, from models of few layers."""

import torch
from torch.distributed._tools.mem_tracker import _MemRefType

from lpa.model.activation_checkpointing import apply_activation_checkpointing
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.plan import LayerRanks, layer_kinds, replace_layers
from lpa.train.distillation import cross_entropy_loss
from lpa.train.distributed.meta_init import build_meta_model
from lpa.train.distributed.parallelize import (
    apply_tensor_parallel,
    build_mesh,
    loss_parallel_context,
)
from lpa.train.simulation.fake_world import fake_tensors, zeros_like_batch
from lpa.train.simulation.run_shape import RunShape
from lpa.train.simulation.step_memory import StepMemory


def activation_bytes_at_peak(
    shape: RunShape, *, activation_checkpointing: str, intra_document_mask: bool
) -> int:
    """Bytes of activations, and of what the loss and the backward pass hold for a moment, when highest.

    Measured, not estimated: a model with one layer of each kind runs on fake tensors, and each further
    layer adds what a second one of its kind adds to a model of one. The process group must have the
    processes of `shape`.
    """
    config = shape.model_config
    kinds = layer_kinds(config)

    def peak(*layers: LayerRanks) -> int:
        built = replace_layers(config, layers)
        built._attn_implementation = config._attn_implementation  # it decides what attention keeps
        return _peak(shape, built, activation_checkpointing, intra_document_mask)

    return peak(*kinds) + sum(
        (count - 1) * (peak(kind, kind) - peak(kind)) for kind, count in kinds.items() if count > 1
    )


def _peak(
    shape: RunShape, config: LPAConfig, activation_checkpointing: str, intra_document_mask: bool
) -> int:
    model = build_meta_model(config).train()
    apply_activation_checkpointing(model, activation_checkpointing)
    is_low = shape.dtype != torch.float32
    if shape.layout.tensor > 1:
        apply_tensor_parallel(model, build_mesh(shape.layout, "cpu")["tensor"])
    if shape.processes > 1:
        model.model.layers.to(shape.dtype)  # as FSDP gathers them; autocast would keep a copy
    with fake_tensors():
        model.to_empty(device="cpu")
        model.tie_weights()
        inputs = zeros_like_batch(
            shape.micro_batch_size, shape.seq_len, intra_document_mask=intra_document_mask
        )
        memory = StepMemory(model, counted=(_MemRefType.ACT, _MemRefType.TEMP))
        with memory, loss_parallel_context(shape.layout):
            memory.watch_gradients()
            with torch.autocast("cpu", dtype=shape.dtype, enabled=is_low):
                loss = cross_entropy_loss(model, inputs, 1)
            loss.backward()
    found = memory.peak("forward_backward")
    return found["activations"] + found["temporary"]
