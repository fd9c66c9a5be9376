"""A dense checkpoint as a model with low-rank projections."""

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lpa.callbacks import ProgressCallback
from lpa.convert.calibration import calibration_windows
from lpa.convert.factorize_layers import check_method, factorize_layers
from lpa.convert.merge import TOKENIZER_FILES
from lpa.convert.rank_budget import RankBudget, ranks_for_budget
from lpa.convert.to_lpa import to_lpa_config, to_lpa_model
from lpa.data.model_tokenizer import load_model_tokenizer
from lpa.data.tokenizer import (
    check_vocabulary,
    from_pretrained,
    has_tokenizer,
    tokenizer_hash,
)
from lpa.errors import LPAWarning, UserError
from lpa.gguf_import import is_gguf, load_gguf
from lpa.model.hub.model_card import CardContent, facts_of_card, short_name
from lpa.model.hub.model_directory import save_model
from lpa.model.loading import load_model, model_directory, open_config, positions_of
from lpa.model.surgery.factorize import check_recordable, record_low_rank_modules
from lpa.model.surgery.projections import (
    check_finite,
    check_not_quantized,
    check_quantization,
    find_projections,
    resolve_ranks,
)
from lpa.storage.outputs import MODEL, atomic_directory, check_output_directory


@dataclass
class FactorizeResult:
    """What a conversion made; the keys of `lpa convert factorize --json`.

    Attributes:
        model_class: of the result.
        parameters_dense, parameters: before and after.
        kv_bytes_per_token_dense, kv_bytes_per_token: keys and values of all layers, in the model's dtype;
            after, as the latent cache holds them where the model is an `LPAForCausalLM`.
        relative_error: by kind of projection, √(Σ‖(W - B A) x‖² / Σ‖W x‖²) over layers and calibration
            text, or of the matrices themselves where there was no text.
        ranks: by projection; what is missing stayed dense.
        calibration_tokens: how many were read, in whole windows; 0 without text.
    """

    model_class: str
    parameters_dense: int
    parameters: int
    kv_bytes_per_token_dense: int
    kv_bytes_per_token: int
    relative_error: dict[str, float]
    ranks: dict[str, int]
    calibration_tokens: int


def factorize(
    model: PreTrainedModel,
    ranks: Mapping[str, int],
    method: str = "svd-llm",
    windows: Tensor | None = None,
    *,
    on_progress: ProgressCallback = lambda what, done, total: None,
) -> tuple[PreTrainedModel, FactorizeResult]:
    """Factorize a model (in place) and give it the class that holds the result; see `factorize_layers`."""
    check_recordable(model, ranks)
    before = model.num_parameters()
    cache = _full_cache_bytes(model)
    config = to_lpa_config(model, ranks)
    errors = factorize_layers(model, ranks, method, windows, on_progress=on_progress)
    factorized_model: PreTrainedModel = model
    after = cache
    if config is None:
        record_low_rank_modules(model)
    else:
        from lpa.model.plan import kv_cache_bytes

        factorized_model = to_lpa_model(model, config)
        after = kv_cache_bytes(config, model.dtype.itemsize)["latent"]
    summary = FactorizeResult(
        type(factorized_model).__name__,
        before,
        factorized_model.num_parameters(),
        cache,
        after,
        errors,
        dict(ranks),
        0 if windows is None else windows.numel(),
    )
    return factorized_model, summary


@torch.no_grad()
def _full_cache_bytes(model: Any) -> int:
    """Bytes of the keys and values of one token in all layers; 0 where none are kept."""
    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    cache = model(token, use_cache=True).get("past_key_values")
    kept = [
        getattr(layer, name, None)
        for layer in getattr(cache, "layers", ())
        for name in ("keys", "values")
    ]
    return sum(tensor.numel() for tensor in kept if tensor is not None) * model.dtype.itemsize


@dataclass
class FactorizeConfig:
    """How to factorize; the flags of `lpa convert factorize`.

    Attributes:
        placement, projections: which projections (see `find_projections`).
        rank, rank_fraction, ranks: see `resolve_ranks`.
        budget: instead of them.
        method: one of `METHODS`; None: `svd-llm` with text, `svd` without.
        calibration_data: text, as `lpa prepare` takes it.
        calibration_tokens, seq_len: how much of it; seq_len None is 512, or the model's positions if fewer.
    """

    placement: str = "attention"
    projections: str | None = None
    rank: int | None = None
    rank_fraction: float | None = None
    ranks: Mapping[str, int | None] | None = None
    budget: RankBudget | None = None
    method: str | None = None
    calibration_data: str | None = None
    calibration_tokens: int = 32768
    seq_len: int | None = None


def factorize_directory(
    source: Path,
    out: Path,
    config: FactorizeConfig,
    *,
    device: str = "cpu",
    overwrite: bool = False,
    on_progress: ProgressCallback = lambda what, done, total: None,
) -> FactorizeResult:
    """Factorize the model of a Hugging Face directory or a GGUF file into a new directory.

    Tokenizer, generation configuration and chat template come along where there are any. `out` appears
    once it is whole.

    Raises:
        UserError: bad input of any kind; nothing is written then.
    """
    check_output_directory(out, MODEL, overwrite=overwrite)
    has_text = config.calibration_data is not None
    method = config.method or ("svd-llm" if has_text else "svd")
    check_method(method, has_text)
    check_ranks_given(config)
    model, tokenizer = load_dense(source, needs_tokenizer=has_text)
    model.to(device)
    found = find_projections(model, config.placement, config.projections)
    for name, tensor in model.named_parameters():
        check_finite(name.removesuffix(".weight"), tensor.detach())
    windows = windows_for(model, tokenizer, config) if has_text else None
    ranks = choose_ranks(model, found, config, windows, method, on_progress=on_progress)
    factorized_model, summary = factorize(model, ranks, method, windows, on_progress=on_progress)
    with atomic_directory(out, MODEL, overwrite=overwrite) as directory:
        save_model(factorized_model, directory, _card(source, out, method, config, summary))
        _save_tokenizer(tokenizer, source, directory)
    return summary


def _save_tokenizer(tokenizer: Any, source: Path, directory: Path) -> None:
    """Write a tokenizer beside a model, in the files of its source unless these become another one there.

    Without a tokenizer, the other files of the source are copied alone.

    transformers chooses the class of a tokenizer by the type of the model beside it, so the files of a
    Mistral, for one, can be read in another way beside an LPA model.
    """
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    for file in _COPIED_FILES if source.is_dir() else ():
        if (source / file).is_file():
            shutil.copy(source / file, directory)
    if tokenizer is None or _is_read_back(tokenizer, directory):
        return
    tokenizer.save_pretrained(directory)
    if not _is_read_back(tokenizer, directory):
        raise UserError(
            f"tokenizer {source}: transformers would read it in another way beside the new model"
        )


def _is_read_back(tokenizer: Any, directory: Path) -> bool:
    """Whether transformers makes the same tokenizer of a directory."""
    try:
        return tokenizer_hash(from_pretrained(directory)) == tokenizer_hash(tokenizer)
    # Of another library: the settings beside a SentencePiece model may ask for code.
    except Exception:
        return False


def _card(
    source: Path, out: Path, method: str, config: FactorizeConfig, summary: FactorizeResult
) -> CardContent:
    parent = short_name(source)
    text = ""
    if config.calibration_data is not None:
        text = (
            f", with {summary.calibration_tokens:,} tokens of {Path(config.calibration_data).name}"
        )
    errors = ", ".join(f"{name} {error:.3f}" for name, error in summary.relative_error.items())
    return CardContent(
        title=out.resolve().name,
        origin="`lpa convert factorize` made it of another model, of whose projections it keeps the parts "
        "of low rank; train it further before use.",
        facts={
            "Method": method + text,
            "Parameters before": f"{summary.parameters_dense:,}",
            "Relative error": errors,
            **{f"{name} ({parent})": value for name, value in facts_of_card(source).items()},
        },
        parents=[parent],
    )


# Kept as they are, rather than as a newer tokenizer class would write them.
_COPIED_FILES = (*TOKENIZER_FILES, "generation_config.json")


def check_ranks_given(config: FactorizeConfig) -> None:
    """Whether the ranks are said in one way; `ranks` of single projections go with one for the others."""
    given = [config.rank, config.rank_fraction, config.ranks, config.budget]
    if sum(item is not None for item in given) != 1 and not (
        config.ranks is not None
        and config.budget is None
        and (config.rank is None or config.rank_fraction is None)
    ):
        raise UserError(
            f"ranks: got {sum(item is not None for item in given)} settings; expected exactly one of --rank, "
            "--rank-fraction, --ranks and --budget, or --ranks with --rank or --rank-fraction for the rest"
        )


def choose_ranks(
    model: Any,
    found: Mapping[str, nn.Module],
    config: FactorizeConfig,
    windows: Tensor | None,
    method: str,
    *,
    on_progress: ProgressCallback,
) -> dict[str, int]:
    """The rank of each projection as the configuration says it; those that stay dense are missing."""
    if config.budget is not None:
        check_recordable(model, dict.fromkeys(found, 1))
        return ranks_for_budget(
            model, found, config.budget, windows, method, on_progress=on_progress
        )
    return resolve_ranks(
        found, rank=config.rank, ranks=config.ranks, rank_fraction=config.rank_fraction
    )


def windows_for(model: Any, tokenizer: Any, config: FactorizeConfig) -> Tensor:
    """The calibration text in windows; (windows, context).

    Warns where there is less text than asked for.

    Raises:
        UserError: settings that do not fit the model, a text that is too short, or tokens that it has not.
    """
    positions = positions_of(model.config)
    seq_len = min(512, positions or 512) if config.seq_len is None else config.seq_len
    if seq_len < 1 or (positions is not None and seq_len > positions):
        accepted = f"from 1 to {positions}, the model's positions" if positions else "at least 1"
        raise UserError(f"--seq-len: got {seq_len}; expected {accepted}")
    if config.calibration_tokens < seq_len:
        raise UserError(
            f"--calibration-tokens: got {config.calibration_tokens}; expected at least a context of {seq_len}"
        )
    assert config.calibration_data is not None
    windows = calibration_windows(
        config.calibration_data, tokenizer, tokens=config.calibration_tokens, seq_len=seq_len
    )
    text = f"--calibration-data {config.calibration_data}"
    check_vocabulary(int(windows.max()) + 1, model.config, f"{text}: the text")
    # Less than a window may be lost at the end of a text that is long enough.
    if windows.numel() <= config.calibration_tokens - seq_len:
        warnings.warn(
            f"{text}: got {windows.numel():,} tokens; expected {config.calibration_tokens:,} "
            "(--calibration-tokens); moments of few tokens are noisy, so give more text",
            LPAWarning,
            stacklevel=2,
        )
    return windows


def load_dense(source: Path, *, needs_tokenizer: bool = True) -> tuple[Any, Any]:
    """The model, in its own dtype, and the tokenizer of a directory or a GGUF file.

    Args:
        needs_tokenizer: refuse a directory without one, in whose place None is returned otherwise.

    Raises:
        UserError: there is none, it cannot be loaded, or its weights are quantized.
    """
    if is_gguf(source):
        return load_gguf(source)
    directory = model_directory(source)
    config = open_config(directory)
    check_quantization(config)
    model = load_model(directory, config=config)
    check_not_quantized(model)
    has_none = not needs_tokenizer and not has_tokenizer(directory)
    return model, None if has_none else load_model_tokenizer(directory, model.config)
