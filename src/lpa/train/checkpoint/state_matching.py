"""Whether the tensors of a checkpoint fit the model and the optimizers that they are to fill.

They may not where a run resumes with another model or optimizer. All sizes are those of whole tensors,
however they are sharded.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from lpa.errors import UserError
from lpa.train.optim.optimizers import Optimizers

_WEIGHT = "weights/"
_OPTIMIZER = "optimizer/"


def check_weights(path: Path, model: nn.Module, saved: Mapping[str, torch.Size]) -> None:
    """Refuse a checkpoint whose weights have other names or shapes than the model's.

    Args:
        path: the checkpoint.
        saved: its tensors and their sizes.

    Raises:
        UserError: naming the first such weight.
    """
    expected = {f"{_WEIGHT}{name}": weight.shape for name, weight in model.named_parameters()}
    found = {name: size for name, size in saved.items() if name.startswith(_WEIGHT)}
    for name in [*expected, *sorted(found.keys() - expected.keys())]:
        if found.get(name) != expected.get(name):
            difference = _difference(
                name.removeprefix(_WEIGHT), found.get(name), expected.get(name)
            )
            raise UserError(
                f"--resume: {path}: {difference}; resume with the model that the run began with, or "
                "start a new run with another --out"
            )


def _difference(name: str, found: torch.Size | None, expected: torch.Size | None) -> str:
    if expected is None:
        return f"has {name} of shape {_shape(found)}, which the model of this configuration lacks"
    if found is None:
        return (
            f"lacks {name}, which the model of this configuration has, of shape {_shape(expected)}"
        )
    return f"has {name} of shape {_shape(found)}; the model of this configuration has {_shape(expected)}"


def _shape(size: torch.Size | None) -> tuple[int, ...]:
    return tuple(size or ())


def drop_unsaved_states(
    path: Path, model: nn.Module, optimizers: Optimizers, saved: Mapping[str, torch.Size]
) -> list[str]:
    """Drop the optimizer states that a checkpoint cannot fill, so that they start fresh.

    Those of a parameter are filled together or not at all: another optimizer may have one of the same name
    and shape that means something else. A checkpoint from before the first update has no states.

    Args:
        path: the checkpoint.
        optimizers: with all states that they have at their start.
        saved: its tensors and their sizes.

    Returns:
        The parameters whose states start fresh after updates.

    Raises:
        UserError: an optimizer cannot start within a run.
    """
    saved_states = _states_by_parameter(saved)
    fresh = []
    for name, parameter in model.named_parameters():
        for member in optimizers.members:
            states = member.state.get(parameter)
            if not states:
                continue
            found = saved_states.get(name, {})
            # What an optimizer has at its start alone.
            droppable = set(getattr(member, "droppable_states", ()))
            if _fits(states, found, droppable):
                for key in droppable - found.keys():
                    del states[key]
                continue
            if saved_states and not getattr(member, "can_start_within_run", True):
                raise UserError(
                    f"--resume: {path}: has no {type(member).__name__} states of this rank for {name}; "
                    "expected optim.name, optim.projection_rank and optim.trainable as the run began "
                    "with; start a new run with another --out"
                )
            del member.state[parameter]
            if saved_states:
                fresh.append(name)
    return fresh


def _states_by_parameter(saved: Mapping[str, torch.Size]) -> dict[str, dict[str, torch.Size]]:
    """Parameter -> its optimizer states and their sizes; empty before the first update."""
    states: dict[str, dict[str, torch.Size]] = defaultdict(dict)
    for name, size in saved.items():
        if name.startswith(_OPTIMIZER):
            key, parameter = name.removeprefix(_OPTIMIZER).split("/", 1)
            states[parameter][key] = size
    return dict(states)


def _fits(
    states: Mapping[str, torch.Tensor], found: Mapping[str, torch.Size], droppable: set[str]
) -> bool:
    required = states.keys() - droppable
    return required <= found.keys() <= states.keys() and all(
        states[key].shape == size for key, size in found.items()
    )
