"""Which samples made a loss that is no finite number."""

import math
from collections.abc import Sequence

from lpa.train.batches import MicroBatch
from lpa.train.distributed.process_group import World, all_gather_objects


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
