"""Low-rank pairs in the place of dense projections of a live model, of whatever class."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lpa.errors import UserError
from lpa.lowrank import LowRankLinear, break_even_rank, check_rank
from lpa.model.surgery.low_rank_modules import dense_weight
from lpa.model.weight_checks import is_quantized, quantization_method

# Projections by their place in a layer, under the names that decoders of transformers give them. A fused
# query, key and value matrix is one projection.
PROJECTION_PATTERNS = {
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
        placement: `attention`, `ffn` or `all`, by the names in `PROJECTION_PATTERNS`.
        projections: a regular expression that is looked for in the full names instead.

    Raises:
        UserError: there is none; the message says what was looked for and what there is.
    """
    if placement not in (*PROJECTION_PATTERNS, "all"):
        raise UserError(f"placement: got {placement!r}; expected attention, ffn or all")
    patterns = [
        PROJECTION_PATTERNS[kind]
        for kind in (PROJECTION_PATTERNS if placement == "all" else [placement])
    ]
    if projections is not None:
        try:
            re.compile(projections)
        except re.error as error:
            raise UserError(
                f"--projections: got {projections!r}; expected a regular expression ({error})"
            ) from error
        patterns = [projections]
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    low_rank_prefixes = tuple(
        f"{n}." for n, m in model.named_modules() if isinstance(m, LowRankLinear)
    )
    linear = {
        n: m
        for n, m in linear.items()
        if not (low_rank_prefixes and n.startswith(low_rank_prefixes))
    }
    found = {n: m for n, m in linear.items() if any(re.search(p, n) for p in patterns)}
    pairs = [prefix.removesuffix(".") for prefix in low_rank_prefixes]
    if not found and any(re.search(pattern, name) for name in pairs for pattern in patterns):
        raise UserError(
            f"model: the projections of {type(model).__name__} are low-rank pairs already; expected a dense "
            "model, or another placement"
        )
    if not found:
        present = sorted({re.sub(r"\d+", "N", name) for name in linear})[:12]
        raise UserError(
            f"model: {type(model).__name__} has no projection that matches {' or '.join(patterns)}; name "
            f"them with --projections REGEX; its linear maps: {', '.join(present) or 'none'}"
        )
    return found


def resolve_ranks(
    found: Mapping[str, nn.Module],
    *,
    rank: int | None = None,
    ranks: Mapping[str, int | None] | None = None,
    rank_fraction: float | None = None,
) -> dict[str, int]:
    """The rank of each projection; those that stay dense are missing.

    Args:
        rank: of all.
        ranks: full name, or a regular expression that is looked for in it, -> rank, or None to keep a
            projection dense. The exact name counts first, then the first expression; what none matches
            has `rank` or `rank_fraction`, and stays dense where there is neither.
        rank_fraction: the fraction of the break-even rank, rounded down but at least 1.

    Raises:
        UserError: nothing says a rank, one does not fit its matrix, or an entry matches nothing.
    """
    if rank is None and ranks is None and rank_fraction is None:
        raise UserError("rank: got none; expected rank, rank_fraction, ranks or budget")
    if rank_fraction is not None and not 0 < rank_fraction <= 1:
        raise UserError(f"--rank-fraction: got {rank_fraction}; expected above 0 and at most 1")
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
        if rank is None and rank_fraction is not None:
            default = max(1, int(rank_fraction * break_even_rank(in_features, out_features)))
        key: str | None = (
            name if name in ranks else next((k for k in ranks if _matches(k, name)), None)
        )
        module_rank = default if key is None else ranks[key]
        if module_rank is not None:
            check_rank(
                module_rank,
                in_features,
                out_features,
                field=f"rank of {re.sub(r'[0-9]+', 'N', name)}",
            )
            result[name] = module_rank
    if not result:
        raise UserError(
            "ranks: got no rank for any projection; expected one for at least one of them"
        )
    return result


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise UserError(
            f"ranks: got {pattern!r}; expected a regular expression ({error})"
        ) from error


def check_not_quantized(model: nn.Module) -> None:
    """Refuse quantized weights.

    Raises:
        UserError: the model was quantized, or a matrix is not of floating point.
    """
    check_quantization(getattr(model, "config", None))
    for name, tensor in model.named_parameters():
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise UserError(
                f"model: {name} is {tensor.dtype}; quantized weights cannot be factorized; give the "
                "checkpoint from before quantization"
            )


def check_quantization(config: Any) -> None:
    """Refuse the configuration of a model with quantized weights.

    Raises:
        UserError: naming the method.
    """
    if is_quantized(config):
        raise UserError(
            f"model: its weights are quantized ({quantization_method(config)}) and cannot be factorized; "
            "give the checkpoint from before quantization"
        )


def check_finite(name: str, weight: Tensor) -> None:
    """Refuse a matrix with an entry that is no finite number.

    Raises:
        UserError: naming the tensor.
    """
    if not torch.isfinite(weight).all():
        bad = int((~torch.isfinite(weight)).sum())
        raise UserError(f"model: {name}.weight has {bad:,} entries that are NaN or infinite")
