"""What a causal model loses on windows of tokens: one by one, or added up in float64."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpa.data.dataset import IGNORE_INDEX
from lpa.device import send_to_device
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.scoring.windows import Window, collate_windows


@torch.no_grad()
def token_losses(
    model: Any, batch: Sequence[Window], *, eos_token_id: int | None
) -> list[np.ndarray]:
    """The negative log-likelihoods in nats of the scored targets of each window, in float64.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        eos_token_id: what ends a document; a model that was trained with documents kept apart
            (`intra_document_mask` of its configuration) reads them so.
    """
    keeps_apart = getattr(model.config, "intra_document_mask", False)
    if keeps_apart and len(batch) > 1 and "flash" in (model.config._attn_implementation or ""):
        # transformers then finds where documents begin in a batch of one alone.
        found = [token_losses(model, [window], eos_token_id=eos_token_id) for window in batch]
        return [row for rows in found for row in rows]
    collated = collate_windows(batch, eos_token_id=eos_token_id if keeps_apart else None)
    tensors = {name: tensor.to(model.device) for name, tensor in collated.items()}
    labels = tensors.pop("shift_labels")
    losses = _cross_entropy(model(**tensors, use_cache=False).logits, labels, reduction="none")
    rows = losses.view(len(batch), -1).double().cpu().numpy()
    return [
        row[len(ids) - 1 - num_scored : len(ids) - 1]
        for row, (ids, num_scored, _) in zip(rows, batch, strict=True)
    ]


@torch.no_grad()
def batch_nlls(
    model: nn.Module,
    batches: Iterable[dict[str, Tensor]],
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    should_stop: Callable[[], bool] = lambda: False,
) -> Tensor | None:
    """The negative log-likelihood in nats of the scored targets of each batch, in float64.

    Logits of a whole batch are never held where the model is an `LPAForCausalLM`. The host does not wait for
    the device: whoever reads the sums does.

    Args:
        model: a causal language model of transformers.
        batches: as `collate_windows` makes them.
        dtype: of products, under autocast.
        should_stop: asked before each batch whether to give up.

    Returns:
        The sums, (batches,), on the device; or None where `should_stop` said so.
    """
    was_training = model.training
    model.eval()
    sums: list[Tensor] = []
    try:
        for batch in batches:
            if should_stop():
                return None
            tensors = send_to_device(batch, device)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                loss = _batch_nll(model, **tensors)
            sums.append(loss.double())
    finally:
        model.train(was_training)
    return torch.stack(sums)


def _batch_nll(model: nn.Module, *, shift_labels: Tensor, **inputs: Tensor) -> Tensor:
    if isinstance(model, LPAForCausalLM):
        return model(
            **inputs,
            shift_labels=shift_labels,
            num_items_in_batch=1,  # so the loss is a sum
            return_logits=False,
            use_cache=False,
        ).loss
    # Any other causal model of transformers; in how to ask for a sum they differ.
    return _cross_entropy(model(**inputs, use_cache=False).logits, shift_labels, reduction="sum")


def _cross_entropy(logits: Tensor, labels: Tensor, *, reduction: str) -> Tensor:
    return F.cross_entropy(
        logits.flatten(0, 1).float(),
        labels.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction=reduction,
    )
