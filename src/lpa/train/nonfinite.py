"""Which samples made a loss that is no finite number."""

import math
from collections.abc import Sequence

from lpa.train.distributed import World, gather_objects
from lpa.train.inputs import MicroBatch


def bad_samples(
    batches: Sequence[MicroBatch], losses: Sequence[float], world: World, step_samples: range
) -> str:
    """Where loss or gradient stopped being finite, in words; all processes ask together.

    Args:
        batches, losses: the micro-batches of this process and their losses.
        step_samples: those of the whole step, named where only the gradient, which is a sum over all of
            them, is at fault.
    """
    own = [
        f"the loss of samples {', '.join(map(str, batch.samples))} on rank {world.rank} is {loss}"
        for batch, loss in zip(batches, losses, strict=True)
        if not math.isfinite(loss)
    ]
    found = [line for of_rank in gather_objects(own) for line in of_rank]
    if found:
        return "; ".join(found)
    return f"the gradient of samples {step_samples[0]} to {step_samples[-1]} is not finite"
