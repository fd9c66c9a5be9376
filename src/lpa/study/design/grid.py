"""From a declared grid to configurations of `lpa train`."""

import hashlib
import itertools
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from lpa.data.manifest import Manifest
from lpa.errors import LPAWarning, UserError, expected_one_of
from lpa.model.configuration_lpa import PLACEMENTS, LPAConfig
from lpa.model.cost import parameter_count, training_flops_per_token
from lpa.model.presets import preset_config
from lpa.storage.records import Count, Finite, read_yaml
from lpa.study.design.cost_match import match_cost
from lpa.train.config import RunConfig

STUDIES = ("placement", "rank", "sublayers", "surplus", "scale", "tuning", "recipe", "rivals")
SCALES = ("tiny", "femto", "pico", "nano", "micro", "130m", "370m", "3b")

# What a variant says beside fields of the configuration.
_MATCH, _BASELINE = "match", "baseline"

# What `tuning` and its like may choose. Anything else would train one placement on other data, for longer or
# in another model than those that it is compared with.
_TUNABLE_FIELDS = (
    "optim.",
    "model.initializer_range",
    "model.initialization",
    "model.residual_scaling",
)

# The sections that decide how many tokens a run takes.
_LENGTH_SECTIONS = ("data.", "train.")

# Where data lies and how it is read does not make a run another one.
_NOT_IN_RUN_ID = ("path", "workers", "verify")


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
        """Of all variants, one seed."""
        return sum(float(v.train_flops_per_token) * v.tokens for v in self.variants)

    def config(self, variant: Variant, seed: int, data: Path) -> RunConfig:
        """The run of a variant with a seed."""
        settings = self.base | variant.overrides | {"train.seed": seed, "data.path": data}
        return _run_config(settings)


def read_grid(name: str) -> dict[str, Any]:
    """A grid as it is declared.

    Raises:
        UserError: there is none of this name.
    """
    if name not in STUDIES:
        raise UserError(f"study: got {name!r}; {expected_one_of(name, STUDIES)}")
    return _read_grid_file(name)


def expand_grid(
    name: str,
    scale: str,
    *,
    vocab_size: int | None = None,
    steps: int | None = None,
    tokens_per_parameter: float | None = None,
    only: Sequence[str] = (),
    tuned: dict[str, dict[str, Any]] | None = None,
) -> Study:
    """All variants of a study at a scale, with their costs.

    Args:
        vocab_size: of the data; by default what the scale is meant for.
        steps: of training, in place of the scale's; a warm-up takes a tenth of them at most.
        tokens_per_parameter: of training, for each parameter of the baseline, in place of the scale's; the
            warm-up then takes a hundredth of the steps. All variants see the same number of tokens.
        only: the names of the variants to keep; by default all.
        tuned: settings found by tuning, over the scale's, by placement or where the grid says so by variant.

    Raises:
        UserError: no such study or scale, a setting that is not accepted, or tuned settings of some of
            the placements alone, which would be compared with what is not tuned.
    """
    grid = read_grid(name)
    if scale not in SCALES:
        raise UserError(f"--scale: got {scale!r}; {expected_one_of(scale, SCALES)}")
    declared = _read_grid_file("scales")[scale]
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
    vocabulary = vocab_size or declared["vocab_size"]
    if tokens_per_parameter is not None:
        base |= _length_by_parameters(base, tokens_per_parameter, vocabulary)
    sizes = _Sizes.from_settings(base)
    study.baseline = _variant_name(grid["baseline"], sizes)
    study.base = _resolve_expressions(base, sizes)
    config = _run_config(study.base)
    study.base |= _short_warmup(config)
    study.base["train.eval_every"] = max(1, config.train.steps // 8)
    # Tuned settings belong to every study but the one that finds them.
    tuned = {} if study.tunes else tuned or {}
    built: dict[str, LPAConfig] = {}
    for template, declared_overrides in _grid_points(grid):
        label = _variant_name(template, sizes)
        overrides = _resolve_expressions(declared_overrides, sizes)
        wanted = overrides.pop(_MATCH, None)
        baseline = _variant_name(overrides.pop(_BASELINE, grid["baseline"]), sizes)
        tuned_for = label if _is_tuned_by_variant(grid) else _placement(overrides)
        if tuned and tuned_for not in tuned and (not only or label in only):
            raise UserError(
                f"--tuned: got settings of {', '.join(tuned)} alone; expected those of {tuned_for} too, "
                f"which {name} trains"
            )
        overrides = tuned.get(tuned_for, {}) | overrides
        config = _run_config(study.base | overrides)
        overrides |= _short_warmup(config)
        model = _build_model_config(config, vocabulary)
        ratio = None
        if wanted:
            changes, ratio = match_cost(model, built[wanted["to"]], wanted, config.data.seq_len)
            overrides |= changes
            config = _run_config(study.base | overrides)
            model = _build_model_config(config, vocabulary)
        built[label] = model
        study.variants.append(
            Variant(
                name=label,
                baseline=baseline,
                overrides=overrides,
                match=ratio,
                parameters=parameter_count(model),
                train_flops_per_token=training_flops_per_token(model, config.data.seq_len),
                tokens=_total_tokens(config),
            )
        )
    if only:
        study.variants = _select(study, only)
    return study


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


def read_claims() -> dict[str, Any]:
    """What the paper says, by study, and its `source`."""
    return _read_grid_file("claims")


def scale_vocab_size(scale: str) -> int:
    """The vocabulary that a scale is meant for."""
    return _read_grid_file("scales")[scale]["vocab_size"]


def tuned_names(study: str) -> tuple[str, ...]:
    """What the settings of a file for `--tuned` go by: placements, or the variants of the study."""
    grid = read_grid(study)
    return tuple(grid["variants"]) if _is_tuned_by_variant(grid) else PLACEMENTS


def _is_tuned_by_variant(grid: dict[str, Any]) -> bool:
    return grid.get("tuned_by") == "variant"


def read_tuned(path: Path, accepted: tuple[str, ...] = PLACEMENTS) -> dict[str, dict[str, Any]]:
    """Settings by placement, or by another name, as tuning writes them.

    Args:
        accepted: the names, see `tuned_names`.

    Raises:
        UserError: no such file, not one of that form, or a value that a run cannot have.
    """
    try:
        tuned = read_yaml(path, dict[str, dict[str, Any]])
    except UserError as error:
        raise UserError(f"--tuned {error}; expected what `tuning` writes") from error
    for name, settings in tuned.items():
        if name not in accepted:
            what = "placement" if accepted == PLACEMENTS else "variant"
            raise UserError(f"--tuned {path}: got {what} {name!r}; expected {', '.join(accepted)}")
        for key in settings:
            if not key.startswith(_TUNABLE_FIELDS):
                raise UserError(
                    f"--tuned {path}: got {key} of {name}; expected {', '.join(_TUNABLE_FIELDS[1:])} "
                    "or one of optim, such as optim.lr"
                )
        try:
            _run_config(settings)
        except UserError as error:
            raise UserError(f"--tuned {path}: {name}: {error}") from error
    return tuned


def data_hashes(manifest: Manifest, data: Path) -> dict[str, Any]:
    """Hashes of tokens and tokenizer: the same data in another directory are the same.

    Raises:
        UserError: none held out to score runs on.
    """
    if not {"validation", "test"} & manifest.splits.keys():
        raise UserError(
            f"--data {data}: has only a train split; expected a validation or test split"
        )
    tokens = {name: [s.sha256 for s in split.shards] for name, split in manifest.splits.items()}
    return {"tokenizer": manifest.tokenizer_sha256, **tokens}


def run_id(config: RunConfig, data: dict[str, Any], vocab_size: int) -> str:
    """The name of a run's directory: of its model, its settings and its data, not of the code's version."""
    settings = config.to_dict()
    settings["model"] = _model_fields(_build_model_config(config, vocab_size))
    settings["data"] = {k: v for k, v in settings["data"].items() if k not in _NOT_IN_RUN_ID}
    # null is the default of a field, so that a new field leaves the names of old runs alone.
    identifying = {
        section: {name: value for name, value in values.items() if value is not None}
        for section, values in settings.items()
        if section not in ("checkpoint", "parallel")
    }
    text = json.dumps([identifying, data], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _model_fields(model: LPAConfig) -> dict[str, Any]:
    """What was said in other words is the same model; how pairs start says nothing where there are none."""
    ranks = {
        name: [model.projection_rank(name, layer) for layer in range(model.num_hidden_layers)]
        for name in model.projections
    }
    settings = model.to_dict()
    for said_by_ranks in ("placement", "rank", "ffn_rank", "dense_layers", "transformers_version"):
        settings.pop(said_by_ranks, None)
    if not any(rank for of_layers in ranks.values() for rank in of_layers):
        settings.pop("initialization")
    return settings | {"ranks": ranks}


def _length_by_parameters(
    base: dict[str, Any], tokens_per_parameter: float, vocab_size: int
) -> dict[str, Any]:
    """Tokens of training and steps of warm-up, by the parameters of the dense model."""
    sizes = _Sizes.from_settings(base)
    dense = _resolve_expressions(base, sizes) | {"model.placement": "none"}
    parameters = parameter_count(_build_model_config(_run_config(dense), vocab_size))
    tokens = round(tokens_per_parameter * parameters)
    if tokens < 1:
        raise UserError(
            f"--tokens-per-parameter: got {tokens_per_parameter}; expected a positive number"
        )
    length = {"train.tokens": tokens}
    steps = _run_config(dense | length).train.steps
    return length | {"optim.warmup_steps": -(-steps // 100)}


def _short_warmup(config: RunConfig) -> dict[str, Any]:
    """What to change where a warm-up would take more than a tenth of the steps."""
    max_warmup_steps = -(-config.train.steps // 10)
    return (
        {"optim.warmup_steps": max_warmup_steps}
        if config.optim.warmup_steps > max_warmup_steps
        else {}
    )


def _read_grid_file(name: str) -> dict[str, Any]:
    return yaml.safe_load((files("lpa.study") / "grids" / f"{name}.yaml").read_text("utf-8"))


def _grid_points(grid: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The variants listed, then the product of the axes."""
    points = list(grid.get("variants", {}).items())
    axes = grid.get("axes", {})
    for choice in itertools.product(*(axis.items() for axis in axes.values())) if axes else ():
        label = ", ".join(f"{axis}={key}" for axis, (key, _) in zip(axes, choice, strict=True))
        points.append((label, {k: v for _, settings in choice for k, v in settings.items()}))
    return points


@dataclass
class _Sizes:
    """What `d/4` and the like refer to: the scale's widths, heads, tokens, steps and learning rate."""

    d: int
    f: int
    h: int
    t: int
    s: int
    lr: float

    @classmethod
    def from_settings(cls, base: dict[str, Any]) -> "_Sizes":
        config = preset_config(base["model.preset"])
        length = _run_config({k: v for k, v in base.items() if k.startswith(_LENGTH_SECTIONS)})
        return cls(
            d=base.get("model.hidden_size", config.hidden_size),
            f=base.get("model.intermediate_size", config.intermediate_size),
            h=base.get("model.num_attention_heads", config.num_attention_heads),
            t=_total_tokens(length),
            s=length.train.steps,
            lr=base["optim.lr"],
        )


def _resolve_expressions(value: Any, sizes: _Sizes) -> Any:
    """With every expression such as `3d/8` replaced by its number: whole, except of a learning rate."""
    if isinstance(value, dict):
        return {
            key: item if key in (_BASELINE, _MATCH) else _resolve_expressions(item, sizes)
            for key, item in value.items()
        }
    if isinstance(value, str) and (found := re.fullmatch(r"(\d*)([dfhts]|lr)(?:/(\d+))?", value)):
        factor, name, divisor = found.groups()
        product = int(factor or 1) * getattr(sizes, name)
        return product / int(divisor or 1) if name == "lr" else max(1, product // int(divisor or 1))
    return value


def _variant_name(name: str, sizes: _Sizes) -> str:
    """A variant's name with what stands in braces replaced by its number."""
    return re.sub(r"\{(.+?)\}", lambda found: f"{_resolve_expressions(found[1], sizes):g}", name)


def _placement(overrides: dict[str, Any]) -> str:
    """Whose tuned settings apply: with single projections of low rank, those of attention."""
    placement = overrides.get("model.placement", "attention")
    return "attention" if placement == "none" and overrides.get("model.ranks") else placement


def _run_config(settings: dict[str, Any]) -> RunConfig:
    """From dotted fields.

    Raises:
        UserError: a field that does not exist, or a value that it does not accept.
    """
    sections: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in settings.items():
        section, _, key = name.partition(".")
        sections[section][key] = value
    sections["data"].setdefault("path", Path("data"))
    return RunConfig.from_dict(sections)


def _total_tokens(config: RunConfig) -> int:
    return config.train.steps * config.train.batch_size * config.data.seq_len


def _build_model_config(config: RunConfig, vocab_size: int) -> LPAConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LPAWarning)  # a rank beyond break-even is meant here
        return config.model.build(vocab_size=vocab_size, seq_len=config.data.seq_len)
