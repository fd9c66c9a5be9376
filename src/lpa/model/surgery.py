"""Low-rank pairs in the place of dense projections of a live model, of whatever class."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lpa.errors import UserError
from lpa.lowrank import LowRankLinear, best_factors, break_even_rank, check_rank, draw_factors
from lpa.model.loading_checks import is_quantized, quantization_method
from lpa.model.pairs import dense_weight, fill_pair, pair_like
from lpa.model.quantizer import mark

# Projections by where they lie, under the names that decoders of transformers give them. A fused query,
# key and value matrix is one projection.
KNOWN = {
    "attention": r"\.\d+\.(self_attn|attn|attention|self_attention)\."
    r"(q_proj|k_proj|v_proj|o_proj|out_proj|qkv_proj|c_attn|c_proj|query_key_value|dense)$",
    "ffn": r"\.\d+\.(mlp\.|feed_forward\.|)"
    r"(gate_proj|up_proj|gate_up_proj|down_proj|fc1|fc2|c_fc|c_proj|dense_h_to_4h|dense_4h_to_h)$",
}


def find_projections(
    model: nn.Module, placement: str = "attention", projections: str | None = None
) -> dict[str, nn.Module]:
    """The dense projections of a model, by full name, in the order of its layers.

    Args:
        placement: `attention`, `ffn` or `all`, by the names in `KNOWN`.
        projections: a regular expression that is looked for in the full names instead.

    Raises:
        UserError: there is none; the message says what was looked for and what there is.
    """
    if placement not in (*KNOWN, "all"):
        raise UserError(f"placement: got {placement!r}; expected attention, ffn or all")
    patterns = [KNOWN[kind] for kind in (KNOWN if placement == "all" else [placement])]
    if projections is not None:
        try:
            re.compile(projections)
        except re.error as error:
            raise UserError(
                f"--projections: got {projections!r}; expected a regular expression ({error})"
            ) from error
        patterns = [projections]
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    inside = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, LowRankLinear))
    linear = {n: m for n, m in linear.items() if not (inside and n.startswith(inside))}
    found = {n: m for n, m in linear.items() if any(re.search(p, n) for p in patterns)}
    if not found:
        there = sorted({re.sub(r"\d+", "N", name) for name in linear})[:12]
        raise UserError(
            f"model: {type(model).__name__} has no projection that matches {' or '.join(patterns)}; name "
            f"them with --projections REGEX; its linear maps: {', '.join(there) or 'none'}"
        )
    return found


def resolve_ranks(
    found: Mapping[str, nn.Module],
    *,
    rank: int | None = None,
    ranks: Mapping[str, int | None] | None = None,
    keep: float | None = None,
) -> dict[str, int]:
    """The rank of each projection; those that stay dense are missing.

    Args:
        rank: of all.
        ranks: full name, or a regular expression that is looked for in it, -> rank, or None to keep a
            projection dense. The exact name counts first, then the first expression; what none matches
            has `rank` or `keep`, and stays dense where there is neither.
        keep: the share of the break-even rank, rounded down but at least 1.

    Raises:
        UserError: nothing says a rank, one does not fit its matrix, or an entry matches nothing.
    """
    if rank is None and ranks is None and keep is None:
        raise UserError("rank: got none; expected rank, keep, ranks or a budget")
    if keep is not None and not 0 < keep <= 1:
        raise UserError(f"--keep: got {keep}; expected above 0 and at most 1")
    ranks = ranks or {}
    for given in ranks:
        if given not in found and not any(_matches(given, name) for name in found):
            raise UserError(
                f"ranks: {given!r} matches none of the projections, such as {next(iter(found))}"
            )
    result = {}
    for name, module in found.items():
        out_features, in_features = dense_weight(module).shape
        default = rank
        if rank is None and keep is not None:
            default = max(1, int(keep * break_even_rank(in_features, out_features)))
        key: str | None = (
            name if name in ranks else next((k for k in ranks if _matches(k, name)), None)
        )
        own = default if key is None else ranks[key]
        if own is not None:
            check_rank(
                own, in_features, out_features, field=f"rank of {re.sub(r'[0-9]+', 'N', name)}"
            )
            result[name] = own
    if not result:
        raise UserError("ranks: keep every projection dense; expected a rank for one of them")
    return result


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise UserError(
            f"ranks: got {pattern!r}; expected a regular expression ({error})"
        ) from error


def apply(
    model: PreTrainedModel,
    placement: str = "attention",
    rank: int | None = None,
    *,
    ranks: Mapping[str, int | None] | None = None,
    projections: str | None = None,
    fresh: bool = False,
) -> dict[str, nn.Module]:
    """Replace dense projections of a live model by low-rank pairs.

    The model stays of its class; it trains, generates and saves as before, and `lpa.load` or, after
    `import lpa`, `AutoModelForCausalLM.from_pretrained` read it back.

    Args:
        model: a decoder whose projections are `nn.Linear` or GPT-2's `Conv1D`. A fused query, key and
            value matrix becomes one pair, whose latent all three share.
        placement: `attention`, `ffn` or `all`.
        rank, ranks: see `resolve_ranks`.
        projections: a regular expression of module names, for classes whose names are not known.
        fresh: start the pairs anew, the entries of each product with the deviation of its dense matrix,
            instead of with the best approximation of its weights. Biases are kept either way.

    Returns:
        Full name -> the module that was replaced.

    Raises:
        UserError: no such projection, or a rank that it cannot have.
    """
    check_cuttable(model)
    found = find_projections(model, placement, projections)
    chosen = resolve_ranks(found, rank=rank, ranks=ranks)
    for name, own in chosen.items():
        weight = dense_weight(found[name]).detach()
        check_finite(name, weight)
        if fresh:
            out_features, in_features = weight.shape
            down, up = draw_factors(
                "scaled",
                in_features,
                out_features,
                own,
                float(weight.double().std()),
                device=weight.device,
            )
        else:
            down, up = best_factors(weight, own)
        pair = fill_pair(pair_like(found[name], own), found[name], down, up)
        model.set_submodule(name, pair.train(found[name].training))
    record_pairs(model)
    return {name: found[name] for name in chosen}


def record_pairs(model: PreTrainedModel) -> None:
    """Let the configuration say which modules are pairs, so that the model can be saved."""
    mark(model, {n: m.rank for n, m in model.named_modules() if isinstance(m, LowRankLinear)})


def check_cuttable(model: nn.Module) -> None:
    """Refuse quantised weights.

    Raises:
        UserError: the model was quantised, or a matrix is not of floating point.
    """
    check_quantization(getattr(model, "config", None))
    for name, tensor in model.named_parameters():
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise UserError(
                f"model: {name} is {tensor.dtype}; quantised weights cannot be cut; give the checkpoint from "
                "before quantisation"
            )


def check_quantization(config: Any) -> None:
    """Refuse the configuration of a model with quantised weights.

    Raises:
        UserError: naming the method.
    """
    if is_quantized(config):
        raise UserError(
            f"model: its weights are quantised ({quantization_method(config)}) and cannot be cut; give the "
            "checkpoint from before quantisation"
        )


def check_finite(name: str, weight: Tensor) -> None:
    """Refuse a matrix with an entry that is no finite number.

    Raises:
        UserError: naming the tensor.
    """
    if not torch.isfinite(weight).all():
        bad = int((~torch.isfinite(weight)).sum())
        raise UserError(f"model: {name}.weight has {bad:,} entries that are no finite numbers")
