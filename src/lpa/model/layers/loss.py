"""The cross entropy of the LM head, without the logits of all tokens at once."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def lm_head_loss(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    num_items: Tensor | int,
) -> Tensor:
    """Cross entropy of the targets under softmax(x Wᵀ + b), summed and divided by `num_items`.

    Shapes: hidden_states (tokens, width), weight (vocabulary, width), bias (vocabulary,), targets (tokens,)
    with -100 where there is none to score -> a scalar.

    It can be differentiated twice, and by torch.func.grad, at the cost of the logits of all tokens.
    """
    options = _options(hidden_states, weight)
    if options is not None and not torch.compiler.is_compiling():
        loss: Tensor = _ChunkedLoss.apply(hidden_states, weight, bias, targets, num_items, options)[
            0
        ]
        return loss
    return _torch_loss(hidden_states, weight, bias, targets, options) / num_items


def _options(hidden_states: Tensor, weight: Tensor) -> "nn.LinearCrossEntropyOptions | None":
    """Chunk torch's loss where its documentation says that it is a win: more logits than hidden states."""
    tokens, width = hidden_states.shape
    wins = torch.is_grad_enabled() and tokens >= width and weight.shape[0] > width
    if not wins:
        return None
    if hidden_states.device.type == "cpu" and weight.dtype == torch.float32:
        # Smaller chunks run below a CPU's peak (`benchmarks/loss.py`).
        return nn.LinearCrossEntropyOptions(batch_chunk_size=512, chunking_method=None)
    return nn.LinearCrossEntropyOptions()


def _torch_loss(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: Any
) -> Tensor:
    return F.linear_cross_entropy(
        hidden_states, weight, targets, linear_bias=bias, reduction="sum", options=options
    )


class _ChunkedLoss(torch.autograd.Function):
    """torch's chunked loss, whose gradients are known with it, but which cannot be differentiated twice.

    Of gradients of gradients torch's leaves this loss out without a word, and torch.func.grad refuses it.
    """

    @staticmethod
    def forward(
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        num_items: Tensor | int,
        options: nn.LinearCrossEntropyOptions,
    ) -> tuple[Any, ...]:
        inputs: list[Any] = [hidden_states, weight, bias]
        wanted = [i for i, x in enumerate(inputs) if x is not None and x.requires_grad]
        with torch.enable_grad():
            for i in wanted:
                inputs[i] = inputs[i].detach().requires_grad_()
            states, head, offset = inputs
            total = _torch_loss(states, head, offset, targets, options) / num_items
        # Within torch.func nothing shows here that it is wanted; the backward pass computes it then.
        found: list[Tensor | None] = [None] * len(inputs)
        if wanted:
            for i, gradient in zip(
                wanted, torch.autograd.grad(total, [inputs[i] for i in wanted]), strict=True
            ):
                found[i] = gradient
        return total.detach(), *found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        hidden_states, weight, bias, targets, num_items, _ = inputs
        gradients = output[1:]
        ctx.mark_non_differentiable(*(x for x in gradients if x is not None))
        ctx.set_materialize_grads(False)
        num_items = torch.as_tensor(num_items, device=targets.device)
        ctx.save_for_backward(hidden_states, weight, bias, targets, num_items, *gradients)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        inputs, known = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        if torch.is_grad_enabled():  # these gradients are to be differentiated
            needed = ctx.needs_input_grad
            known = [x if needed[i] else None for i, x in enumerate(_gradients(*inputs))]
        # Mostly one, and then a pass over the head's gradient is saved.
        elif gradient == 1:
            return *known, None, None, None
        return *(None if x is None else x * gradient for x in known), None, None, None


def _gradients(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, num_items: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss's gradients, of hidden states, weight and bias, by steps that can be differentiated."""
    logits = F.linear(hidden_states, weight, bias)
    scored = (targets != -100).unsqueeze(1)
    hits = F.one_hot(targets.clamp(min=0), weight.shape[0])
    of_logits = (logits.softmax(-1) - hits) * scored / num_items
    return of_logits @ weight, of_logits.T @ hidden_states, of_logits.sum(0)
