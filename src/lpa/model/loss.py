"""The cross entropy of the LM head, without the logits of all tokens at once."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def head_loss(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    items: Tensor | int,
) -> Tensor:
    """Cross entropy of the targets under softmax(x Wᵀ + b), summed and divided by `items`.

    Shapes: hidden_states (tokens, width), weight (vocabulary, width), bias (vocabulary,), targets (tokens,)
    with -100 where there is none to score -> a scalar.
    """
    if _by_hand(hidden_states, weight):
        return _HeadLoss.apply(hidden_states, weight, bias, targets, items)
    total = F.linear_cross_entropy(
        hidden_states,
        weight,
        targets,
        linear_bias=bias,
        reduction="sum",
        options=_options(hidden_states, weight),
    )
    return total / items


def _by_hand(hidden_states: Tensor, weight: Tensor) -> bool:
    """Whether the function here takes the place of torch's: in eager float32 training on a CPU."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and hidden_states.device.type == "cpu"
        and hidden_states.dtype == weight.dtype == torch.float32
        and type(weight) in (Tensor, nn.Parameter)
    )


def _options(hidden_states: Tensor, weight: Tensor) -> "nn.LinearCrossEntropyOptions | None":
    """Chunk torch's loss where its documentation says that it is a win: more logits than hidden states."""
    tokens, width = hidden_states.shape
    wins = torch.is_grad_enabled() and tokens >= width and weight.shape[0] > width
    return nn.LinearCrossEntropyOptions() if wins else None


class _HeadLoss(torch.autograd.Function):
    """Loss and gradients in one walk over chunks of tokens, whose logits share one buffer.

    The gradient of the logits is softmax(z) - onehot(target), known as soon as the logits are, so the
    backward pass has nothing left to compute. `torch.nn.functional.linear_cross_entropy` does the same, but
    fills two matrices of the head's size with nought on the way, and its products over as few tokens as
    its chunks have run below the machine's peak (`benchmarks/loss.py`).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        items: Tensor | int,
    ) -> Tensor:
        rows = _chunk_rows(weight.shape[0])
        buffer = weight.new_empty(min(rows, len(targets)), weight.shape[0])
        of_hidden, of_weight, of_bias = (
            torch.empty_like(tensor) if needed and tensor is not None else None
            for tensor, needed in zip(
                (hidden_states, weight, bias), ctx.needs_input_grad, strict=False
            )
        )
        loss = hidden_states.new_zeros(())
        for start in range(0, len(targets), rows):
            chunk = slice(start, start + rows)
            states, scored = hidden_states[chunk], targets[chunk] != -100
            logits = torch.mm(states, weight.T, out=buffer[: len(states)])
            if bias is not None:
                logits += bias
            loss += _losses(logits, targets[chunk], scored, items)
            # What the buffer holds now is the gradient of the logits.
            if of_hidden is not None:
                torch.mm(logits, weight, out=of_hidden[chunk])
            if of_weight is not None:
                torch.addmm(of_weight, logits.T, states, beta=int(start > 0), out=of_weight)
            if of_bias is not None:
                torch.addmv(
                    of_bias,
                    logits.T,
                    logits.new_ones(len(states)),
                    beta=int(start > 0),
                    out=of_bias,
                )
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # Mostly one, and then a pass over the head's gradient is saved.
        scaled = (
            kept if kept is None or gradient == 1 else kept * gradient for kept in ctx.saved_tensors
        )
        return *scaled, None, None


def _losses(logits: Tensor, targets: Tensor, scored: Tensor, items: Tensor | int) -> Tensor:
    """The summed loss over `items`; turns the logits into their gradient, in place."""
    targets = targets.clamp(min=0).unsqueeze(1)
    largest = logits.amax(1, keepdim=True)
    of_target = logits.gather(1, targets)
    total = logits.sub_(largest).exp_().sum(1, keepdim=True)
    share = (scored / items).unsqueeze(1)
    logits.mul_(share / total).scatter_add_(1, targets, -share)
    losses = total.log() + largest - of_target
    return (losses * share).sum()


def _chunk_rows(vocabulary: int) -> int:
    """Tokens per chunk: enough that the products run at the machine's peak, in 64 MiB where that does."""
    return min(512, max(128, 2**24 // vocabulary))
