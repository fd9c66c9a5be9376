"""What each attention head looks at: how widely, and how far back."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpa.callbacks import StepCallback
from lpa.errors import UserError


@dataclass
class HeadStats:
    """One head, averaged over positions with something before them to look at.

    Attributes:
        layer, head: numbers.
        entropy: of the attention distribution, in nats.
        relative_entropy: entropy over its most, ln of how many positions can be seen; from 0 (one
            token) to 1 (all alike).
        distance: how many tokens back attention is, on average.
    """

    layer: int
    head: int
    entropy: float
    relative_entropy: float
    distance: float


@torch.no_grad()
def head_stats(
    model: Any,
    tokens: np.ndarray,
    *,
    seq_len: int,
    on_progress: StepCallback = lambda done, total: None,
) -> list[HeadStats]:
    """Statistics of every head on a text, in whole windows of the context, one at a time.

    Args:
        model: a causal language model whose attention was loaded as `eager`, which shows its weights.
        tokens: (n,); the last, incomplete window is left out unless it is the only one.
        on_progress: called with windows done and windows in all.

    Raises:
        UserError: the model does not show its attention.
    """
    length = min(seq_len, len(tokens))
    starts = range(0, len(tokens) - length + 1, length)
    total: Tensor | None = None
    for done, start in enumerate(starts, 1):
        ids = torch.from_numpy(tokens[start : start + length].astype(np.int64))[None]
        maps = model(ids.to(model.device), output_attentions=True, use_cache=False).attentions
        if not maps or maps[0] is None:
            raise UserError(f"{type(model).__name__}: does not show its attention weights")
        sums = torch.stack([_sums(weights[0].double()) for weights in maps])
        total = sums if total is None else total + sums
        on_progress(done, len(starts))
    assert total is not None, "there is at least one window"
    means = total / len(starts)
    return [
        HeadStats(layer, head, *(float(value) for value in means[layer, head]))
        for layer in range(means.shape[0])
        for head in range(means.shape[1])
    ]


def _sums(weights: Tensor) -> Tensor:
    """(heads, query, key) -> (heads, 3): entropy, relative entropy and distance, means over queries."""
    length = weights.shape[-1]
    positions = torch.arange(length, dtype=weights.dtype, device=weights.device)
    entropy = torch.special.entr(weights).sum(-1)[:, 1:]  # the first query sees itself alone
    max_entropy = (positions[1:] + 1).log()
    tokens_back = (positions[:, None] - positions).clamp(min=0)
    distance = (weights * tokens_back).sum(-1)[:, 1:]
    return torch.stack(
        [entropy.mean(-1), (entropy / max_entropy).mean(-1), distance.mean(-1)], dim=-1
    )
