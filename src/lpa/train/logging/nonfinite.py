"""What becomes of a step whose loss or gradient is no finite number, and which samples made it."""

import math
import warnings
from collections.abc import Sequence

from lpa.errors import DIVERGED, LPAWarning, UserError
from lpa.train.batches import MicroBatch
from lpa.train.config import OptimConfig, TrainConfig
from lpa.train.distributed.process_group import (
    OtherRankFailedError,
    World,
    all_gather_objects,
)
from lpa.train.state import TrainState


def skip_or_refuse(
    config: TrainConfig,
    optim: OptimConfig,
    state: TrainState,
    batches: Sequence[MicroBatch],
    losses: Sequence[float],
    world: World,
) -> None:
    """Count the step just done as skipped, if the run may skip steps; its gradients are gone already.

    All processes do so together.

    Args:
        batches, losses: the micro-batches of this process and their losses.

    Raises:
        UserError: unless such steps are skipped.
    """
    step, end = state.step, state.samples
    where = describe_nonfinite_samples(batches, losses, world, range(end - config.batch_size, end))
    if config.on_nonfinite == "skip":
        state.skipped += 1
        if world.is_main:
            warnings.warn(f"step {step} skipped: {where}", LPAWarning, stacklevel=2)
        return
    if not world.is_main:
        raise OtherRankFailedError
    raise UserError(
        f"{DIVERGED} {step}: {where}; the weights are as before this step, and earlier "
        f"checkpoints are kept; lower optim.lr (now {optim.lr}), lengthen "
        "optim.warmup_steps, or pass --train.on_nonfinite skip"
    )


def describe_nonfinite_samples(
    batches: Sequence[MicroBatch], losses: Sequence[float], world: World, step_samples: range
) -> str:
    """Where loss or gradient stopped being finite, in words; all processes ask together.

    Args:
        batches, losses: the micro-batches of this process and their losses.
        step_samples: those of the whole step, named where only the gradient, which is a sum over all of
            them, is at fault.
    """
    local_lines = [
        f"the loss of samples {', '.join(map(str, batch.sample_indices))} on rank {world.rank} is {loss}"
        for batch, loss in zip(batches, losses, strict=True)
        if not math.isfinite(loss)
    ]
    found = [line for of_rank in all_gather_objects(local_lines) for line in of_rank]
    if found:
        return "; ".join(found)
    return f"the gradient of samples {step_samples[0]} to {step_samples[-1]} is not finite"
