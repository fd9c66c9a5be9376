"""What a run would take, found by building it without memory."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from lpa.data.manifest import MANIFEST_FILE, Manifest
from lpa.device import resolve_dtype
from lpa.display.units import format_bytes, format_count, format_duration, format_flops
from lpa.errors import UserError
from lpa.model.cost import parameter_count, training_flops_per_token
from lpa.model.plan import activation_bytes
from lpa.model.presets import PRESETS
from lpa.train.config import RunConfig
from lpa.train.distillation import teacher_bytes
from lpa.train.distributed.meta_init import build_meta_model
from lpa.train.distributed.parallelize import parallelize, resolve_layout
from lpa.train.init_weights import freeze_all_but_factors, load_source_config
from lpa.train.optim.optimizers import (
    check_single_process,
    muon_parameters,
    optimizer_state_count,
)

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
            measured on the built model; `gathered`: a decoder layer and what is outside the layers, whole
            for the moment that they compute; `accumulated`: gradients before they are added up over
            processes, once for all forward passes of a step; `activations` of one forward pass, which tensor
            parallelism lowers further; `teacher`, its weights, where there is one.
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
            ("memory per device", format_bytes(sum(memory.values()))),
        ]


def plan_run(config: RunConfig, processes: int | None = None) -> RunPlan:
    """Build the model of a run on the meta device, in the layout of so many processes.

    Args:
        processes: by default what the parallel section asks for.

    Raises:
        UserError: a field that the run would refuse.
    """
    asked = config.parallel
    if processes is None:
        processes = asked.replicate * (asked.shard or 1) * asked.tensor
    if processes < 1:
        raise UserError(f"--processes: got {processes}; expected at least 1")
    layout = resolve_layout(asked, processes)
    settings, seq_len = config.train, config.data.seq_len
    micro_batch_size = settings.resolve_micro_batch_size(layout.data_parallel_size)
    model_config = (
        config.model.build(vocab_size=_vocab_size(config), seq_len=seq_len)
        if config.model.from_ is None
        else load_source_config(config.model.from_)
    )
    on_gpu = settings.device.startswith("cuda") or (
        settings.device == "auto" and torch.cuda.is_available()
    )
    dtype = resolve_dtype(settings.dtype, "cuda" if on_gpu else "cpu")

    model = build_meta_model(model_config)
    if config.optim.trainable == "factors":
        freeze_all_but_factors(model)
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    outside = parameter_count(model_config) - layer * model_config.num_hidden_layers
    if processes > 1:
        _init_fake_process_group(processes)
    try:
        parallelize(model, layout, "cpu", dtype)
        local_numel = _local_numel(model.parameters())
        trainable_numel = _local_numel(p for p in model.parameters() if p.requires_grad)
        muon_weights = muon_parameters(model) if config.optim.name == "muon" else set()
        muon_numel = _local_numel(p for p in muon_weights if p.requires_grad)
        states = 2 * trainable_numel - muon_numel
        if config.optim.name not in ("adamw", "muon"):  # of one process
            check_single_process(model, config.optim)
            states = optimizer_state_count(model, config.optim)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    gathered = (
        0 if layout.data_parallel_size == 1 else layer * dtype.itemsize + outside * _MASTER_BYTES
    )
    passes = settings.batch_size // (layout.data_parallel_size * micro_batch_size)
    accumulates = layout.data_parallel_size > 1 and passes > 1
    tokens_per_step = settings.batch_size * seq_len
    flops = training_flops_per_token(model_config, seq_len) * settings.steps * tokens_per_step
    return RunPlan(
        processes=processes,
        layout=str(layout),
        parameters=parameter_count(model_config),
        steps=settings.steps,
        tokens=settings.steps * tokens_per_step,
        tokens_per_step=tokens_per_step,
        samples_per_step=settings.batch_size,
        micro_batch_size=micro_batch_size,
        forward_passes=passes,
        flops=flops,
        gpu_hours=flops / _ASSUMED_FLOPS / 3600,
        memory_bytes_per_device={
            "weights": local_numel * _MASTER_BYTES,
            "gradients": trainable_numel * _MASTER_BYTES,
            "optimizer": states * _MASTER_BYTES,
            "gathered": gathered // layout.tensor,
            "accumulated": accumulates
            * parameter_count(model_config)
            * _MASTER_BYTES
            // layout.tensor,
            "activations": activation_bytes(
                model_config, seq_len=seq_len, batch_size=micro_batch_size, dtype=dtype
            ),
        }
        | _teacher_memory(config, dtype),
    )


def _teacher_memory(config: RunConfig, dtype: torch.dtype) -> dict[str, int]:
    directory = config.distill.teacher
    return {} if directory is None else {"teacher": teacher_bytes(directory, dtype)}


def _local_numel(parameters: Iterable[nn.Parameter]) -> int:
    """Numbers of them that one process keeps."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)


def _vocab_size(config: RunConfig) -> int:
    """That of the data where it is prepared already, else that of the model."""
    if (config.data.path / MANIFEST_FILE).is_file():
        return Manifest.load(config.data.path).vocab_size
    of_preset = PRESETS[config.model.preset].fields if config.model.preset in PRESETS else {}
    return config.model.vocab_size or of_preset.get("vocab_size", 32000)


def _init_fake_process_group(processes: int) -> None:
    """A process group of that size in which this process is alone and nothing is sent."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
