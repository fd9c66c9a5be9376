"""What a run would take, found by building it without memory."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from torch import nn
from torch.distributed.tensor import DTensor

from lpa.display.units import format_bytes, format_count, format_duration, format_flops
from lpa.model.cost import parameter_count
from lpa.train.config import RunConfig
from lpa.train.distillation import plan_teacher
from lpa.train.distributed.parallelize import parallelize
from lpa.train.init_weights import with_source_seq_len
from lpa.train.optim.muon import muon_temporary_bytes
from lpa.train.optim.optimizers import (
    check_optimizer,
    optimizer_kinds,
    optimizer_state_count,
)
from lpa.train.simulation.activations import activation_bytes_at_peak
from lpa.train.simulation.collectives import Collective
from lpa.train.simulation.expected_collectives import expected_collectives
from lpa.train.simulation.fake_world import fake_process_group
from lpa.train.simulation.run_shape import RunShape

_MASTER_BYTES = 4  # weights, gradients and optimizer states are float32
# What a GPU of today keeps up in training, to turn FLOPs into hours: 40% of an A100's 312 TFLOP/s.
_ASSUMED_FLOPS = 0.4 * 312e12


@dataclass
class RunPlan:
    """Figures of a run that has not started; the keys of `lpa train --dry-run --json`.

    Attributes:
        processes, layout: how many, and how they divide the work.
        parameters: of the model.
        steps, tokens, tokens_per_step, samples_per_step: of the run.
        micro_batch_size: samples per forward pass of one process.
        forward_passes: per step and process.
        flops: of the whole run, forward and backward.
        gpu_hours: at 125 TFLOP/s each.
        memory_bytes_per_device: `weights`, `gradients` and `optimizer` as this layout shards them,
            measured on the built model; `gathered`: the largest decoder layer and what is outside the layers,
            whole; `accumulated`: gradients before they are added up over processes, once for all forward
            passes of a step; `activations` of one forward pass, with what loss and backward pass hold for
            a moment; `orthogonalizing`: whole matrices, in Muon's step; `teacher`, its weights, where
            there is one.
        step_memory_bytes: phase of a step, `forward_backward` or `optimizer` -> kind -> bytes that a device
            holds when the phase holds most.
        collectives: what a process sends and receives in a step.
    """

    processes: int
    layout: str
    parameters: int
    steps: int
    tokens: int
    tokens_per_step: int
    samples_per_step: int
    micro_batch_size: int
    forward_passes: int
    flops: float
    gpu_hours: float
    memory_bytes_per_device: dict[str, int]
    step_memory_bytes: dict[str, dict[str, int]]
    collectives: list[Collective]

    @property
    def peak_bytes_per_device(self) -> int:
        return max(sum(kinds.values()) for kinds in self.step_memory_bytes.values())

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each figure, to print."""
        passes = "forward pass" if self.forward_passes == 1 else "forward passes"
        memory = self.memory_bytes_per_device
        return [
            ("processes", f"{self.processes}: {self.layout}"),
            ("parameters", format_count(self.parameters)),
            ("tokens", format_count(self.tokens)),
            ("steps", f"{self.steps:,} of {format_count(self.tokens_per_step)} tokens"),
            (
                "a process's step",
                f"{self.forward_passes} {passes} of {self.micro_batch_size} samples",
            ),
            ("FLOPs", format_flops(self.flops)),
            (
                "time at 125 TFLOP/s per GPU",
                f"{format_duration(self.gpu_hours * 3600 / self.processes)} "
                f"({self.gpu_hours:,.1f} GPU-hours)",
            ),
            *((f"memory per device: {name}", format_bytes(size)) for name, size in memory.items()),
            ("memory per device: most at once", format_bytes(self.peak_bytes_per_device)),
        ]


def plan_run(config: RunConfig, processes: int | None = None) -> RunPlan:
    """Build the model of a run on the meta device, in the layout of so many processes.

    Args:
        processes: by default what the parallel section asks for.

    Raises:
        UserError: a field that the run would refuse.
    """
    config = with_source_seq_len(config.checked())
    shape = RunShape.of(config, processes)
    settings, layout = config.train, shape.layout
    with fake_process_group(shape.processes):
        memory, phases, collectives = _plan_step(config, shape)
    parameters = parameter_count(shape.model_config)
    tokens_per_step = settings.batch_size * shape.seq_len
    flops = config.training_flops_per_token(shape.model_config) * settings.steps * tokens_per_step
    return RunPlan(
        processes=shape.processes,
        layout=str(layout),
        parameters=parameters,
        steps=settings.steps,
        tokens=settings.steps * tokens_per_step,
        tokens_per_step=tokens_per_step,
        samples_per_step=settings.batch_size,
        micro_batch_size=shape.micro_batch_size,
        forward_passes=shape.forward_passes,
        flops=flops,
        gpu_hours=flops / _ASSUMED_FLOPS / 3600,
        memory_bytes_per_device=memory,
        step_memory_bytes=phases,
        collectives=collectives,
    )


_PhaseMemory = dict[str, dict[str, int]]


def _plan_step(
    config: RunConfig, shape: RunShape
) -> tuple[dict[str, int], _PhaseMemory, list[Collective]]:
    """Bytes by kind, those that each phase of a step holds of them at once, and what is sent."""
    layout, dtype = shape.layout, shape.dtype
    model = shape.build_meta_model(config)
    layers = [list(layer.parameters()) for layer in model.model.layers]
    outside = parameter_count(shape.model_config) - sum(p.numel() for p in chain(*layers))
    gathered_layer = max(_padded_numel(layer, layout.shard) for layer in layers)
    parallelize(model, layout, "cpu", dtype)
    trainable_local = _local_numel(p for p in model.parameters() if p.requires_grad)
    kinds = optimizer_kinds(model, config.optim)
    muon_weights = [p for p in model.parameters() if kinds.get(p) == "muon" and p.requires_grad]
    muon_local = _local_numel(muon_weights)
    states = 2 * trainable_local - muon_local
    check_optimizer(model, config.optim)
    if config.optim.name not in ("adamw", "muon"):  # of one process
        states = optimizer_state_count(model, config.optim)

    # FSDP keeps its own copies even where it shards over one process.
    is_fsdp = shape.processes > 1
    whole = outside * _MASTER_BYTES + gathered_layer * dtype.itemsize
    # The gradient of an embedding split by rows is a view of one of all rows.
    embedding = model.get_input_embeddings().weight
    rows = embedding.numel() * (layout.tensor - 1) // layout.tensor
    accumulated = trainable_local * layout.shard + embedding.requires_grad * rows
    memory = {
        "weights": _local_numel(model.parameters()) * _MASTER_BYTES
        + sum(buffer.nbytes for buffer in model.buffers()),
        "gradients": trainable_local * _MASTER_BYTES,
        "optimizer": states * _MASTER_BYTES,
        "gathered": is_fsdp * whole // layout.tensor,
        "accumulated": (is_fsdp and shape.forward_passes > shape.gradient_syncs)
        * accumulated
        * _MASTER_BYTES,
        "activations": activation_bytes_at_peak(
            shape,
            activation_checkpointing=config.train.activation_checkpointing,
            intra_document_mask=config.data.intra_document_mask,
        ),
        "orthogonalizing": muon_temporary_bytes(muon_weights, dtype.itemsize),
    }
    if config.distill.teacher is not None:
        memory["teacher"] = plan_teacher(config, dtype)
    always = {name: memory[name] for name in ("weights", "optimizer", "teacher") if name in memory}
    phases = {
        "forward_backward": always
        | {
            "gathered": memory["gathered"],
            # Those of earlier forward passes are here whole, or in one process as they are.
            "gradients": memory["accumulated"] or (shape.forward_passes > 1) * memory["gradients"],
            "activations": memory["activations"],
        },
        "optimizer": always
        | {"gradients": memory["gradients"], "temporary": memory["orthogonalizing"]},
    }
    return memory, phases, expected_collectives(model, shape, muon_weights)


def _padded_numel(parameters: Iterable[nn.Parameter], shards: int) -> int:
    """Numbers of them as FSDP gathers them: of each, as many rows as shards of one size have."""
    return sum(-(-len(p) // shards) * shards * p.shape[1:].numel() for p in parameters)


def _local_numel(parameters: Iterable[nn.Parameter]) -> int:
    """Numbers of them that one process keeps."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)
