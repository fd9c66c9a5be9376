"""The loss of a model on held-out tokens, and what follows from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpa.data.dataset import IGNORE, eval_windows
from lpa.model.modeling_lpa import LPAForCausalLM


@dataclass
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        tokens: tokens scored: all but the first.
        loss: mean negative log-likelihood per token, in nats.
        perplexity: exp(loss).
        word_perplexity: exp(total / words), words being runs without white space.
        bits_per_byte: total in bits / bytes of UTF-8. This and word_perplexity do not depend on
            the tokenizer; nan where the amount of text is unknown.
    """

    tokens: int
    loss: float
    perplexity: float
    word_perplexity: float
    bits_per_byte: float

    @classmethod
    def from_total(cls, total: float, *, tokens: int, words: int, bytes: int) -> "Perplexity":
        """From the total negative log-likelihood in nats."""
        return cls(
            tokens=tokens,
            loss=total / tokens,
            perplexity=_exp(total / tokens),
            word_perplexity=_exp(total / words) if words else math.nan,
            bits_per_byte=total / math.log(2) / bytes if bytes else math.nan,
        )


def _exp(value: float) -> float:
    """exp without an overflow error: the word perplexity of a bad model can exceed a float."""
    return math.exp(value) if value < 700 else math.inf


@torch.no_grad()
def total_loss(
    model: nn.Module,
    tokens: np.ndarray,
    *,
    context: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> float:
    """The negative log-likelihood in nats of all tokens but the first, added up in float64.

    Args:
        tokens: (n,), n ≥ 2, cut into windows of `context` (see `eval_windows`).
        report: called with tokens scored and tokens in all.
    """
    was_training = model.training
    model.eval()
    total, done = 0.0, 0
    for input_ids, labels in eval_windows(tokens, context=context, batch_size=batch_size):
        scored = int((labels != IGNORE).sum())
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            total += _summed_loss(model, input_ids.to(device), labels.to(device)).double().item()
        done += scored
        report(done, len(tokens) - 1)
    model.train(was_training)
    return total


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
