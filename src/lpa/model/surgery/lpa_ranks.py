"""The ranks of an LPA model of which more projections became low-rank pairs."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

from lpa.errors import LPAWarning, UserError
from lpa.model.configuration_lpa import ATTENTION_PROJECTIONS, LPAConfig

_PROJECTION = re.compile(r"(?:model\.)?layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)")
# What a change of ranks changes.
_FIELDS = ("placement", "rank", "ffn_rank", "ranks", "dense_layers", "base_model_tp_plan")


def rank_fields(
    layer_ranks: Mapping[str, list[int | None]], ranks: Mapping[str, int]
) -> dict[str, Any] | None:
    """The fields of an `LPAConfig` that give projections the ranks that they have and further ones.

    Args:
        layer_ranks: by projection of a layer, such as `q_proj`, its rank in each layer, None where dense.
        ranks: full name of a module -> its rank.

    Returns:
        None where a name is no projection of a layer.
    """
    merged = {kind: list(of_layers) for kind, of_layers in layer_ranks.items()}
    for name, rank in ranks.items():
        match = _PROJECTION.fullmatch(name)
        if match is None or match[2] not in merged:
            return None
        merged[match[2]][int(match[1])] = rank
    low_rank = {kind for kind, of_layers in merged.items() if set(of_layers) != {None}}
    attention = bool(low_rank & set(ATTENTION_PROJECTIONS))
    ffn = bool(low_rank - set(ATTENTION_PROJECTIONS))
    return {
        "placement": "all" if attention and ffn else "attention" if attention else "ffn",
        "rank": max(rank for of_layers in merged.values() for rank in of_layers if rank),
        "ffn_rank": None,
        # One number where all layers have the same.
        "ranks": {k: v[0] if len(set(v)) == 1 else v for k, v in merged.items()},
        "dense_layers": None,
    }


def with_ranks(config: LPAConfig, ranks: Mapping[str, int]) -> LPAConfig:
    """The configuration of an LPA model of which the named modules became pairs.

    Raises:
        UserError: it cannot say so.
    """
    for field, value, accepted in (
        ("decoder_type", config.decoder_type, "llama"),
        ("low_rank_method", config.low_rank_method, None),
    ):
        if value != accepted:
            raise UserError(
                f"model: {field}: got {value}; expected {accepted or 'null'}, as other LPA models cannot be "
                "factorized further"
            )
    layers = range(config.num_hidden_layers)
    present = {
        kind: [config.projection_rank(kind, i) for i in layers] for kind in config.projections
    }
    fields = rank_fields(present, ranks)
    if fields is None:
        outside = next(name for name in ranks if rank_fields(present, {name: 1}) is None)
        raise UserError(
            f"--projections: {outside} is no projection of a layer; expected "
            f"{', '.join(config.projections)}, of which alone an LPA model has the ranks"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LPAWarning)  # said once already, when ranks were chosen
        return LPAConfig(**(config.to_diff_dict() | fields))


def record_ranks(config: LPAConfig, ranks: Mapping[str, int]) -> None:
    """Let the configuration of a live model, which its modules share, say that its named modules are pairs.

    Raises:
        UserError: as `with_ranks`; the configuration then stays as it is.
    """
    changed = with_ranks(config, ranks)
    for field in _FIELDS:
        setattr(config, field, getattr(changed, field))
