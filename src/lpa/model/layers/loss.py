"""The cross entropy of the LM head, without the logits of all tokens at once."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lpa.model.layers.ops import is_transformed

_IGNORED = -100  # as in torch: no target
# Rows of logits at a time. Smaller chunks run below a CPU's peak (`benchmarks/model/loss.py`); on a GPU a
# chunk takes the memory of all hidden states.
_CPU_ROWS = 512


def lm_head_loss(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    num_items: Tensor | int,
) -> Tensor:
    """Cross entropy of the targets under softmax(x Wᵀ + b), summed and divided by `num_items`.

    Shapes: hidden_states (tokens, width), weight (vocabulary, width), bias (vocabulary,), targets (tokens,)
    with -100 where there is none to score -> a scalar, float32 at least; 0 where nothing is scored.

    Under autocast the three products, of logits and of both gradients, are of its dtype. Softmax, loss and
    the sum of the weight's gradient over chunks are float32.

    torch's `linear_cross_entropy` does the same, but rounds the loss to the dtype of the products, takes a
    target of -1 for token 0, and cannot be differentiated twice. This can, and has every transform of
    torch.func, at the cost of the logits of all tokens. So it has products of float16, whose gradients
    would be rounded here before a loss scale makes them large enough.

    Raises:
        RuntimeError: a target is neither a token of the vocabulary nor -100; on a GPU with the next read.
    """
    num_items = as_divisor(num_items, targets.device)
    device = hidden_states.device.type
    dtype = hidden_states.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if is_transformed() or (dtype == torch.float16 and torch.is_grad_enabled()):
        logits = F.linear(hidden_states, weight, bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets, reduction="sum") / num_items
    is_token = (targets >= 0) & (targets < weight.shape[0])
    torch._assert_async(
        (is_token | (targets == _IGNORED)).all(),
        f"labels: expected tokens 0 to {weight.shape[0] - 1}, or -100 for none",
    )
    with torch.autocast(device, enabled=False):
        loss: Tensor
        if torch.is_grad_enabled():
            loss = _ChunkedLoss.apply(hidden_states, weight, bias, targets, num_items, dtype)[0]
        else:
            loss = _loss_and_gradients(hidden_states, weight, bias, targets, num_items, dtype, ())[
                0
            ]
    return loss


def as_divisor(num_items: Tensor | int, device: torch.device) -> Tensor:
    """A number of items on a device, at least 1.

    A host's number is written there by the device itself: a copy is something that the host would wait for.
    """
    if isinstance(num_items, Tensor):
        return num_items.to(device).clamp(min=1)
    return torch.full((), max(num_items, 1), device=device)


def _chunks(tokens: int, weight: Tensor) -> Iterator[slice]:
    """Rows whose logits are held together."""
    vocabulary, width = weight.shape
    rows = (
        _CPU_ROWS if weight.device.type == "cpu" else max(_CPU_ROWS, tokens * width // vocabulary)
    )
    for start in range(0, tokens, rows):
        yield slice(start, start + rows)


def _loss_and_gradients(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    num_items: Tensor,
    dtype: torch.dtype,
    wanted: Sequence[int],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The loss, and of inputs 0, 1 and 2 the gradients that are wanted.

    The gradient of a row's logits is softmax(logits) less 1 at the target, divided by `num_items`.
    """
    inputs, matrix = hidden_states.to(dtype), weight.to(dtype)
    exact = torch.promote_types(dtype, torch.float32)
    scored = targets != _IGNORED
    tokens = targets.masked_fill(~scored, 0).unsqueeze(1)
    total = torch.zeros((), dtype=exact, device=targets.device)
    of_hidden = torch.empty_like(hidden_states) if 0 in wanted else None
    # Of the first chunk it becomes that chunk's product.
    of_weight = weight.new_zeros((), dtype=exact).expand_as(weight) if 1 in wanted else None
    of_bias = torch.zeros_like(bias, dtype=exact) if bias is not None and 2 in wanted else None
    for rows in _chunks(len(targets), weight):
        logits = (inputs[rows] @ matrix.T).to(exact)
        if bias is not None:
            logits = logits + bias
        normalizer = logits.logsumexp(-1, keepdim=True)
        nll = (normalizer - logits.gather(1, tokens[rows])).squeeze(1)
        total = total + nll.masked_fill(~scored[rows], 0).sum()
        if not wanted:
            continue
        fraction = (scored[rows] / num_items).to(exact).unsqueeze(1)
        of_logits = (
            logits.sub_(normalizer).exp_().mul_(fraction).scatter_add_(1, tokens[rows], -fraction)
        )
        if of_bias is not None:
            of_bias += of_logits.sum(0)
        of_logits = of_logits.to(dtype)
        if of_hidden is not None:
            of_hidden[rows] = of_logits @ matrix
        if of_weight is not None:
            product = (of_logits.T @ inputs[rows]).to(exact)
            of_weight = product if rows.start == 0 else of_weight.add_(product)
    if of_weight is not None:
        of_weight = of_weight.to(weight.dtype)
    if of_bias is not None and bias is not None:
        of_bias = of_bias.to(bias.dtype)
    return total / num_items, of_hidden, of_weight, of_bias


class _ChunkedLoss(torch.autograd.Function):
    """The loss with its gradients, which are known with it, so that no chunk is computed twice."""

    @staticmethod
    def forward(
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        num_items: Tensor,
        dtype: torch.dtype,
    ) -> tuple[Any, ...]:
        inputs = (hidden_states, weight, bias)
        wanted = [i for i, x in enumerate(inputs) if x is not None and x.requires_grad]
        return _loss_and_gradients(*inputs, targets, num_items, dtype, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        hidden_states, weight, bias, targets, num_items, _ = inputs
        gradients = output[1:]
        ctx.mark_non_differentiable(*(x for x in gradients if x is not None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden_states, weight, bias, targets, num_items, *gradients)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        inputs, known = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        if torch.is_grad_enabled():  # these gradients are to be differentiated
            needed = ctx.needs_input_grad
            known = [x if needed[i] else None for i, x in enumerate(_gradients(*inputs))]
        return *(None if x is None else x * gradient for x in known), None, None, None


def _gradients(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, num_items: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss's gradients, of hidden states, weight and bias, by steps that can be differentiated."""
    logits = F.linear(hidden_states, weight, bias)
    scored = (targets != _IGNORED).unsqueeze(1)
    hits = F.one_hot(targets.clamp(min=0), weight.shape[0])
    of_logits = (logits.softmax(-1) - hits) * scored / num_items
    return of_logits @ weight, of_logits.T @ hidden_states, of_logits.sum(0)
