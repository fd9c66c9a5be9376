"""From a declared grid to configurations of `lpa train`."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lpa.device import dtype_name, fast_dtype, planned_device_type
from lpa.errors import UserError, expected_one_of
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.cost import parameter_count
from lpa.storage.records import Count, Finite
from lpa.study.design.cost_match import match_cost, read_match
from lpa.study.design.expressions import BASELINE, MATCH, Sizes, resolve_expressions, variant_name
from lpa.study.design.grid_files import SCALES, is_tuned_by_variant, read_grid, read_grid_file
from lpa.study.design.run_configs import build_model_config, run_config, total_tokens
from lpa.train.config import RunConfig
from lpa.train.config.train_config import SAME_LENGTHS

_MAX_TOKENS_PER_PARAMETER = 1_000_000  # as on the command line


@dataclass
class Variant:
    """One model of a study, before a seed is chosen.

    Attributes:
        name: within the study.
        baseline: the variant that it is compared with.
        overrides: dotted fields of the configuration over the scale's, all resolved to values.
        match: cost of the model over that of the one it was matched to; None where none was asked for.
        parameters, train_flops_per_token, tokens: by the planner.
        tunes: the variant whose learning rate this one tries; None where it tries none.
    """

    name: str
    baseline: str
    overrides: dict[str, Any]
    match: Finite | None
    parameters: Count
    train_flops_per_token: Count
    tokens: Count
    tunes: str | None = None


@dataclass
class Study:
    """A grid at a scale, expanded.

    Attributes:
        device, flops_per_second: what estimates of time assume.
        tunes: whether the best settings by placement, or by variant, are kept as a file.
        first_seed: of the runs.
    """

    name: str
    scale: str
    question: str
    baseline: str
    device: str
    flops_per_second: Finite
    tunes: bool
    base: dict[str, Any]
    variants: list[Variant] = field(default_factory=list)
    first_seed: Count = 0

    @property
    def flops(self) -> float:
        """Training FLOPs of all variants, for one seed."""
        return sum(float(v.train_flops_per_token) * v.tokens for v in self.variants)

    def config(self, variant: Variant, seed: int, data: Path) -> RunConfig:
        """The run of a variant with a seed."""
        settings = self.base | variant.overrides | {"train.seed": seed, "data.path": data}
        return run_config(settings)


def expand_grid(
    name: str,
    scale: str,
    *,
    vocab_size: int | None = None,
    steps: int | None = None,
    tokens_per_parameter: float | None = None,
    only: Sequence[str] = (),
    tuned: dict[str, dict[str, Any]] | None = None,
    dtype: str | None = None,
) -> Study:
    """All variants of a study at a scale, with their costs.

    Args:
        vocab_size: of the data; by default what the scale is meant for.
        steps: of training, in place of the scale's; a warmup takes a tenth of them at most.
        tokens_per_parameter: of training, for each parameter of the baseline, in place of the scale's; the
            warmup then takes a hundredth of the steps. All variants see the same number of tokens.
        only: the names of the variants to keep; by default all.
        tuned: settings found by tuning, over the scale's, by placement or where the grid says so by variant.
        dtype: of the arithmetic where the scale leaves it open; by default what is fast on this machine. All
            runs of a study share it, on whatever machines they run.

    Raises:
        UserError: no such study or scale, a setting that is not accepted, or tuned settings of some of
            the placements alone, which would be compared with what is not tuned.
    """
    grid = read_grid(name)
    if scale not in SCALES:
        raise UserError(f"--scale: got {scale!r}; {expected_one_of(scale, SCALES)}")
    declared = read_grid_file("scales")[scale]
    base = declared["config"] | grid.get("scales", {}).get(scale, {})
    if steps is not None:
        if steps < 1:
            raise UserError(f"--steps: got {steps}; expected at least 1")
        base |= {"train.steps": steps, "train.tokens": None}
    study = Study(
        name=name,
        scale=scale,
        question=grid["question"],
        baseline="",
        device=declared["device"],
        flops_per_second=declared["flops_per_second"],
        tunes=grid.get("tunes", False),
        base={},
    )
    base = _with_dtype(base, dtype)
    vocabulary = vocab_size or declared["vocab_size"]
    if tokens_per_parameter is not None:
        base |= _length_by_parameters(base, tokens_per_parameter, vocabulary)
    sizes = Sizes.from_settings(base)
    study.baseline = variant_name(grid["baseline"], sizes)
    study.base = resolve_expressions(base, sizes)
    config = run_config(study.base)
    study.base |= _short_warmup(config)
    study.base["train.eval_every"] = max(1, config.train.steps // 8)
    # Tuned settings belong to every study but the one that finds them.
    tuned = {} if study.tunes else tuned or {}
    built: dict[str, LPAConfig] = {}
    for template, declared_overrides in _grid_points(grid):
        label = variant_name(template, sizes)
        overrides = resolve_expressions(declared_overrides, sizes)
        declared_match = overrides.pop(MATCH, None)
        baseline = variant_name(overrides.pop(BASELINE, grid["baseline"]), sizes)
        tuned_for = label if is_tuned_by_variant(grid) else _placement(overrides)
        if tuned and tuned_for not in tuned and (not only or label in only):
            raise UserError(
                f"--tuned: got settings of {', '.join(tuned)} alone; expected those of {tuned_for} too, "
                f"which {name} trains"
            )
        overrides = tuned.get(tuned_for, {}) | _decide_length(overrides)
        config = run_config(study.base | overrides)
        overrides |= _short_warmup(config)
        model = build_model_config(config, vocabulary)
        ratio = None
        if declared_match is not None:
            wanted = read_match(declared_match, f"{name}: {label}: {MATCH}", built, sizes)
            changes, ratio = match_cost(model, built[wanted["to"]], wanted, config.data.seq_len)
            overrides |= changes
            config = run_config(study.base | overrides)
            model = build_model_config(config, vocabulary)
        built[label] = model
        study.variants.append(
            Variant(
                name=label,
                baseline=baseline,
                overrides=overrides,
                match=ratio,
                parameters=parameter_count(model),
                train_flops_per_token=config.training_flops_per_token(model),
                tokens=total_tokens(config),
            )
        )
    _check_names(study)
    if only:
        study.variants = _select(study, only)
    return study


def _check_names(study: Study) -> None:
    """Whether each variant is named once, and is compared with one of them.

    Raises:
        UserError: naming one that is not.
    """
    names = [variant.name for variant in study.variants]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{study.name}: variants: got {name!r} twice at {study.scale}; expected different names"
            )
    for baseline in [study.baseline, *(variant.baseline for variant in study.variants)]:
        if baseline not in names:
            raise UserError(
                f"{study.name}: {BASELINE}: got {baseline!r}; {expected_one_of(baseline, names)}"
            )


def _select(study: Study, only: Sequence[str]) -> list[Variant]:
    """The variants of these names, with the baseline, in the grid's order."""
    names = [variant.name for variant in study.variants]
    for name in only:
        if name not in names:
            raise UserError(f"--variants: got {name!r}; {expected_one_of(name, names)}")
    kept = [v for v in study.variants if v.name in only]
    for variant in kept:
        if variant.baseline not in only:
            raise UserError(
                f"--variants: got {', '.join(only)}; expected {variant.baseline} too, which {variant.name} "
                "is compared with"
            )
    return kept


def _with_dtype(base: dict[str, Any], dtype: str | None) -> dict[str, Any]:
    """The settings with `train.dtype` decided; float32, the default of the field, goes unsaid."""
    declared = base.get("train.dtype", "float32")
    if declared == "auto":
        device_type = planned_device_type(base.get("train.device", "auto"))
        declared = dtype or dtype_name(fast_dtype(device_type))
    unsaid = {name: value for name, value in base.items() if name != "train.dtype"}
    return unsaid if declared == "float32" else base | {"train.dtype": declared}


def _length_by_parameters(
    base: dict[str, Any], tokens_per_parameter: float, vocab_size: int
) -> dict[str, Any]:
    """Tokens of training and steps of warmup, by the parameters of the dense model."""
    if not 0 < tokens_per_parameter <= _MAX_TOKENS_PER_PARAMETER:
        raise UserError(
            f"--tokens-per-parameter: got {tokens_per_parameter}; expected a number above 0, at most "
            f"{_MAX_TOKENS_PER_PARAMETER:,}"
        )
    sizes = Sizes.from_settings(base)
    dense = resolve_expressions(base, sizes) | {"model.placement": "none"}
    parameters = parameter_count(build_model_config(run_config(dense), vocab_size))
    tokens = round(tokens_per_parameter * parameters)
    if tokens < 1:
        raise UserError(
            f"--tokens-per-parameter: got {tokens_per_parameter}; expected enough for one token"
        )
    length = {"train.tokens": tokens}
    steps = run_config(dense | length).train.steps
    return length | {"optim.warmup_steps": -(-steps // 100)}


def _decide_length(overrides: dict[str, Any]) -> dict[str, Any]:
    """A variant's fields, with steps and samples that take the place of the scale's tokens."""
    cleared = {
        f"train.{tokens}": None for field, tokens in SAME_LENGTHS if f"train.{field}" in overrides
    }
    return cleared | overrides


def _short_warmup(config: RunConfig) -> dict[str, Any]:
    """What to change where a warmup would take more than a tenth of the steps."""
    max_warmup_steps = -(-config.train.steps // 10)
    return (
        {"optim.warmup_steps": max_warmup_steps}
        if config.optim.warmup_steps > max_warmup_steps
        else {}
    )


def _grid_points(grid: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The variants listed, then the product of the axes."""
    points = list(grid.get("variants", {}).items())
    axes = grid.get("axes", {})
    for choice in itertools.product(*(axis.items() for axis in axes.values())) if axes else ():
        label = ", ".join(f"{axis}={key}" for axis, (key, _) in zip(axes, choice, strict=True))
        points.append((label, {k: v for _, settings in choice for k, v in settings.items()}))
    return points


def _placement(overrides: dict[str, Any]) -> str:
    """Whose tuned settings apply: with single projections of low rank, those of attention."""
    placement = overrides.get("model.placement", "attention")
    return "attention" if placement == "none" and overrides.get("model.ranks") else placement
