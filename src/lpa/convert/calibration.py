"""Second moments of what the projections of a model read, from text, one layer at a time."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpa.data.document_limits import document_bos_token
from lpa.data.sources.documents import read_documents
from lpa.data.sources.source import Source
from lpa.data.text_encoder import TextEncoder
from lpa.errors import UserError
from lpa.model.surgery.projections import find_decoder_layers

_BATCH_SIZE = (
    4  # windows at once; a layer's activations of them are all that is held beside the streams
)


def calibration_windows(text: str | Path, tokenizer: Any, *, tokens: int, seq_len: int) -> Tensor:
    """Windows of text as a model reads it, each full.

    Args:
        text: what `lpa prepare` takes.
        tokens: how many to read at most.
        seq_len: tokens per window.

    Shapes: -> (windows, context).

    Raises:
        UserError: nothing to read, or less than one window.
    """
    ids: list[int] = []
    encoder = TextEncoder.of(tokenizer)
    limits = (document_bos_token(tokenizer), tokenizer.eos_token_id)
    begin, end = ([] if token is None else [token] for token in limits)
    for document in read_documents([Source.parse(text)]):
        ids += [*begin, *encoder.encode(document), *end]
        if len(ids) >= tokens:
            break
    ids = ids[:tokens]
    if len(ids) < seq_len:
        raise UserError(
            f"--calibration-data {text}: got {len(ids)} tokens; expected at least one context of {seq_len}"
        )
    count = len(ids) // seq_len
    return torch.tensor(ids[: count * seq_len]).view(count, seq_len)


class _StopError(Exception):
    """Ends a forward pass in front of the layers."""


# The arguments of a layer beside the hidden states.
_Call = tuple[tuple, dict[str, Any]]


@dataclass
class LayerInputs:
    """What the layers read: hidden states of every window, and what else each layer is called with.

    Attributes:
        hidden: (windows, context, hidden_size), of the layer that comes next.
        calls: by batch of windows and by layer, the arguments beside the hidden states.
    """

    hidden: Tensor
    calls: list[list[_Call]] = field(repr=False)

    def copy(self) -> "LayerInputs":
        """Copy the stream, to lead it through other layers.

        Raises:
            UserError: layers leave states for later ones, which both streams would share.
        """
        for _, options in self.calls[0]:
            for name, value in options.items():
                if isinstance(value, Mapping):
                    raise UserError(
                        f"--method svd-llm-update: layers of the model pass on states ({name}); "
                        "use --method svd-llm"
                    )
        return LayerInputs(self.hidden.clone(), self.calls)

    def run(self, layer: nn.Module, index: int) -> Iterator[tuple[slice, Tensor]]:
        """What a layer makes of the windows, batch by batch."""
        for number, calls in enumerate(self.calls):
            batch = slice(number * _BATCH_SIZE, (number + 1) * _BATCH_SIZE)
            args, kwargs = calls[index]
            yield batch, _hidden_of(layer(self.hidden[batch], *args, **kwargs))

    def advance(self, layer: nn.Module, index: int) -> None:
        """Go past a layer."""
        for batch, output in self.run(layer, index):
            self.hidden[batch] = output


def _hidden_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def capture_layer_inputs(model: Any, windows: Tensor) -> LayerInputs:
    """The stream in front of the first layer.

    Where layers are called with the same for different windows, as with masks and positions, that is kept
    once, and text goes no further than to the first layer.

    Raises:
        UserError: the model does more between its layers than to pass on what they return.
    """
    _, layers = find_decoder_layers(model)
    hidden: list[Tensor] = []
    calls: list[list[_Call]] = []
    is_shared = False
    for batch in windows.to(model.device).split(_BATCH_SIZE):
        is_full = len(batch) == _BATCH_SIZE  # the last may need masks of fewer windows
        reuses = is_shared and is_full
        states, of_layers = _record_calls(model, layers, batch, first_alone=reuses)
        if is_full and len(calls) == 1:
            is_shared = reuses = _same(of_layers, calls[0])
        hidden.append(states)
        calls.append(calls[0] if reuses else of_layers)
    return LayerInputs(torch.cat(hidden), calls)


def _record_calls(
    model: Any, layers: nn.ModuleList, windows: Tensor, *, first_alone: bool
) -> tuple[Tensor, list[_Call]]:
    """The hidden states in front of the first layer, and what all layers, or it alone, are called with."""
    calls: list[_Call] = []
    hidden: list[Tensor] = []

    def record(index: int) -> Callable:
        def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            kwargs = dict(kwargs)
            states = kwargs.pop("hidden_states", None)
            if states is None:
                states, args = args[0], args[1:]
            is_stream = states.ndim == 3 and index == len(calls)
            if not is_stream or (index and not torch.equal(states, hidden[-1])):
                raise UserError(
                    f"--calibration-data: {type(model).__name__} does more between its layers than to pass "
                    "on what they return; factorize it with --method svd, without text"
                )
            calls.append((args, kwargs))
            if not index:
                hidden.append(states)
            if first_alone:
                raise _StopError

        return hook

    def keep_output(_: nn.Module, __: tuple, output: Any) -> None:
        hidden[1:] = [_hidden_of(output)]

    handles = [
        layer.register_forward_pre_hook(record(i), with_kwargs=True)
        for i, layer in enumerate(layers)
    ]
    handles += [layer.register_forward_hook(keep_output) for layer in layers]
    try:
        with suppress(_StopError):
            model(windows, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return hidden[0], calls


def _same(one: Any, other: Any) -> bool:
    """Whether arguments are the same, tensors by their values."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    return one is other or (isinstance(one, int | float | str) and one == other)


@contextmanager
def _record_inputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """A dictionary in which the inputs of each module appear as it is called, once or more often."""
    inputs: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable:
        def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            (tensor,) = (*args, *kwargs.values())
            inputs.setdefault(name, []).append(tensor)

        return hook

    handles = [m.register_forward_pre_hook(keep(n), with_kwargs=True) for n, m in modules.items()]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class InputMoment:
    """One input that some projections of a layer share, such as q, k and v.

    Attributes:
        names: of the projections.
        moment: E[x xᵀ] over the rows that they read, (in, in), in float64.
        rows: how many those are; an expert reads some of the tokens alone.
    """

    names: list[str]
    moment: Tensor
    rows: int = 0


@torch.no_grad()
def input_moments(
    stream: LayerInputs, layer: nn.Module, index: int, modules: Mapping[str, nn.Module]
) -> list[InputMoment]:
    """The second moments of a layer's distinct inputs, in the order in which they are read.

    Raises:
        UserError: a projection reads nothing on the calibration text, or what is not finite.
    """
    groups: list[InputMoment] = []
    with _record_inputs(modules) as inputs:
        for _ in stream.run(layer, index):
            for names in _group_by_input(inputs):
                x = torch.cat([_flatten_tokens(tensor) for tensor in inputs[names[0]]])
                for group in _groups_of(names, groups):
                    group.moment = group.moment.to(x) + x.T @ x
                    group.rows += len(x)
            inputs.clear()
    read = {name for group in groups if group.rows for name in group.names}
    for name in modules:
        if name not in read:
            raise UserError(
                f"model: {name} gets no input from the calibration text, like an expert that no token is "
                "routed to; give more text, or exclude the projection"
            )
    for group in groups:
        group.moment = group.moment / group.rows
        if not torch.isfinite(group.moment).all():
            raise UserError(
                f"model: {group.names[0]} gets inputs from the calibration text that are not finite"
            )
    return groups


def _group_by_input(inputs: Mapping[str, list[Tensor]]) -> list[list[str]]:
    """The names by input, those that were called with the same tensors together."""
    by_tensors: dict[tuple[int, ...], list[str]] = {}
    for name, tensors in inputs.items():
        by_tensors.setdefault(tuple(map(id, tensors)), []).append(name)
    return list(by_tensors.values())


def _groups_of(names: list[str], groups: list[InputMoment]) -> list[InputMoment]:
    """The groups that hold just these names; made from what other batches have shown.

    Which projections share all their inputs is known only at the end: two experts may first be called
    for the same tokens and later for others.
    """
    held = []
    for group in list(groups):
        inside = [name for name in group.names if name in names]
        if inside and len(inside) < len(group.names):
            groups.append(InputMoment(inside, group.moment, group.rows))
            group.names = [name for name in group.names if name not in names]
            held.append(groups[-1])
        elif inside:
            held.append(group)
    known = {name for group in held for name in group.names}
    if new := [name for name in names if name not in known]:
        groups.append(InputMoment(new, torch.zeros(())))
        held.append(groups[-1])
    return held


@torch.no_grad()
def cross_moments(
    dense: LayerInputs,
    factorized: LayerInputs,
    layers: tuple[nn.Module, nn.Module],
    index: int,
    modules: tuple[nn.Module, nn.Module],
    name: str,
) -> tuple[Tensor, Tensor]:
    """E[x x̃ᵀ] and E[x̃ x̃ᵀ], x what a projection reads in the dense model and x̃ in the factorized one.

    Args:
        dense, factorized: the two streams, in front of the layer.
        layers, modules: the layer and the projection, in the dense model and in the factorized one.
        name: of the projection.

    Raises:
        UserError: it does not read every token once, so that what it reads in one model has no
            counterpart in the other.
    """
    cross = moment = torch.zeros(())
    num_tokens = 0
    with _record_inputs({"x": modules[0]}) as left, _record_inputs({"x": modules[1]}) as right:
        for (batch, _), _ in zip(
            dense.run(layers[0], index), factorized.run(layers[1], index), strict=True
        ):
            tokens = dense.hidden[batch].shape[:-1].numel()
            pair = left.pop("x", []), right.pop("x", [])
            if any(
                len(inputs) != 1 or len(_flatten_tokens(inputs[0])) != tokens for inputs in pair
            ):
                raise UserError(
                    f"--method svd-llm-update: {name} does not read every token, as an expert; use "
                    f"--method svd-llm"
                )
            x, drifted = (_flatten_tokens(inputs[0]) for inputs in pair)
            cross = cross.to(x) + x.T @ drifted
            moment = moment.to(x) + drifted.T @ drifted
            num_tokens += len(x)
    return cross / num_tokens, moment / num_tokens


def _flatten_tokens(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).double()
