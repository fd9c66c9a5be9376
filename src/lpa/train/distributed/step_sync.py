"""What all processes must know of a step before any of them changes a weight."""

import math
from dataclasses import dataclass

from lpa.train.distributed.process_group import World, all_reduce_sum
from lpa.train.distributed.stop_signals import StopRequests


@dataclass(frozen=True)
class StepStats:
    """A step after its backward pass, the same bits in every process.

    Attributes:
        loss: mean over the step's tokens.
        distill_loss: the same of the divergence from the teacher; 0 without one.
        grad_norm: of the gradient, before clipping.
        is_finite: whether loss and gradient are finite numbers in every process.
        checkpoint_failed: whether a checkpoint that is written meanwhile cannot be.
    """

    loss: float
    distill_loss: float
    grad_norm: float
    is_finite: bool
    checkpoint_failed: bool


def sync_step(
    loss: float,
    grad_norm: float,
    *,
    distill_loss: float,
    world: World,
    is_counted: bool,
    checkpoint_failed: bool,
    stop_requests: StopRequests,
) -> StepStats:
    """Exchange what each process saw and was asked: the one exchange of a step beside tokens and gradients.

    Args:
        loss, distill_loss: this process's part of the means.
        grad_norm: of the whole gradient, as this process computed it.
        is_counted: whether no other process has the same part of the loss.
        stop_requests: take in what signals have reached any process.
    """
    is_finite = math.isfinite(loss) and math.isfinite(grad_norm)
    total, distilled, bad, shared_grad_norm, failed, *asked = all_reduce_sum(
        [
            loss if is_finite and is_counted else 0.0,
            distill_loss if is_finite and is_counted else 0.0,
            float(not is_finite),
            # One process's for all: sums over shards may round differently elsewhere.
            grad_norm if is_finite and world.is_main else 0.0,
            float(checkpoint_failed),
            *stop_requests.to_list(),
        ]
    )
    stop_requests.merge(asked)
    return StepStats(
        total, distilled, shared_grad_norm, is_finite=not bad, checkpoint_failed=bool(failed)
    )
