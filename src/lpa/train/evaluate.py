"""The loss of a model on held-out tokens, and what follows from it."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpa.data.dataset import IGNORE, eval_windows
from lpa.data.manifest import Split
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.train.distributed import sum_over_ranks
from lpa.train.perplexity import Perplexity


@torch.no_grad()
def total_loss(
    model: nn.Module,
    tokens: np.ndarray,
    *,
    context: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    rank: int = 0,
    world_size: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """The negative log-likelihood in nats of all tokens but the first, added up in float64.

    Args:
        tokens: (n,), n ≥ 2, cut into windows of `context` (see `eval_windows`).
        rank, world_size: score every `world_size`-th batch, from the `rank`-th; the caller adds up.
            Each rank makes as many forward passes as the others.
        stop: asked before each batch whether to give up.

    Returns:
        The total, or None where `stop` said so.
    """
    was_training = model.training
    model.eval()
    total = 0.0
    try:
        for input_ids, labels in _own_batches(
            eval_windows(tokens, context=context, batch_size=batch_size), rank, world_size
        ):
            if stop():
                return None
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                loss = _summed_loss(model, input_ids.to(device), labels.to(device))
            total += loss.double().item()
    finally:
        model.train(was_training)
    return total


def validate(
    model: nn.Module,
    tokens: np.ndarray,
    split: Split,
    *,
    context: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    share: tuple[int, int],
    counts: bool,
    stop: Callable[[], bool],
) -> Perplexity | None:
    """Perplexity on the tokens of a split, or on its first ones, by all processes of a run together.

    Args:
        share: which of the processes that score different batches this is, and how many there are.
        counts: whether what this process scores is not scored by another as well.
        stop, and the rest: as of `total_loss`.
    """
    rank, world_size = share
    own = total_loss(
        model,
        tokens,
        context=context,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        rank=rank,
        world_size=world_size,
        stop=stop,
    )
    if own is None:
        return None
    (total,) = sum_over_ranks([own if counts else 0.0])
    whole = len(tokens) == split.tokens  # of a part the amount of text is not known
    return Perplexity.from_total(
        total,
        tokens=len(tokens) - 1,
        words=split.words if whole else 0,
        bytes=split.bytes if whole else 0,
    )


def _own_batches(
    batches: Iterator[tuple[Tensor, Tensor]], rank: int, world_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every `world_size`-th batch; where the others have one more, one without targets."""
    while rounds := list(itertools.islice(batches, world_size)):
        input_ids, labels = rounds[min(rank, len(rounds) - 1)]
        yield input_ids, labels if rank < len(rounds) else torch.full_like(labels, IGNORE)


def _summed_loss(model: nn.Module, input_ids: Tensor, labels: Tensor) -> Tensor:
    if isinstance(model, LPAForCausalLM):
        return model(
            input_ids=input_ids,
            shift_labels=labels,
            num_items_in_batch=1,  # so the loss is a sum
            return_logits=False,
            use_cache=False,
        ).loss
    # Any other causal model of transformers; in how to ask for a sum they differ.
    logits = model(input_ids=input_ids, use_cache=False).logits
    return F.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )
