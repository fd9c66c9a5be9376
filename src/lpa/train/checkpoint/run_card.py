"""What the card of a trained model says of its run."""

import math
from pathlib import Path

import yaml

from lpa.data.manifest import Manifest
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.hub.model_card import CardContent, short_name
from lpa.scoring.perplexity import ValidationPerplexity
from lpa.train.config import RunConfig
from lpa.train.state import TrainState

# Fields that hold paths, of which a card has the last part alone.
_PATHS = (("data", "path"), ("model", "from"), ("distill", "teacher"))
# Standard errors on either side of a mean within which 95% of a normal distribution lie.
_HALF_WIDTH = 1.96


def run_card(
    config: RunConfig,
    model_config: LPAConfig,
    manifest: Manifest,
    state: TrainState,
    validation: ValidationPerplexity | None,
) -> CardContent:
    """The card of the model of a run, without its title.

    Args:
        state: how far the run is.
        validation: on the validation split, where it was taken.
    """
    flops_per_token = config.training_flops_per_token(model_config)
    facts = {
        "Text": _text(manifest),
        "Trained on": f"{state.tokens:,} tokens in {state.step:,} steps, {config.data.seq_len} at a time",
        "Training FLOPs": f"{flops_per_token * state.tokens:.3g}",
    }
    if validation is not None:
        facts["Validation perplexity"] = (
            f"{validation.perplexity:,.2f}{_interval(validation)} per token over "
            f"{validation.tokens:,} tokens"
        )
        if not math.isnan(validation.bits_per_byte):
            facts["Validation bits per byte"] = f"{validation.bits_per_byte:.4f}"
    given = config.to_dict()
    for section, field in _PATHS:
        if given[section][field] is not None:
            given[section][field] = short_name(Path(given[section][field]))
    parents = [given[section][field] for section, field in _PATHS[1:]]
    return CardContent(
        title="",
        origin="It was trained with `lpa train`.",
        facts=facts,
        parents=[parent for parent in parents if parent is not None],
        recipe=yaml.safe_dump(given, sort_keys=False),
        perplexity=None
        if validation is None
        else (validation.perplexity, f"{given['data']['path']}, validation split"),
    )


def _interval(validation: ValidationPerplexity) -> str:
    """The 95% interval as text, empty without a standard error."""
    half = _HALF_WIDTH * validation.standard_error
    low, high = validation.perplexity - half, validation.perplexity + half
    return "" if math.isnan(half) else f" (95% interval {low:,.2f} to {high:,.2f})"


def _text(manifest: Manifest) -> str:
    """The files that a prepared data directory was made of, and how much text they have."""
    sources = manifest.source.get("sources")
    files = [
        Path(str(file[0])).name
        for source in (sources.get("train", []) if isinstance(sources, dict) else [])
        for file in source.get("files", [])
    ]
    names = ", ".join(files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
    train = manifest.splits["train"]
    return f"{names or 'unnamed'}: {train.documents:,} documents, {train.tokens:,} tokens"
