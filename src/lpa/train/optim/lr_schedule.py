"""Learning-rate schedules as functions of the step."""

import math

from lpa.train.config import OptimConfig

# Steps of ReLoRA after each merge (Lialin et al. 2023, section 3).
_RESTART_WARMUP_STEPS = 50


def lr_at_step(config: OptimConfig, step: int, steps: int, skipped: int = 0) -> float:
    """The learning rate of a step.

    Linear warmup to the peak, then half a cosine down to `min_lr_ratio` of it (Loshchilov & Hutter 2017,
    eq. 5), a straight line down to the same end, or the peak until the last `decay_fraction` of all
    steps and a straight line from there (`wsd`: warmup, stable, decay; Hu et al. 2024, section 4).
    It never jumps by more than a step of these lines: a decay that would begin within the warmup begins
    at its end. With ReLoRA the rate of everything that trains also rises from near zero after each merge, as
    in the code of its authors.

    Args:
        step: counted from 1.
        steps: of the whole run, whose last step has the lowest rate after the warmup.
        skipped: steps before this one without an update, which move ReLoRA's merges.
    """
    lr = _lr_without_restarts(config, step, steps)
    if config.restart_every is not None:
        period, within = divmod(step - 1 - skipped, config.restart_every)
        if period:
            lr *= min(1.0, (within + 1) / _RESTART_WARMUP_STEPS)
    return lr


def _lr_without_restarts(config: OptimConfig, step: int, steps: int) -> float:
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    begin = config.warmup_steps
    if config.schedule == "wsd":
        begin = max(begin, steps - max(1, round(config.decay_fraction * steps)))
    # At least one step, for a run that ends within its warmup.
    progress = max(0, step - begin) / max(1, steps - begin)
    cosine = config.schedule == "cosine"
    left = 0.5 * (1 + math.cos(math.pi * progress)) if cosine else 1 - progress
    lowest = config.min_lr_ratio
    return config.lr * (lowest + (1 - lowest) * left)
