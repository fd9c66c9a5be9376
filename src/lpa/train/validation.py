"""The perplexity of the model of a run on held-out tokens, scored by all of its processes."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from lpa.data.dataset import IGNORE_INDEX, TokenSplit
from lpa.data.manifest import Split
from lpa.scoring.losses import batch_nlls
from lpa.scoring.perplexity import ValidationPerplexity
from lpa.scoring.windows import batch_windows, collate_windows, sequence_windows
from lpa.train.distributed.process_group import all_reduce_tensor


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
) -> ValidationPerplexity | None:
    """Perplexity on the tokens of a split, or on its first ones, by all processes of a run together.

    Args:
        tokens: (n,), n ≥ 2, of which all but the first are scored, in windows that do not overlap.
        seq_len, batch_size: tokens of a window, windows of a forward pass.
        rank_and_size: which of the processes that score different batches this is, and how many there are.
        is_counted: whether what this process scores is not scored by another as well.
        eos_token_id: what ends a document, where documents in one window may not attend to each other.
        should_stop: asked before each batch whether to give up.

    Returns:
        None where `should_stop` said so.
    """
    # Every window but the last is of the whole length, and so are its padded rows: compiled once.
    batches = (
        collate_windows(batch, length=seq_len, eos_token_id=eos_token_id)
        for batch in batch_windows(sequence_windows(tokens, seq_len=seq_len), batch_size)
    )
    counts: list[Tensor] = []
    nlls = batch_nlls(
        model,
        counted(batches_of_rank(batches, *rank_and_size), counts),
        device=device,
        dtype=dtype,
        should_stop=should_stop,
    )
    if nlls is None:
        return None
    local_sums = sums_of_parts(torch.stack(counts), nlls)
    if not is_counted:
        local_sums = torch.zeros_like(local_sums)
    sums = all_reduce_tensor(local_sums).tolist()  # what the host waits for, once
    is_whole_split = len(tokens) == split.tokens  # of a part the amount of text is not known
    return ValidationPerplexity.from_sums(
        sums,
        words=split.words if is_whole_split else 0,
        bytes=split.bytes if is_whole_split else 0,
    )


def counted(
    batches: Iterator[dict[str, Tensor]], counts: list[Tensor]
) -> Iterator[dict[str, Tensor]]:
    """The batches, of each of which the number of targets is noted."""
    for batch in batches:
        counts.append((batch["shift_labels"] != IGNORE_INDEX).sum())
        yield batch


def sums_of_parts(tokens: Tensor, nlls: Tensor) -> Tensor:
    """What `ValidationPerplexity.from_sums` takes, for parts of a text.

    Args:
        tokens, nlls: (parts,), scored tokens and their negative log-likelihood; the former on the CPU.

    Returns:
        (6,) on the device of `nlls`: parts, tokens, their squares, losses, their squares and the products.
    """
    tokens = tokens.to(nlls.device, torch.float64, non_blocking=True)
    columns = [(tokens > 0).double(), tokens, tokens**2, nlls, nlls**2, tokens * nlls]
    return torch.stack([column.sum() for column in columns])


def batches_of_rank(
    batches: Iterator[dict[str, Tensor]], rank: int, world_size: int
) -> Iterator[dict[str, Tensor]]:
    """Every `world_size`-th batch; where the others have one more, one without targets.

    Each rank makes as many forward passes as the others.
    """
    while rounds := list(itertools.islice(batches, world_size)):
        batch = rounds[min(rank, len(rounds) - 1)]
        if rank >= len(rounds):
            batch |= {"shift_labels": torch.full_like(batch["shift_labels"], IGNORE_INDEX)}
        yield batch
