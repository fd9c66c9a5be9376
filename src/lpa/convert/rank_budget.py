"""One budget as the ranks of all projections: the curves and costs that `allocate_ranks` weighs."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lpa.callbacks import ProgressCallback
from lpa.convert.calibration import capture_layer_inputs, input_moments
from lpa.convert.rank_allocation import allocate_ranks
from lpa.convert.to_lpa import to_lpa_config
from lpa.errors import UserError, expected_one_of
from lpa.lowrank import break_even_rank, svd_factors, tail_energies, whitened_factors
from lpa.model.surgery.low_rank_modules import dense_weight, low_rank_like, set_factors
from lpa.model.surgery.projections import find_decoder_layers

QUANTITIES = ("parameters", "flops", "kv")
CRITERIA = ("spectra", "loss")
_RANK_FRACTIONS = (0.125, 0.25, 0.5, 0.75)  # of break-even, at which loss is measured


@dataclass
class RankBudget:
    """A global budget.

    Attributes:
        quantity: `parameters` or `flops` of the projections considered (a weight costs the same two
            operations wherever it is, so both lead to the same ranks), or `kv`, the latents that the
            cache holds of value projections in place of values; other projections then stay dense.
        fraction: of what they cost dense.
        criterion: by `spectra`, the energy that truncation discards relative to all of the projection's (with
            text, of its outputs), or by `loss`, measured on the text with one projection factorized at a
            time.
    """

    quantity: str
    fraction: float
    criterion: str = "spectra"

    def __post_init__(self) -> None:
        if self.quantity not in QUANTITIES:
            raise UserError(
                f"--budget: got {self.quantity!r}; {expected_one_of(self.quantity, QUANTITIES)}"
            )
        if not 0 < self.fraction <= 1:
            raise UserError(
                f"--budget {self.quantity}: got {self.fraction}; expected above 0 and at most 1"
            )
        if self.criterion not in CRITERIA:
            raise UserError(
                f"--budget-criterion: got {self.criterion!r}; "
                f"{expected_one_of(self.criterion, CRITERIA)}"
            )

    @classmethod
    def parse(cls, text: str, criterion: str) -> "RankBudget":
        """From `parameters=0.8`."""
        quantity, _, fraction = text.partition("=")
        try:
            return cls(quantity, float(fraction), criterion)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"--budget: got {text!r}; expected {'|'.join(QUANTITIES)}=FRACTION, such as parameters=0.8"
            ) from error


@torch.no_grad()
def ranks_for_budget(
    model: Any,
    found: Mapping[str, nn.Module],
    budget: RankBudget,
    windows: Tensor | None,
    method: str,
    *,
    on_progress: ProgressCallback,
) -> dict[str, int]:
    """The rank of each projection under a budget; those that stay dense are missing.

    Raises:
        UserError: the budget is too small or leaves all dense, text is missing for `loss`, or `kv`
            meets a model whose cache holds no latents.
    """
    if budget.quantity == "kv":
        found = {name: module for name, module in found.items() if name.endswith(".v_proj")}
        if not found or to_lpa_config(model, dict.fromkeys(found, 1)) is None:
            raise UserError(
                f"--budget kv: got a {type(model).__name__}, whose cache would hold no latents; expected one "
                "that becomes an LPAForCausalLM (a Llama, or a Mistral without sliding window, without "
                "biases), with v_proj among the chosen projections"
            )
    if budget.criterion == "loss" and windows is None:
        raise UserError("--budget-criterion loss: needs --calibration-data TEXT")
    shapes = {name: tuple(dense_weight(module).shape) for name, module in found.items()}
    if budget.quantity == "kv":
        costs = dict.fromkeys(shapes, 1.0)
        dense = {name: float(out_features) for name, (out_features, _) in shapes.items()}
    else:
        costs = {name: float(sum(shape)) for name, shape in shapes.items()}
        dense = {
            name: float(out_features * in_features)
            for name, (out_features, in_features) in shapes.items()
        }
    moments: Iterable[tuple[str, Tensor | None]] = ((name, None) for name in found)
    if windows is not None and method != "svd":
        moments = _moments(model, found, windows)
    curves: dict[str, Any] = {}
    for name, moment in moments:
        if budget.criterion == "spectra":
            tails = tail_energies(dense_weight(found[name]), moment)
            curves[name] = [tail / max(tails[0], 1e-300) for tail in tails]
        else:
            assert windows is not None
            curves[name] = _loss_curve(model, name, found[name], moment, windows)
        on_progress("curves", len(curves), len(found))
    curves = {name: curves[name] for name in found}
    total = budget.fraction * sum(dense.values())
    ranks = {n: r for n, r in allocate_ranks(curves, costs, total, dense_costs=dense).items() if r}
    if not ranks:
        raise UserError(
            f"--budget {budget.quantity}={budget.fraction}: leaves every projection dense"
        )
    return ranks


def _moments(
    model: Any, found: Mapping[str, nn.Module], windows: Tensor
) -> Iterator[tuple[str, Tensor | None]]:
    """Each projection with the moment of its inputs; only those of one decoder layer are held at a time.

    A projection outside of the decoder layers has none.
    """
    prefix, layers = find_decoder_layers(model)
    stream = capture_layer_inputs(model, windows)
    outside = set(found)
    for index, layer in enumerate(layers):
        layer_modules = {n: m for n, m in found.items() if n.startswith(f"{prefix}.{index}.")}
        outside -= layer_modules.keys()
        for group in input_moments(stream, layer, index, layer_modules) if layer_modules else []:
            for name in group.names:
                yield name, group.moment
        stream.advance(layer, index)
    for name in outside:
        yield name, None


def _loss_curve(
    model: Any, name: str, module: nn.Module, moment: Tensor | None, windows: Tensor
) -> dict[int, float]:
    """Loss on the text with this projection alone factorized, at a few ranks."""
    weight = dense_weight(module)
    out_features, in_features = weight.shape
    break_even = break_even_rank(in_features, out_features)
    curve = {}
    try:
        for rank in sorted({max(1, int(fraction * break_even)) for fraction in _RANK_FRACTIONS}):
            if moment is None:
                down, up = svd_factors(weight, rank)
            else:
                down, up = whitened_factors(weight, moment, rank)
            model.set_submodule(name, set_factors(low_rank_like(module, rank), module, down, up))
            curve[rank] = _loss(model, windows)
    finally:
        model.set_submodule(name, module)
    dense_loss = _loss(model, windows)
    return {rank: loss - dense_loss for rank, loss in curve.items()}


def _loss(model: Any, windows: Tensor) -> float:
    parts = windows.to(model.device).split(4)
    return sum(float(model(p, labels=p, use_cache=False).loss) * len(p) for p in parts) / len(
        windows
    )
