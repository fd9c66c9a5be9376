"""Second moments of what the projections of a model read, from text, one layer at a time."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpa.data.readers import read_documents
from lpa.data.sources import Source
from lpa.errors import UserError

_BATCH = 4  # windows at once; a layer's activations of them are all that is held beside the streams


def calibration_windows(text: str | Path, tokenizer: Any, *, tokens: int, context: int) -> Tensor:
    """Windows of text as a model reads it, each full.

    Args:
        text: what `lpa prepare` takes.
        tokens: how many to read at most.
        context: tokens per window.

    Shapes: -> (windows, context).

    Raises:
        UserError: nothing to read, or less than one window.
    """
    ids: list[int] = []
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for document in read_documents([Source.parse(text)]):
        ids += [*tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"], *end]
        if len(ids) >= tokens:
            break
    ids = ids[:tokens]
    if len(ids) < context:
        raise UserError(
            f"--calibrate {text}: got {len(ids)} tokens; expected at least one context of {context}"
        )
    count = len(ids) // context
    return torch.tensor(ids[: count * context]).view(count, context)


def layers_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder layers of a model and their name: its longest list of modules.

    Raises:
        UserError: it has none.
    """
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise UserError(
            f"model: {type(model).__name__} has no list of layers to stream text through"
        )
    return max(lists, key=lambda item: len(item[1]))


class _StopError(Exception):
    """Ends a forward pass in front of the layers."""


@dataclass
class Stream:
    """What the layers read: hidden states of every window, and what else each layer is called with.

    Attributes:
        hidden: (windows, context, hidden_size), of the layer that comes next.
        calls: by layer, the arguments beside the hidden states. They are the same for all windows, which
            are all of one length and without padding.
    """

    hidden: Tensor
    calls: list[tuple[tuple, dict[str, Any]]] = field(repr=False)

    def copy(self) -> "Stream":
        return Stream(self.hidden.clone(), self.calls)

    def run(self, layer: nn.Module, index: int) -> Iterator[tuple[slice, Tensor]]:
        """What a layer makes of the windows, batch by batch."""
        arguments, options = self.calls[index]
        for start in range(0, len(self.hidden), _BATCH):
            part = slice(start, start + _BATCH)
            output = layer(self.hidden[part], *arguments, **options)
            yield part, output[0] if isinstance(output, tuple) else output

    def advance(self, layer: nn.Module, index: int) -> None:
        """Go past a layer."""
        for part, output in self.run(layer, index):
            self.hidden[part] = output


@torch.no_grad()
def open_stream(model: Any, windows: Tensor) -> Stream:
    """The stream in front of the first layer."""
    _, layers = layers_of(model)
    calls: list[Any] = [None] * len(layers)
    hidden: list[Tensor] = []
    last = False

    def record(index: int) -> Callable:
        def hook(_: nn.Module, arguments: tuple, options: dict[str, Any]) -> None:
            options = dict(options)
            states = options.pop("hidden_states", None)
            if states is None:
                states, arguments = arguments[0], arguments[1:]
            calls[index] = (arguments, options)
            if index == 0:
                hidden.append(states)
                if last:
                    raise _StopError

        return hook

    handles = [
        layer.register_forward_pre_hook(record(i), with_kwargs=True)
        for i, layer in enumerate(layers)
    ]
    windows = windows.to(model.device)
    try:
        # Once through all layers, to see what each is called with: masks and positions broadcast.
        model(windows[:1], use_cache=False)
        whole, last = list(calls), True
        hidden.clear()
        for start in range(0, len(windows), _BATCH):
            with suppress(_StopError):
                model(windows[start : start + _BATCH], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return Stream(torch.cat(hidden), whole)


@contextmanager
def _inputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """A dictionary in which the latest input of each module appears as it is called."""
    latest: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        def hook(_: nn.Module, arguments: tuple) -> None:
            latest[name] = arguments[0]

        return hook

    handles = [m.register_forward_pre_hook(keep(n)) for n, m in modules.items()]
    try:
        yield latest
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Inputs:
    """One input that some projections of a layer share, such as q, k and v.

    Attributes:
        names: of the projections.
        moment: E[x xᵀ], (in, in), in float64.
    """

    names: list[str]
    moment: Tensor


@torch.no_grad()
def input_moments(
    stream: Stream, layer: nn.Module, index: int, modules: Mapping[str, nn.Module]
) -> list[Inputs]:
    """The second moments of a layer's distinct inputs, in the order in which they are read."""
    groups: list[Inputs] = []
    count = 0
    with _inputs_of(modules) as latest:
        for _ in stream.run(layer, index):
            if not groups:
                groups = [Inputs(names, torch.zeros(())) for names in _sharing(latest)]
            for group in groups:
                x = _rows(latest[group.names[0]])
                group.moment = group.moment.to(x) + x.T @ x
            count += x.shape[0]
            latest.clear()
    for group in groups:
        group.moment = group.moment / count
        if not torch.isfinite(group.moment).all():
            raise UserError(
                f"model: what {group.names[0]} reads on the calibration text is not finite"
            )
    return groups


def _sharing(latest: Mapping[str, Tensor]) -> list[list[str]]:
    """The names by input, those that were called with the same tensor together."""
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in latest.items():
        by_tensor.setdefault(id(tensor), []).append(name)
    return list(by_tensor.values())


@torch.no_grad()
def drifted_moments(
    dense: Stream,
    cut: Stream,
    layers: tuple[nn.Module, nn.Module],
    index: int,
    modules: tuple[nn.Module, nn.Module],
) -> tuple[Tensor, Tensor]:
    """E[x x̃ᵀ] and E[x̃ x̃ᵀ], x what a projection reads in the dense model and x̃ in the cut one.

    Args:
        dense, cut: the two streams, in front of the layer.
        layers, modules: the layer and the projection, in the dense model and in the cut one.
    """
    cross = moment = torch.zeros(())
    count = 0
    with _inputs_of({"x": modules[0]}) as left, _inputs_of({"x": modules[1]}) as right:
        for _ in zip(dense.run(layers[0], index), cut.run(layers[1], index), strict=True):
            x, drifted = _rows(left["x"]), _rows(right["x"])
            cross = cross.to(x) + x.T @ drifted
            moment = moment.to(x) + drifted.T @ drifted
            count += len(x)
    return cross / count, moment / count


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).double()
