"""The model card: README.md of a model directory, with the fields that the Hugging Face hub reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from lpa.model.configuration_lpa import ATTENTION_PROJECTIONS, FFN_PROJECTIONS
from lpa.storage.run_directory import BEST_DIRECTORY, FINAL_DIRECTORY

if TYPE_CHECKING:
    from huggingface_hub import EvalResult
    from transformers import PreTrainedModel

    from lpa.model.configuration_lpa import LPAConfig

CARD_FILE = "README.md"
_TEMPLATE = Path(__file__).with_name("model_card.md.j2")
# The field of the card's first lines that holds its table, for cards of models made of this one.
_FACTS_FIELD = "lpa_facts"


@dataclass(frozen=True)
class CardContent:
    """What a card says beside what the model itself shows.

    Attributes:
        title: the name of the model.
        origin: how it was made, in one sentence.
        facts: rows of the table: data, tokens, perplexity, FLOPs.
        parents: directories or repositories that it was made of.
        recipe: YAML.
        perplexity: on held-out text, with the name of that text.
    """

    title: str
    origin: str
    facts: Mapping[str, str] = field(default_factory=dict)
    parents: Sequence[str] = ()
    recipe: str = ""
    perplexity: tuple[float, str] | None = None


def write_model_card(model: "PreTrainedModel", directory: Path, content: CardContent) -> None:
    """Write the card of a model to the directory in which it is saved."""
    from huggingface_hub import ModelCard, ModelCardData

    facts = {**_facts_of(model), **content.facts}
    if content.parents:
        facts["Made of"] = ", ".join(content.parents)
    facts["Made with"] = f"lpa {version('lpa')}"
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["lpa", "low-rank"],
        model_name=content.title,
        eval_results=_eval_results(content),
    )
    setattr(data, _FACTS_FIELD, facts)  # one that the hub does not know, and keeps
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        title=content.title,
        summary=f"{_summary(model)} {content.origin}",
        facts=facts,
        recipe=content.recipe.strip(),
        is_stock=_is_stock(model),
        merges=_merges(model),
    )
    card.save(directory / CARD_FILE)


def short_name(path: Path) -> str:
    """What to call a model or data by its path; the folders above mean nothing elsewhere."""
    path = path.resolve()
    return path.parent.name if path.name in (FINAL_DIRECTORY, BEST_DIRECTORY) else path.name


def facts_of_card(directory: Path) -> dict[str, str]:
    """The table of the card of a run or a model directory; empty where there is no card of ours."""
    from huggingface_hub import ModelCard

    path = directory / FINAL_DIRECTORY / CARD_FILE
    if not path.is_file():
        path = directory / CARD_FILE
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        facts = ModelCard(text).data.get(_FACTS_FIELD) if text.startswith("---") else None
    except (OSError, ValueError, yaml.YAMLError):  # first lines that somebody else wrote
        return {}
    return {str(k): str(v) for k, v in facts.items()} if isinstance(facts, dict) else {}


def _facts_of(model: "PreTrainedModel") -> dict[str, str]:
    return {"Class": type(model).__name__, "Parameters": f"{model.num_parameters():,}"}


def _summary(model: "PreTrainedModel") -> str:
    config = model.config
    if config.model_type == "lpa":
        projections = _low_rank_projections(config)
        if not projections:
            return "A causal language model whose projections are dense."
        kind = {"cola": " (CoLA)", "sltrain": " (SLTrain)"}.get(config.low_rank_method or "", "")
        return f"A causal language model whose low-rank projections{kind} are {projections}."
    if _is_stock(model):
        return f"A causal language model, a stock {type(model).__name__}."
    return f"A {type(model).__name__} of which some projections are low-rank pairs."


def _low_rank_projections(config: "LPAConfig") -> str:
    """Which projections are low-rank, with what ranks and in which layers; empty where none is."""
    groups = []
    for block, names in (
        ("attention", ATTENTION_PROJECTIONS),
        ("the feed-forward network", FFN_PROJECTIONS[config.decoder_type]),
    ):
        by_layers: dict[tuple[int, ...], list[str]] = {}
        for name in names:
            if layers := tuple(_layer_ranks(config, name)):
                by_layers.setdefault(layers, []).append(name)
        for layers, alike in by_layers.items():
            shown = f"those of {block}" if len(alike) == len(names) else ", ".join(alike)
            groups.append(f"{shown} ({_ranks_in_layers(config, alike, layers)})")
    return " and ".join(groups)


def _layer_ranks(config: "LPAConfig", name: str) -> dict[int, int]:
    """Layer -> the rank of a projection, where it is not dense."""
    ranks = {
        layer: config.projection_rank(name, layer) for layer in range(config.num_hidden_layers)
    }
    return {layer: rank for layer, rank in ranks.items() if rank is not None}


def _ranks_in_layers(config: "LPAConfig", names: Sequence[str], layers: tuple[int, ...]) -> str:
    """The ranks of projections that are low-rank in the same layers, such as `rank 8, 1 of 2 layers`."""
    ranks = {rank for name in names for rank in _layer_ranks(config, name).values()}
    low, high = min(ranks), max(ranks)
    text = f"rank {low}" if low == high else f"ranks {low} to {high}"
    depth = config.num_hidden_layers
    return text if len(layers) == depth else f"{text}, {len(layers)} of {depth} layers"


def _is_stock(model: "PreTrainedModel") -> bool:
    from lpa.model.hub.remote_code import needs_remote_code

    return not needs_remote_code(model)


def _merges(model: "PreTrainedModel") -> bool:
    config = model.config
    if config.model_type != "lpa":
        return True
    return (
        config.decoder_type == "llama"
        and config.low_rank_method != "cola"
        and not config.lm_head_bias
    )


def _eval_results(content: CardContent) -> "list[EvalResult] | None":
    from huggingface_hub import EvalResult

    if content.perplexity is None:
        return None
    value, text = content.perplexity
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="text",
            dataset_name=text,
            metric_type="perplexity",
            metric_value=round(value, 4),
        )
    ]
