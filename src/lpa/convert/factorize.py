"""A dense checkpoint as a model with low-rank projections."""

import copy
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lpa.convert.calibration import (
    Inputs,
    calibration_windows,
    drifted_moments,
    input_moments,
    layers_of,
    open_stream,
)
from lpa.convert.merge import TOKENIZER_FILES
from lpa.convert.spread import Budget, budget_ranks
from lpa.errors import LPAWarning, UserError
from lpa.lowrank import best_factors, squared_error, updated_up, whitened_factors
from lpa.model.configuration_lpa import ATTENTION_PROJECTIONS, FFN_PROJECTIONS, LPAConfig
from lpa.model.loading import load_model, model_directory, open_config
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.model.pairs import dense_weight, fill_pair, pair_like
from lpa.model.surgery import (
    check_cuttable,
    check_finite,
    check_quantization,
    find_projections,
    record_pairs,
    resolve_ranks,
)
from lpa.outputs import MODEL, check_output, new_directory

CUTS = ("svd", "whitened", "updated")

Report = Callable[[str, int, int], None]


@dataclass
class Factorized:
    """What a conversion made; the keys of `lpa convert factorize --json`.

    Attributes:
        model_class: of the result.
        parameters_dense, parameters: before and after.
        kv_bytes_per_token_dense, kv_bytes_per_token: keys and values of all layers, in the model's dtype;
            after, as the latent cache holds them where the model is an `LPAForCausalLM`.
        relative_error: by kind of projection, √(Σ‖(W - B A) x‖² / Σ‖W x‖²) over layers and calibration
            text, or of the matrices themselves where there was no text.
        ranks: by projection; what is missing stayed dense.
    """

    model_class: str
    parameters_dense: int
    parameters: int
    kv_bytes_per_token_dense: int
    kv_bytes_per_token: int
    relative_error: dict[str, float]
    ranks: dict[str, int]


@torch.no_grad()
def cut_model(
    model: PreTrainedModel,
    ranks: Mapping[str, int],
    cut: str = "whitened",
    windows: Tensor | None = None,
    *,
    report: Report = lambda what, done, total: None,
) -> dict[str, float]:
    """Replace projections of a model by pairs, layer by layer, in place.

    `svd` looks at weights alone (with windows, only its error is measured on them). `whitened` cuts
    each projection for what it reads in the dense model. `updated` starts from the same factors and then,
    in the order in which a layer applies its projections, solves for each up factor on what the projection
    reads in the model that is cut up to there, so that it makes up for the drift of what lies before.

    Args:
        ranks: full name -> rank.
        windows: (windows, context), calibration tokens.

    Returns:
        By kind of projection, the relative error (see `Factorized`).

    Raises:
        UserError: no windows where the cut needs them, weights or activations that are not finite, or
            projections outside the layers, which text is not streamed to.
    """
    check_cut(cut, windows is not None)
    prefix, layers = layers_of(model)
    model.eval()
    found = {name: model.get_submodule(name) for name in ranks}
    for name, module in found.items():
        check_finite(name, dense_weight(module))
    errors: dict[str, list[float]] = {}
    stream = None if windows is None else open_stream(model, windows)
    drifted = stream.copy() if stream is not None and cut == "updated" else None
    outside = [n for n in found if not re.match(rf"{re.escape(prefix)}\.\d+\.", n)]
    if outside and stream is not None:
        raise UserError(
            f"--projections: {outside[0]} lies outside the layers; cut it with --cut svd"
        )
    _cut_group(model, {n: found[n] for n in outside}, ranks, "svd", None, errors)
    for index, layer in enumerate(layers):
        here = f"{prefix}.{index}."
        mine = {n: m for n, m in found.items() if n.startswith(here)}
        if stream is None:
            _cut_group(model, mine, ranks, "svd", None, errors)
        else:
            dense = copy.deepcopy(layer)
            groups = input_moments(stream, layer, index, mine) if mine else []
            for group in groups:
                part = {n: mine[n] for n in group.names}
                corrected = None
                if drifted is not None:
                    first = group.names[0]
                    corrected = drifted_moments(
                        stream,
                        drifted,
                        (dense, layer),
                        index,
                        (dense.get_submodule(first.removeprefix(here)), mine[first]),
                        first,
                    )
                _cut_group(model, part, ranks, cut, group, errors, corrected)
            if drifted is not None:
                drifted.advance(layer, index)
            stream.advance(dense, index)
        report("layers", index + 1, len(layers))
    return {kind: (rest / max(whole, 1e-300)) ** 0.5 for kind, (rest, whole) in errors.items()}


def _cut_group(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    ranks: Mapping[str, int],
    cut: str,
    inputs: Inputs | None,
    errors: dict[str, list[float]],
    corrected: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Cut projections that read the same input."""
    moment = None if inputs is None else inputs.moment
    rows = 1 if inputs is None else inputs.rows
    for name, module in modules.items():
        weight = dense_weight(module)
        if cut == "svd" or moment is None:
            down, up = best_factors(weight.double(), ranks[name])
        else:
            down, up = whitened_factors(weight.double(), moment, ranks[name])
        if corrected is not None:
            up = updated_up(weight, *corrected, down, up)
        pair = fill_pair(pair_like(module, ranks[name]), module, down, up)
        model.set_submodule(name, pair.train(module.training))
        sums = errors.setdefault(name.rpartition(".")[2], [0.0, 0.0])
        for position, energy in enumerate(squared_error(weight, down, up, moment)):
            sums[position] += rows * energy


def check_cut(cut: str, has_text: bool) -> None:
    if cut not in CUTS:
        raise UserError(f"--cut: got {cut!r}; expected one of {', '.join(CUTS)}")
    if cut != "svd" and not has_text:
        raise UserError(f"--cut {cut}: needs --calibrate TEXT; without text there is --cut svd")


def lpa_config(model: PreTrainedModel, ranks: Mapping[str, int]) -> LPAConfig | None:
    """The configuration of the same function as an `LPAForCausalLM`, or None where it cannot be one.

    It can for Llama, and for Mistral without a sliding window, where nothing but projections was cut.
    """
    config: Any = model.config
    if type(model).__name__ not in ("LlamaForCausalLM", "MistralForCausalLM"):
        return None
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        return None
    if getattr(config, "sliding_window", None) is not None:
        return None
    kinds = (*ATTENTION_PROJECTIONS, *FFN_PROJECTIONS["llama"])
    layers = config.num_hidden_layers
    own: dict[str, list[int | None]] = {kind: [None] * layers for kind in kinds}
    for name, rank in ranks.items():
        match = re.fullmatch(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)", name)
        if match is None or match[2] not in own:
            return None
        own[match[2]][int(match[1])] = rank
    cut = {kind: set(values) != {None} for kind, values in own.items()}
    attention = any(cut[kind] for kind in ATTENTION_PROJECTIONS)
    ffn = any(cut[kind] for kind in FFN_PROJECTIONS["llama"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LPAWarning)  # said once already, when ranks were chosen
        return LPAConfig(
            **{
                field: getattr(config, field)
                for field in (
                    "vocab_size",
                    "hidden_size",
                    "intermediate_size",
                    "num_hidden_layers",
                    "num_attention_heads",
                    "num_key_value_heads",
                    "head_dim",
                    "hidden_act",
                    "max_position_embeddings",
                    "initializer_range",
                    "rms_norm_eps",
                    "attention_dropout",
                    "tie_word_embeddings",
                    "rope_parameters",
                    "pad_token_id",
                    "bos_token_id",
                    "eos_token_id",
                )
            },
            placement="all" if attention and ffn else "attention" if attention else "ffn",
            rank=max(ranks.values()),
            # One number where all layers have the same.
            ranks={k: v[0] if len(set(v)) == 1 else v for k, v in own.items()},
            dtype=model.dtype,
        )


def to_lpa(model: PreTrainedModel, config: LPAConfig) -> LPAForCausalLM:
    """A cut Llama as an `LPAForCausalLM` with the same tensors, which has the same names for them."""
    result = LPAForCausalLM(config).to(dtype=model.dtype, device=model.device)
    result.load_state_dict(model.state_dict(), strict=True)
    result.generation_config = model.generation_config
    return result.eval()


def factorize(
    model: PreTrainedModel,
    ranks: Mapping[str, int],
    cut: str = "whitened",
    windows: Tensor | None = None,
    *,
    report: Report = lambda what, done, total: None,
) -> tuple[PreTrainedModel, Factorized]:
    """Cut a model (in place) and give it the class that holds the result; see `cut_model`."""
    before = model.num_parameters()
    cache = _plain_cache_bytes(model)
    errors = cut_model(model, ranks, cut, windows, report=report)
    config = lpa_config(model, ranks)
    result: PreTrainedModel = model
    after = cache
    if config is None:
        record_pairs(model)
    else:
        from lpa.model.plan import cache_bytes

        result = to_lpa(model, config)
        after = cache_bytes(config, model.dtype.itemsize)["latent"]
    figures = Factorized(
        type(result).__name__, before, result.num_parameters(), cache, after, errors, dict(ranks)
    )
    return result, figures


def _plain_cache_bytes(model: PreTrainedModel) -> int:
    config: Any = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * int(config.num_hidden_layers) * int(heads) * int(width) * model.dtype.itemsize


@dataclass
class Request:
    """How to cut; the flags of `lpa convert factorize`.

    Attributes:
        placement, projections: which projections (see `find_projections`).
        rank, keep, ranks: see `resolve_ranks`.
        budget: instead of them.
        cut: one of `CUTS`; None: `whitened` with text, `svd` without.
        calibrate: text, as `lpa prepare` takes it.
        tokens, context: how much of it; context None is 512, or the model's positions if fewer.
    """

    placement: str = "attention"
    projections: str | None = None
    rank: int | None = None
    keep: float | None = None
    ranks: Mapping[str, int | None] | None = None
    budget: Budget | None = None
    cut: str | None = None
    calibrate: str | None = None
    tokens: int = 32768
    context: int | None = None


def factorize_directory(
    source: Path,
    out: Path,
    request: Request,
    *,
    device: str = "cpu",
    overwrite: bool = False,
    report: Report = lambda what, done, total: None,
) -> Factorized:
    """Cut the model of a Hugging Face directory or a GGUF file into a new directory.

    Tokenizer, generation configuration and chat template come along. `out` appears once it is whole.

    Raises:
        UserError: bad input of any kind; nothing is written then.
    """
    check_output(out, MODEL, overwrite=overwrite)
    cut = request.cut or ("svd" if request.calibrate is None else "whitened")
    check_cut(cut, request.calibrate is not None)
    chosen = [request.rank, request.keep, request.ranks, request.budget]
    if sum(item is not None for item in chosen) != 1 and not (
        request.ranks is not None
        and request.budget is None
        and (request.rank is None or request.keep is None)
    ):
        raise UserError("ranks: expected exactly one of --rank, --keep, --ranks and --budget")
    model, tokenizer = load_dense(source)
    model.to(device)
    found = find_projections(model, request.placement, request.projections)
    for name, tensor in model.named_parameters():
        check_finite(name.removesuffix(".weight"), tensor.detach())
    windows = None
    if request.calibrate is not None:
        windows = _windows(model, tokenizer, request)
    if request.budget is not None:
        ranks = budget_ranks(model, found, request.budget, windows, cut, report=report)
    else:
        ranks = resolve_ranks(found, rank=request.rank, ranks=request.ranks, keep=request.keep)
    result, figures = factorize(model, ranks, cut, windows, report=report)
    with new_directory(out, MODEL, overwrite=overwrite) as directory:
        result.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        if source.is_dir():
            for file in _CARRIED:
                if (source / file).is_file():
                    shutil.copy(source / file, directory)
    return figures


# Kept as they are, rather than as a newer tokenizer class would write them.
_CARRIED = (*TOKENIZER_FILES, "generation_config.json")


def _windows(model: Any, tokenizer: Any, request: Request) -> Tensor:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", 512)
    context = min(512, positions) if request.context is None else request.context
    if not 1 <= context <= positions:
        raise UserError(
            f"--context: got {context}; expected from 1 to {positions}, the model's positions"
        )
    if request.tokens < context:
        raise UserError(
            f"--calibrate-tokens: got {request.tokens}; expected at least a context of {context}"
        )
    assert request.calibrate is not None
    return calibration_windows(request.calibrate, tokenizer, tokens=request.tokens, context=context)


def load_dense(source: Path) -> tuple[Any, Any]:
    """The model, in its own dtype, and the tokenizer of a directory or a GGUF file.

    Raises:
        UserError: there is none, it cannot be loaded, or its weights are quantised.
    """
    if source.is_file() or source.suffix == ".gguf":
        from lpa.convert.gguf_import import load_gguf

        return load_gguf(source)
    from lpa.data.tokenizer import load_model_tokenizer

    directory = model_directory(source)
    config = open_config(directory)
    check_quantization(config)
    model = load_model(directory, config=config)
    check_cuttable(model)
    return model, load_model_tokenizer(directory, model.config)


def as_json(figures: Factorized) -> dict[str, Any]:
    return asdict(figures)
