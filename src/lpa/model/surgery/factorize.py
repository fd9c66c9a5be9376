"""Replace the dense projections of a live model by low-rank modules."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from lpa.errors import UserError
from lpa.lowrank import LowRankLinear, init_factors, svd_factors
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.surgery.low_rank_modules import (
    dense_weight,
    insert_low_rank_modules,
    low_rank_like,
    set_factors,
)
from lpa.model.surgery.lpa_ranks import record_ranks, with_ranks
from lpa.model.surgery.projections import (
    check_finite,
    check_not_quantized,
    find_projections,
    resolve_ranks,
)
from lpa.model.surgery.quantizer import attach_quantization_config


def factorize(
    model: PreTrainedModel,
    placement: str = "attention",
    rank: int | None = None,
    *,
    ranks: Mapping[str, int | None] | None = None,
    projections: str | None = None,
    reinitialize: bool = False,
) -> dict[str, nn.Module]:
    """Replace dense projections of a live model by low-rank pairs.

    The model stays of its class; it trains, generates and saves as before, and `lpa.load` or, after
    `import lpa`, `AutoModelForCausalLM.from_pretrained` read it back. Where this package is missing, the
    code that `save_pretrained` wrote does, with `trust_remote_code=True`.

    Args:
        model: a decoder whose projections are `nn.Linear` or GPT-2's `Conv1D`. A fused query, key and
            value matrix becomes one pair, whose latent all three share.
        placement: `attention`, `ffn` or `all`.
        rank: of every projection; see `resolve_ranks`.
        ranks: of single projections, by full name or regular expression; see `resolve_ranks`.
        projections: a regular expression of module names, for classes whose names are not known.
        reinitialize: initialize the pairs anew, the entries of each product with the deviation of its
            dense matrix,
            instead of with the best approximation of its weights. Biases are kept either way.

    Returns:
        Full name -> the module that was replaced.

    Raises:
        UserError: no such projection, or a rank that it cannot have.
    """
    check_not_quantized(model)
    found = find_projections(model, placement, projections)
    chosen = resolve_ranks(found, rank=rank, ranks=ranks)
    check_recordable(model, chosen)
    for name, module_rank in chosen.items():
        weight = dense_weight(found[name]).detach()
        check_finite(name, weight)
        make_factors = _draw_factors if reinitialize else svd_factors
        down, up = make_factors(weight, module_rank)
        low_rank = set_factors(low_rank_like(found[name], module_rank), found[name], down, up)
        model.set_submodule(name, low_rank.train(found[name].training))
    record_low_rank_modules(model)
    return {name: found[name] for name in chosen}


def draw_low_rank_modules(model: PreTrainedModel, ranks: Mapping[str, int]) -> None:
    """Replace projections of a model whose weights are newly drawn by pairs that are newly drawn too.

    Args:
        ranks: full name -> rank, as a `quantization_config` has them.

    Raises:
        UserError: as `insert_low_rank_modules`.
    """
    dense = dict(model.named_modules())
    for name in insert_low_rank_modules(model, ranks):
        pair: Any = model.get_submodule(name)
        down, up = _draw_factors(dense_weight(dense[name]).detach(), pair.rank)
        set_factors(pair, dense[name], down, up)
    record_low_rank_modules(model)


def _draw_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A and B at random, the entries of their product with the deviation of a dense matrix."""
    out_features, in_features = weight.shape
    std = float(weight.double().std())
    return init_factors("scaled", in_features, out_features, rank, std, device=weight.device)


def record_low_rank_modules(model: PreTrainedModel) -> None:
    """Let the configuration say which modules are pairs, so that the model can be saved."""
    ranks = {n: m.rank for n, m in model.named_modules() if isinstance(m, LowRankLinear)}
    if isinstance(model.config, LPAConfig):
        record_ranks(model.config, ranks)
    else:
        attach_quantization_config(model, ranks)


def check_recordable(model: PreTrainedModel, ranks: Mapping[str, int]) -> None:
    """Refuse pairs that no configuration could say.

    Raises:
        UserError: the model is an LPA model that cannot be factorized further, or an LM head is tied to
            the embedding, which would share the weight that the head has no longer.
    """
    if isinstance(model.config, LPAConfig):
        with_ranks(model.config, ranks)
        return
    head = model.get_output_embeddings()
    for name in ranks if getattr(model.config, "tie_word_embeddings", False) else ():
        if model.get_submodule(name) is head:
            raise UserError(
                f"--projections: got {name}, which is tied to the embedding of {type(model).__name__}; "
                "expected projections with weights that no other module has"
            )
