"""What all processes must know of a step before any of them changes a weight."""

import math
from dataclasses import dataclass

from lpa.train.distributed import World, sum_over_ranks
from lpa.train.signals import StopRequests


@dataclass(frozen=True)
class StepOutcome:
    """A step after its backward pass, the same bits in every process.

    Attributes:
        loss: mean over the step's tokens.
        distill_loss: the same of the divergence from the teacher; 0 without one.
        norm: of the gradient, before clipping.
        finite: whether loss and gradient are finite numbers in every process.
        save_failed: whether a checkpoint that is written meanwhile cannot be.
    """

    loss: float
    distill_loss: float
    norm: float
    finite: bool
    save_failed: bool


def agree_on_step(
    loss: float,
    norm: float,
    *,
    distill_loss: float,
    world: World,
    counts: bool,
    save_failed: bool,
    requests: StopRequests,
) -> StepOutcome:
    """Exchange what each process saw and was asked: the one exchange of a step beside tokens and gradients.

    Args:
        loss, distill_loss: this process's part of the means.
        norm: of the whole gradient, as this process computed it.
        counts: whether no other process has the same part of the loss.
        requests: take in what signals have reached any process.
    """
    finite = math.isfinite(loss) and math.isfinite(norm)
    total, distilled, bad, shared_norm, failed, *asked = sum_over_ranks(
        [
            loss if finite and counts else 0.0,
            distill_loss if finite and counts else 0.0,
            float(not finite),
            # One process's for all: sums over shards may round differently elsewhere.
            norm if finite and world.is_main else 0.0,
            float(save_failed),
            *requests.counts(),
        ]
    )
    requests.agree(asked)
    return StepOutcome(total, distilled, shared_norm, finite=not bad, save_failed=bool(failed))
