"""Low-rank pairs in the place of dense projections of a live model, of whatever class."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lpa.errors import LPAWarning, UserError
from lpa.lowrank import LowRankLinear, break_even_rank, check_rank
from lpa.model.surgery.low_rank_modules import dense_weight
from lpa.model.weight_checks import is_quantized, quantization_method

# Projections by their place in a layer, under the names that decoders of transformers give them. A fused
# query, key and value matrix is one projection.
PROJECTION_PATTERNS = {
    "attention": r"\.\d+\.(self_attn|attn|attention|self_attention|attn\.attention)\."
    r"(q_proj|k_proj|v_proj|o_proj|out_proj|qkv_proj|c_attn|c_proj|Wqkv|query_key_value|dense)$",
    "ffn": r"\.\d+\.((mlp|feed_forward|ffn)\.(shared_experts?\.)?)?"
    r"(gate_proj|up_proj|gate_up_proj|down_proj|fc1|fc2|fc_in|fc_out|c_fc|c_proj|w1|w2|w3|"
    r"dense_h_to_4h|dense_4h_to_h)$",
}
# Multi-head latent attention (DeepSeek-V2), of which `PROJECTION_PATTERNS` know the output alone.
_LATENT_KEYS = re.compile(r"\.kv_b_proj$")


def find_projections(
    model: nn.Module, placement: str = "attention", projections: str | None = None
) -> dict[str, nn.Module]:
    """The dense projections of a model, by full name, in the order of its layers.

    Warns where experts that are fused in one tensor stay dense.

    Args:
        placement: `attention`, `ffn` or `all` of the decoder layers, by the names in
            `PROJECTION_PATTERNS`.
        projections: a regular expression that is looked for in the full names instead, inside the
            decoder layers and outside.

    Raises:
        UserError: there is none, or none of one kind; the message says what was looked for and what
            there is.
    """
    if placement not in (*PROJECTION_PATTERNS, "all"):
        raise UserError(f"placement: got {placement!r}; expected attention, ffn or all")
    kinds = list(PROJECTION_PATTERNS) if placement == "all" else [placement]
    patterns = [PROJECTION_PATTERNS[kind] for kind in kinds]
    if projections is not None:
        try:
            re.compile(projections)
        except re.error as error:
            raise UserError(
                f"--projections: got {projections!r}; expected a regular expression ({error})"
            ) from error
        patterns = [projections]
    modules = dict(model.named_modules())
    pairs = [n for n, m in modules.items() if isinstance(m, LowRankLinear)]
    in_pairs = tuple(f"{n}." for n in pairs)
    linear = {
        n: m
        for n, m in modules.items()
        if isinstance(m, nn.Linear | Conv1D) and not n.startswith(in_pairs)
    }
    found = {n: m for n, m in linear.items() if any(re.search(p, n) for p in patterns)}
    if found and projections is None:
        layers, _ = find_decoder_layers(model)
        found = {n: m for n, m in found.items() if n.startswith(f"{layers}.")}
    if not found and any(re.search(pattern, name) for name in pairs for pattern in patterns):
        raise UserError(
            f"model: the projections of {type(model).__name__} are low-rank pairs already; expected a dense "
            "model, or another placement"
        )
    present = ", ".join(sorted({_kind(name) for name in linear})[:12])
    choices = f"name them with --projections REGEX; its linear maps: {present or 'none'}"
    missing = [p for p in patterns if not any(re.search(p, n) for n in (*found, *pairs))]
    if missing:
        raise UserError(
            f"model: {type(model).__name__} has no projection that matches {' or '.join(missing)}; {choices}"
        )
    if projections is None and "attention" in kinds and any(map(_LATENT_KEYS.search, linear)):
        raise UserError(
            f"model: the attention of {type(model).__name__} has projections of low rank already, to the "
            f"latents of keys and values; {choices}"
        )
    if projections is None and "ffn" in kinds:
        _warn_of_fused_experts(model)
    return found


def _warn_of_fused_experts(model: nn.Module) -> None:
    experts = {_kind(n) for n, p in model.named_parameters() if ".experts." in n and p.ndim == 3}
    if experts:
        warnings.warn(
            f"model: {type(model).__name__} keeps its experts dense: {', '.join(sorted(experts))} hold "
            "those of a layer in one tensor, which is not factorized",
            LPAWarning,
            stacklevel=3,
        )


def _kind(name: str) -> str:
    """A name without the numbers of layers."""
    return re.sub(r"\d+", "N", name)


def find_decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder layers of a model and their name: its longest list of modules that is in no other.

    A list within a list is part of a layer, as the experts of a mixture are.

    Raises:
        UserError: it has none.
    """
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise UserError(
            f"model: {type(model).__name__} has no list of layers to stream text through"
        )
    outer = [item for item in lists if not any(item[0].startswith(f"{n}.") for n, _ in lists)]
    return max(outer, key=lambda item: len(item[1]))


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
                field=f"rank of {_kind(name)}",
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
