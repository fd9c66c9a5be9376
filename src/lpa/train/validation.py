"""The loss of a model on held-out tokens, and what follows from it."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpa.data.dataset import IGNORE_INDEX, TokenSplit, document_position_ids, eval_batches
from lpa.data.manifest import Split
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.scoring.perplexity import Perplexity
from lpa.train.distributed.process_group import all_reduce_sum


@torch.no_grad()
def total_nll(
    model: nn.Module,
    tokens: np.ndarray | TokenSplit,
    *,
    seq_len: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    rank: int = 0,
    world_size: int = 1,
    eos_token_id: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """The negative log-likelihood in nats of all tokens but the first, added up in float64.

    Args:
        tokens: (n,), n ≥ 2, cut into windows of `seq_len` (see `eval_batches`).
        rank, world_size: score every `world_size`-th batch, from the `rank`-th; the caller adds up.
            Each rank makes as many forward passes as the others.
        eos_token_id: what ends a document, where documents in one window may not attend to each other.
        should_stop: asked before each batch whether to give up.

    Returns:
        The total, or None where `should_stop` said so.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=device)
    try:
        for input_ids, labels in _batches_of_rank(
            eval_batches(tokens, seq_len=seq_len, batch_size=batch_size), rank, world_size
        ):
            if should_stop():
                return None
            inputs = {"input_ids": input_ids}
            if eos_token_id is not None:
                rows = [document_position_ids(row, eos_token_id) for row in input_ids]
                inputs["position_ids"] = torch.stack(rows)
            inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                loss = _batch_nll(model, inputs, labels.to(device))
            total += loss.double()
    finally:
        model.train(was_training)
    return total.item()  # the only read: the device is never waited for between batches


def validate(
    model: nn.Module,
    tokens: np.ndarray | TokenSplit,
    split: Split,
    *,
    seq_len: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    rank_and_size: tuple[int, int],
    is_counted: bool,
    eos_token_id: int | None,
    should_stop: Callable[[], bool],
) -> Perplexity | None:
    """Perplexity on the tokens of a split, or on its first ones, by all processes of a run together.

    Args:
        rank_and_size: which of the processes that score different batches this is, and how many there are.
        is_counted: whether what this process scores is not scored by another as well.
        should_stop, and the rest: as of `total_nll`.
    """
    rank, world_size = rank_and_size
    local_total = total_nll(
        model,
        tokens,
        seq_len=seq_len,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        rank=rank,
        world_size=world_size,
        eos_token_id=eos_token_id,
        should_stop=should_stop,
    )
    if local_total is None:
        return None
    (total,) = all_reduce_sum([local_total if is_counted else 0.0])
    is_whole_split = len(tokens) == split.tokens  # of a part the amount of text is not known
    return Perplexity.from_total_nll(
        total,
        tokens=len(tokens) - 1,
        words=split.words if is_whole_split else 0,
        bytes=split.bytes if is_whole_split else 0,
    )


def _batches_of_rank(
    batches: Iterator[tuple[Tensor, Tensor]], rank: int, world_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every `world_size`-th batch; where the others have one more, one without targets."""
    while rounds := list(itertools.islice(batches, world_size)):
        input_ids, labels = rounds[min(rank, len(rounds) - 1)]
        yield input_ids, labels if rank < len(rounds) else torch.full_like(labels, IGNORE_INDEX)


def _batch_nll(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    if isinstance(model, LPAForCausalLM):
        return model(
            **inputs,
            shift_labels=labels,
            num_items_in_batch=1,  # so the loss is a sum
            return_logits=False,
            use_cache=False,
        ).loss
    # Any other causal model of transformers; in how to ask for a sum they differ.
    logits = model(**inputs, use_cache=False).logits
    return F.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
