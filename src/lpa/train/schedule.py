"""Learning-rate schedules as functions of the step."""

import math

from lpa.train.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of a step.

    Linear warm-up to the peak, then either half a cosine down to `min_lr_ratio` of it (Loshchilov &
    Hutter 2017, eq. 5), or the peak until the last `decay_fraction` of all steps and a straight line
    down to the same end (warm-up, stable, decay: Hu et al. 2024, section 4).

    Args:
        step: counted from 1.
        steps: of the whole run, whose last step has the lowest rate after the warm-up.
    """
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    lowest = config.min_lr_ratio
    if config.schedule == "cosine":
        # At least one step, for a run that ends within its warm-up.
        progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        share = lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    else:
        decay_steps = max(1, round(config.decay_fraction * steps))
        progress = max(0, step - (steps - decay_steps)) / decay_steps
        share = 1 - (1 - lowest) * min(1.0, progress)
    return config.lr * share
