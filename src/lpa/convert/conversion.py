"""Factorize and merge: one function for each, for directories and for live models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

from torch import nn
from transformers import PreTrainedModel

from lpa.callbacks import ProgressCallback
from lpa.convert.factorize import (
    FactorizeConfig,
    check_ranks_given,
    choose_ranks,
    factorize_directory,
    windows_for,
)
from lpa.convert.factorize_layers import check_method, factorize_layers
from lpa.convert.merge import MergeResult, merge_directory, merge_model
from lpa.convert.rank_budget import RankBudget
from lpa.device import resolve_device
from lpa.errors import UserError
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.model.surgery.factorize import check_recordable, record_low_rank_modules
from lpa.model.surgery.factorize import factorize as factorize_live
from lpa.model.surgery.low_rank_modules import replacing
from lpa.model.surgery.projections import check_not_quantized, find_projections
from lpa.storage.records import read_yaml


def factorize(
    model: PreTrainedModel | str | Path,
    placement: str = "attention",
    rank: int | None = None,
    *,
    out: str | Path | None = None,
    rank_fraction: float | None = None,
    ranks: Mapping[str, int | None] | str | Path | None = None,
    budget: str | RankBudget | None = None,
    budget_criterion: str | None = None,
    projections: str | None = None,
    method: str | None = None,
    calibration_data: str | Path | None = None,
    calibration_tokens: int | None = None,
    seq_len: int | None = None,
    tokenizer: Any = None,
    reinitialize: bool = False,
    device: str = "auto",
    overwrite: bool = False,
    on_progress: ProgressCallback = lambda what, done, total: None,
) -> Any:
    """Replaces the dense projections of a model by low-rank pairs.

    A live model changes in place and stays of its class: it trains, generates and saves as before, and
    `lpa.load` or, after `import lpa`, `AutoModelForCausalLM.from_pretrained` read it back. A checkpoint
    becomes a new directory, in which a Llama is an `LPAForCausalLM`. Nothing is changed or written where
    an argument is refused.

    Args:
        model: a live decoder, whose projections are `nn.Linear` or GPT-2's `Conv1D`; or a Hugging Face
            directory, a run directory or a GGUF file.
        placement: `attention`, `ffn` or `all`.
        rank: of every projection.
        out: the directory to make of a checkpoint.
        rank_fraction: the fraction of each projection's break-even rank that it gets.
        ranks: of single projections, by full name or regular expression; or a YAML or JSON file of them.
        budget: `parameters=FRACTION`, `flops=FRACTION` or `kv=FRACTION` of what the projections cost dense.
        budget_criterion: how to divide the budget: by `spectra` (singular values), as is the default, or
            `loss` (on the text).
        projections: a regular expression of module names, instead of `placement`.
        method: `svd`, `svd-llm` or `svd-llm-update`; by default `svd-llm` with calibration data, else
            `svd`.
        calibration_data: text like what the model will read, as `prepare` takes it.
        calibration_tokens: how many tokens of it to use; by default 32768.
        seq_len: tokens per window of it; by default up to 512.
        tokenizer: the tokenizer of a live model, for calibration data.
        reinitialize: start the pairs of a live model at random, not at its weights.
        device: where a checkpoint is factorized; a live model stays where it is.
        overwrite: replace what `out` holds.
        on_progress: called with what is done, how much of it, and how much in all.

    Returns:
        Of a live model, full name -> the module that was replaced. Of a checkpoint, a `FactorizeResult`:
        parameters, cache and errors before and after.

    Raises:
        UserError: an argument that is not accepted, or a model that cannot be factorized.

    Example:
        replaced = lpa.factorize(model, rank=64)
        result = lpa.factorize("path/to/llama", rank_fraction=0.5, out="low-rank")
    """
    if budget_criterion is not None and not isinstance(budget, str):
        raise UserError("--budget-criterion: works only with --budget QUANTITY=FRACTION")
    for name, value in (("calibration-tokens", calibration_tokens), ("seq-len", seq_len)):
        if value is not None and calibration_data is None:
            raise UserError(f"--{name}: works only with --calibration-data")
    config = FactorizeConfig(
        placement=placement,
        projections=projections,
        rank=rank,
        rank_fraction=rank_fraction,
        ranks=_read_ranks(ranks) if isinstance(ranks, str | Path) else ranks,
        budget=RankBudget.parse(budget, budget_criterion or "spectra")
        if isinstance(budget, str)
        else budget,
        method=method,
        calibration_data=None if calibration_data is None else str(calibration_data),
        calibration_tokens=calibration_tokens or FactorizeConfig.calibration_tokens,
        seq_len=seq_len,
    )
    if not isinstance(model, PreTrainedModel | str | Path):
        raise UserError(
            f"model: got a {type(model).__name__}; expected a PreTrainedModel of transformers, or the "
            "path of a directory or a GGUF file"
        )
    if isinstance(model, PreTrainedModel):
        if out is not None:
            raise UserError(
                f"out: got {out}; expected none for a live model, which save_pretrained saves"
            )
        return _factorize_live(
            model, config, tokenizer, reinitialize=reinitialize, on_progress=on_progress
        )
    if out is None:
        raise UserError(f"out: got nothing; expected the directory to make of {model}")
    if reinitialize or tokenizer is not None:
        name = "reinitialize" if reinitialize else "tokenizer"
        raise UserError(f"{name}: works only with a live model; got the path {model}")
    return factorize_directory(
        Path(model),
        Path(out),
        config,
        device=str(resolve_device(device)),
        overwrite=overwrite,
        on_progress=on_progress,
    )


def _factorize_live(
    model: PreTrainedModel,
    config: FactorizeConfig,
    tokenizer: Any,
    *,
    reinitialize: bool,
    on_progress: ProgressCallback,
) -> dict[str, nn.Module]:
    has_text = config.calibration_data is not None
    method = config.method or ("svd-llm" if has_text else "svd")
    check_method(method, has_text)
    if has_text and (tokenizer is None or reinitialize):
        raise UserError(
            "calibration_data: got it with a live model; expected its tokenizer too (tokenizer=...), and "
            "reinitialize=False"
        )
    check_ranks_given(config)
    check_not_quantized(model)
    is_kv = config.budget is not None and config.budget.quantity == "kv"
    if is_kv and not isinstance(model, LPAForCausalLM):
        raise UserError(
            f"budget: got kv with a live {type(model).__name__}, which keeps its class and holds no latents "
            "in its cache; save it, and factorize its directory"
        )
    found = find_projections(model, config.placement, config.projections)
    windows = windows_for(model, tokenizer, config) if has_text else None
    with replacing(model, found):
        ranks = choose_ranks(model, found, config, windows, method, on_progress=on_progress)
        if windows is None:
            return factorize_live(
                model,
                config.placement,
                ranks={name: ranks.get(name) for name in found},
                projections=config.projections,
                reinitialize=reinitialize,
            )
        check_recordable(model, ranks)
        factorize_layers(model, ranks, method, windows, on_progress=on_progress)
        record_low_rank_modules(model)
        return {name: found[name] for name in ranks}


def _read_ranks(path: str | Path) -> dict[str, int | None]:
    try:
        return read_yaml(Path(path), dict[str, int | None])
    except UserError as error:
        raise UserError(f"--ranks {error}; expected a mapping of names to ranks") from error


@overload
def merge(model: PreTrainedModel, out: None = ..., *, overwrite: bool = ...) -> PreTrainedModel: ...


@overload
def merge(model: str | Path, out: str | Path, *, overwrite: bool = ...) -> MergeResult: ...


def merge(
    model: PreTrainedModel | str | Path,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
) -> PreTrainedModel | MergeResult:
    """Folds each low-rank pair into one dense matrix, W = B A, which makes a stock model.

    An `LPAForCausalLM` becomes a Llama. A model that kept its class when it was factorized, such as a GPT-2,
    keeps it here too.

    Args:
        model: a live model, which stays as it is; or a run directory or a Hugging Face directory.
        out: the directory to make of a directory, with its tokenizer.
        overwrite: replace what `out` holds.

    Returns:
        The stock model for a live model. For a directory, a `MergeResult`: the class, and the numbers of
        parameters before and after.

    Raises:
        UserError: the model has no pairs, or a part that no stock model has, or `out` exists already.

    Example:
        llama = lpa.merge(lpa.load("runs/lpa"))
        result = lpa.merge("runs/lpa", "merged")
    """
    if isinstance(model, nn.Module):
        if out is not None:
            raise UserError(
                f"out: got {out}; expected none for a live model, which save_pretrained saves"
            )
        if not isinstance(model, PreTrainedModel):
            raise UserError(
                f"model: got a {type(model).__name__}; expected a PreTrainedModel of transformers"
            )
        return merge_model(model)
    if out is None:
        raise UserError(f"out: got nothing; expected the directory to make of {model}")
    return merge_directory(Path(model), Path(out), overwrite=overwrite)
