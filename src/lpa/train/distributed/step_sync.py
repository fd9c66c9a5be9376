"""What all processes must know of a step before any of them changes a weight."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lpa.device import send_to_device
from lpa.train.distributed.process_group import all_reduce_tensor
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
        next_targets: tokens that count in the loss of the next step, in all processes.
    """

    loss: float
    distill_loss: float
    grad_norm: float
    is_finite: bool
    checkpoint_failed: bool
    next_targets: int


def sync_step(
    loss: Tensor,
    square_grad_norm: Tensor,
    *,
    distill_loss: Tensor | None,
    is_counted: bool,
    checkpoint_failed: bool,
    next_targets: int,
    stop_requests: StopRequests,
) -> StepStats:
    """Exchange what each process saw and was asked, in one all-reduce on the device.

    Its result is the only thing in a step that the host waits for the device for. By then the next step's
    samples are read and on their way.

    Args:
        loss, distill_loss: (), this process's part of the means, on the device.
        square_grad_norm: (), its part of the square of the gradient's norm.
        is_counted: whether no other process has the same samples.
        next_targets: tokens that count in the next step's loss, of this process.
        stop_requests: take in what signals have reached any process.
    """
    nothing = torch.zeros_like(loss)
    measured = torch.stack(
        [
            value.double()
            for value in (
                loss if is_counted else nothing,
                nothing if distill_loss is None or not is_counted else distill_loss,
                square_grad_norm,
                ~(loss.isfinite() & square_grad_norm.isfinite()),
            )
        ]
    )
    known = [
        float(checkpoint_failed),
        float(next_targets if is_counted else 0),
        *stop_requests.to_list(),
    ]
    sent = send_to_device({"known": torch.tensor(known, dtype=torch.float64)}, loss.device)
    total, distilled, square, bad, failed, targets, *asked = all_reduce_tensor(
        torch.cat([measured, sent["known"]])
    ).tolist()
    stop_requests.merge(asked)
    return StepStats(
        loss=total,
        distill_loss=distilled,
        grad_norm=math.sqrt(square),
        is_finite=not bad,
        checkpoint_failed=bool(failed),
        next_targets=int(targets),
    )
