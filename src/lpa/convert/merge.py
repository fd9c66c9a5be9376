"""A low-rank model as a stock one: each pair folded into one dense matrix."""

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils.hub import CHAT_TEMPLATE_DIR

from lpa.convert.llama_fields import llama_values
from lpa.errors import UserError
from lpa.lowrank import LowRankLinear
from lpa.model.auto import LATENT
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.hub.model_card import CardContent, facts_of_card, short_name
from lpa.model.hub.model_directory import save_model
from lpa.model.loading import load_model, model_directory
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.model.weight_checks import ties_embeddings
from lpa.storage.outputs import MODEL, atomic_directory, check_output_directory

# What a Hugging Face directory holds beside the weights and their configuration.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)


@dataclass
class MergeResult:
    """What merging made, and what it cost: parameters before and after.

    Attributes:
        model_class: of the result.
    """

    model_class: str
    parameters_low_rank: int
    parameters_merged: int


def merge_to_llama(model: LPAForCausalLM) -> LlamaForCausalLM:
    """Convert to a stock `LlamaForCausalLM` of the same function, W = B A computed in float64.

    Raises:
        UserError: the model has what a stock Llama cannot express.
    """
    config = model.config
    if config.decoder_type != "llama":
        raise UserError(
            f"merge: decoder_type {config.decoder_type} has norms after its sublayers and learned "
            "positions, which a stock Llama cannot express; only decoder_type llama merges. Use the "
            "directory as it is: it loads with transformers after `import lpa`"
        )
    if config.low_rank_method == "cola":
        raise UserError(
            "merge: low_rank_method cola has a SiLU between the factors, which no single matrix can "
            "express; use the directory as it is after `import lpa`"
        )
    if config.lm_head_bias:
        raise UserError(
            "merge: the LM head has a bias (lm_head_bias), which a stock Llama cannot express; train "
            "with model.lm_head_bias false, or use the directory as it is after `import lpa`"
        )
    values = llama_values(config) | {"tie_word_embeddings": ties_embeddings(model)}
    llama = LlamaConfig(**values, dtype=model.dtype)
    with torch.device("meta"):
        merged = LlamaForCausalLM(llama)
    merged.load_state_dict(_merged_weights(model), strict=True, assign=True)
    merged.tie_weights()
    # Its inverse frequencies are computed, not stored, so they are still on the meta device.
    merged.model.rotary_emb = type(merged.model.rotary_emb)(llama)
    merged.generation_config = copy.deepcopy(model.generation_config)
    if merged.generation_config.cache_implementation == LATENT:
        merged.generation_config.cache_implementation = None
    return merged.eval()


def _merged_weights(model: LPAForCausalLM) -> dict[str, Tensor]:
    weights = {}
    pairs = {
        name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)
    }
    for name, tensor in model.state_dict().items():
        if not any(name.startswith(f"{pair}.") for pair in pairs):
            weights[name] = tensor.clone()
    for name, pair in pairs.items():
        weights[f"{name}.weight"] = pair.to_dense().weight.detach()
    return weights


def merge_model(model: PreTrainedModel) -> PreTrainedModel:
    """A stock model that is the same function; the model itself stays as it is.

    An `LPAForCausalLM` becomes a Llama; a model of another class, of which `factorize` replaced projections,
    gets dense ones back.

    Raises:
        UserError: it has no pairs, adapters, or what a stock model cannot express.
    """
    for name, module in model.named_modules():
        if hasattr(module, "base_layer"):  # of peft
            raise UserError(
                f"merge: {name} has an adapter; merge adapters first (merge_and_unload of peft)"
            )
    if isinstance(model, LPAForCausalLM):
        return merge_to_llama(model)
    if isinstance(model.config, LPAConfig):
        raise UserError(
            f"model: is a {type(model).__name__}; expected an LPAForCausalLM, the only model of lpa that a "
            "stock model can express"
        )
    if not any(isinstance(module, LowRankLinear) for module in model.modules()):
        raise UserError(
            f"model: is a {type(model).__name__} of dense projections; expected one with low-rank pairs"
        )
    return copy.deepcopy(model).dequantize()


def _card(directory: Path, out: Path) -> CardContent:
    parent = short_name(directory)
    facts = {f"{name} ({parent})": value for name, value in facts_of_card(directory).items()}
    return CardContent(
        title=out.resolve().name,
        origin="`lpa convert merge` multiplied each low-rank pair of another model into one dense matrix; "
        "both compute the same, to rounding.",
        facts=facts,
        parents=[parent],
    )


def merge_directory(directory: Path, out: Path, *, overwrite: bool = False) -> MergeResult:
    """Merge a low-rank model into a new directory, with its tokenizer.

    Args:
        directory: a Hugging Face directory or a run directory.
        out: the directory to make.
        overwrite: replace what `out` holds.

    Raises:
        UserError: `out` holds something, or the model is not one that merges.
    """
    check_output_directory(out, MODEL, overwrite=overwrite)
    directory = model_directory(directory)
    model = load_model(directory)
    merged = merge_model(model)
    with atomic_directory(out, MODEL, overwrite=overwrite) as temporary:
        save_model(merged, temporary, _card(directory, out))
        for name in TOKENIZER_FILES:
            if (directory / name).is_file():
                shutil.copy(directory / name, temporary)
        if (directory / CHAT_TEMPLATE_DIR).is_dir():
            shutil.copytree(directory / CHAT_TEMPLATE_DIR, temporary / CHAT_TEMPLATE_DIR)
    return MergeResult(type(merged).__name__, model.num_parameters(), merged.num_parameters())
