"""Projections of a dense model replaced by pairs, layer by layer."""

import copy
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lpa.callbacks import ProgressCallback
from lpa.convert.calibration import (
    InputMoment,
    capture_layer_inputs,
    cross_moments,
    input_moments,
)
from lpa.errors import UserError, expected_one_of
from lpa.lowrank import refit_up, squared_error, svd_factors, whitened_factors
from lpa.model.surgery.low_rank_modules import dense_weight, low_rank_like, set_factors
from lpa.model.surgery.projections import check_finite, find_decoder_layers

METHODS = ("svd", "svd-llm", "svd-llm-update")


@torch.no_grad()
def factorize_layers(
    model: PreTrainedModel,
    ranks: Mapping[str, int],
    method: str = "svd-llm",
    windows: Tensor | None = None,
    *,
    on_progress: ProgressCallback = lambda what, done, total: None,
) -> dict[str, float]:
    """Replace projections of a model by pairs, layer by layer, in place.

    `svd` uses the weights alone (with windows, only its error is measured on them). `svd-llm` (Wang et al.
    2024, arXiv 2403.07378) truncates each projection for its inputs in the dense model. `svd-llm-update`
    starts from the same factors. In the order in which a layer applies its projections, it then refits each
    up factor to the inputs in the partly factorized model, which corrects for the drift so far.

    Args:
        ranks: full name -> rank.
        windows: (windows, context), calibration tokens.

    Returns:
        By kind of projection, the relative error (see `FactorizeResult`).

    Raises:
        UserError: no windows where the method needs them, weights or activations that are not finite, or
            projections outside the layers, which text is not streamed to.
    """
    check_method(method, windows is not None)
    prefix, layers = find_decoder_layers(model)
    model.eval()
    found = {name: model.get_submodule(name) for name in ranks}
    for name, module in found.items():
        check_finite(name, dense_weight(module))
    errors: dict[str, list[float]] = {}
    layer_inputs = None if windows is None else capture_layer_inputs(model, windows)
    factorized_inputs = (
        layer_inputs.copy() if layer_inputs is not None and method == "svd-llm-update" else None
    )
    outside = [n for n in found if not re.match(rf"{re.escape(prefix)}\.\d+\.", n)]
    if outside and layer_inputs is not None:
        raise UserError(
            f"--projections: {outside[0]} is outside the layers; factorize it with --method svd"
        )
    _factorize_group(model, {n: found[n] for n in outside}, ranks, "svd", None, errors)
    for index, layer in enumerate(layers):
        layer_prefix = f"{prefix}.{index}."
        layer_modules = {n: m for n, m in found.items() if n.startswith(layer_prefix)}
        if layer_inputs is None:
            _factorize_group(model, layer_modules, ranks, "svd", None, errors)
        else:
            dense = copy.deepcopy(layer)
            groups = (
                input_moments(layer_inputs, layer, index, layer_modules) if layer_modules else []
            )
            for group in groups:
                part = {n: layer_modules[n] for n in group.names}
                corrections = None
                if factorized_inputs is not None:
                    first = group.names[0]
                    corrections = cross_moments(
                        layer_inputs,
                        factorized_inputs,
                        (dense, layer),
                        index,
                        (
                            dense.get_submodule(first.removeprefix(layer_prefix)),
                            layer_modules[first],
                        ),
                        first,
                    )
                _factorize_group(model, part, ranks, method, group, errors, corrections)
            if factorized_inputs is not None:
                factorized_inputs.advance(layer, index)
            layer_inputs.advance(dense, index)
        on_progress("layers", index + 1, len(layers))
    return {
        kind: (error_energy / max(total_energy, 1e-300)) ** 0.5
        for kind, (error_energy, total_energy) in errors.items()
    }


def _factorize_group(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    ranks: Mapping[str, int],
    method: str,
    inputs: InputMoment | None,
    errors: dict[str, list[float]],
    corrections: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Factorize projections that read the same input."""
    moment = None if inputs is None else inputs.moment
    rows = 1 if inputs is None else inputs.rows
    for name, module in modules.items():
        weight = dense_weight(module)
        if method == "svd" or moment is None:
            down, up = svd_factors(weight.double(), ranks[name])
        else:
            down, up = whitened_factors(weight.double(), moment, ranks[name])
        if corrections is not None:
            up = refit_up(weight, *corrections, down, up)
        pair = set_factors(low_rank_like(module, ranks[name]), module, down, up)
        model.set_submodule(name, pair.train(module.training))
        sums = errors.setdefault(name.rpartition(".")[2], [0.0, 0.0])
        for position, energy in enumerate(squared_error(weight, down, up, moment)):
            sums[position] += rows * energy


def check_method(method: str, has_text: bool) -> None:
    if method not in METHODS:
        raise UserError(f"--method: got {method!r}; {expected_one_of(method, METHODS)}")
    if method != "svd" and not has_text:
        raise UserError(
            f"--method {method}: needs --calibration-data TEXT; without text there is --method svd"
        )
