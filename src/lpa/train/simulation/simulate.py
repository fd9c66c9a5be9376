"""One step of a run over many processes, done in one process and without numbers.

Model, layout, loss and optimizers are the run's own. torch's fake process group stands for the others and
fake tensors for all content, so what is counted is what the program does: which tensors it makes, how long
they live, and what it sends. The kernels are the CPU's, and layers are not compiled.
"""

from dataclasses import dataclass
from typing import Any

import torch

from lpa.errors import UserError
from lpa.model.activation_checkpointing import apply_activation_checkpointing
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.train.config import RunConfig
from lpa.train.distillation import cross_entropy_loss
from lpa.train.distributed.parallelize import (
    loss_parallel_context,
    parallelize,
    prepare_pass,
)
from lpa.train.init_weights import with_source_seq_len
from lpa.train.optim.grad_clip import clip_grad_norm, square_grad_norm
from lpa.train.optim.optimizers import Optimizers, build_optimizers
from lpa.train.simulation.collectives import Collective, CollectiveLog
from lpa.train.simulation.fake_world import fake_process_group, fake_tensors, zeros_like_batch
from lpa.train.simulation.run_shape import RunShape
from lpa.train.simulation.step_memory import StepMemory

# The first forward pass of a step, one in the middle, which stands for all of its kind, and the last.
_MAX_PASSES = 3
# Optimizers that read numbers of tensors, which fake ones do not have.
_READS_NUMBERS = ("spectron", "galore", "apollo")


@dataclass
class SimulatedStep:
    """What one step of a run takes of each process; the keys of `lpa train --dry-run --simulate --json`.

    Attributes:
        step_memory_bytes: phase of the step -> kind -> bytes, when the phase needs most.
        collectives: what rank 0 takes part in.
    """

    step_memory_bytes: dict[str, dict[str, int]]
    collectives: list[Collective]

    @property
    def peak_bytes_per_device(self) -> int:
        return max(sum(kinds.values()) for kinds in self.step_memory_bytes.values())


def simulate_step(config: RunConfig, processes: int | None = None) -> SimulatedStep:
    """Do a step of a run without numbers, after one that makes the states of the optimizers.

    Args:
        processes: by default what the parallel section asks for.

    Raises:
        UserError: a field that the run would refuse, a teacher, or an optimizer that reads numbers.
    """
    if config.distill.teacher is not None:
        raise UserError("--simulate: got a run with a teacher; expected distill.teacher null")
    if config.optim.name in _READS_NUMBERS:
        raise UserError(
            f"--simulate: got optim.name {config.optim.name}, whose steps depend on numbers; expected adamw, "
            "muon or relora"
        )
    config = with_source_seq_len(config)
    shape = RunShape.of(config, processes)
    with fake_process_group(shape.processes):
        model = shape.build_meta_model(config)
        apply_activation_checkpointing(model, config.train.activation_checkpointing)
        parallelize(model, shape.layout, "cpu", shape.dtype)
        with fake_tensors():
            model.to_empty(device="cpu")
            model.tie_weights()
            return _Step(config, shape, model).simulate()


class _Step:
    """A model of fake tensors with its optimizers."""

    def __init__(self, config: RunConfig, shape: RunShape, model: LPAForCausalLM) -> None:
        self._config = config
        self._shape = shape
        self._model = model
        self._optimizers: Optimizers = build_optimizers(model, config.optim, shape.dtype)

    def simulate(self) -> SimulatedStep:
        self._run(1)
        memory = StepMemory(self._model, self._optimizers.members)
        log = CollectiveLog(self._shape.layout)
        passes = min(self._shape.forward_passes, _MAX_PASSES)
        number = 0

        def begin_pass(*_: Any) -> None:
            nonlocal number
            number += 1
            memory.settle_gradients()
            in_the_middle = passes == _MAX_PASSES and number == 2
            log.repeat = self._shape.forward_passes - 2 if in_the_middle else 1

        def begin_optimizer() -> None:
            memory.settle_gradients()
            memory.phase = log.phase = "optimizer"

        hook = self._model.register_forward_pre_hook(begin_pass, prepend=True)
        with log, memory:
            self._run(passes, begin_optimizer)
        hook.remove()
        return SimulatedStep(
            {phase: memory.peak(phase) for phase in ("forward_backward", "optimizer")},
            log.collectives,
        )

    def _run(self, passes: int, begin_optimizer: Any = lambda: None) -> None:
        shape, config = self._shape, self._config
        batches = [
            zeros_like_batch(
                shape.micro_batch_size,
                shape.seq_len,
                intra_document_mask=config.data.intra_document_mask,
            )
            for _ in range(passes)
        ]
        with loss_parallel_context(shape.layout):
            for number, inputs in enumerate(batches, start=1):
                prepare_pass(
                    self._model,
                    is_last=number == passes,
                    sync_each_batch=config.parallel.sync_each_batch,
                )
                is_low = shape.dtype != torch.float32
                with torch.autocast("cpu", dtype=shape.dtype, enabled=is_low):
                    loss = cross_entropy_loss(self._model, inputs, 1)
                loss.backward()
        begin_optimizer()
        square = square_grad_norm(self._model.parameters()).item()
        clip_grad_norm(self._model.parameters(), square**0.5, config.optim.max_grad_norm)
        self._optimizers.step()
        self._optimizers.zero_grad()
