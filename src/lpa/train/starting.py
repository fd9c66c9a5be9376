"""The model that a run begins with: drawn from its seed, or taken from a Hugging Face directory."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lpa.data.manifest import TOKENIZER_DIRECTORY, Manifest
from lpa.data.tokenizer import load_vocabulary
from lpa.errors import UserError
from lpa.files import write_text
from lpa.lowrank import LowRankLinear
from lpa.model.checkpointing import compile_layers, set_activation_checkpointing
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.loading import open_config
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.model.weights import Weights, open_weights
from lpa.records import read_json
from lpa.train.config import RunConfig
from lpa.train.distributed import World
from lpa.train.materialise import compute_buffers, materialise, meta_model
from lpa.train.parallel import Layout, parallelize
from lpa.train.shards import laid_out_like

START_FILE = "start.json"


@dataclass(frozen=True)
class Start:
    """What a run was started from; `start.json` in the directory of a run that `model.from` began.

    Attributes:
        sha256: of the files of weights.
        config: the model's configuration.
    """

    sha256: str
    config: dict[str, Any]

    @classmethod
    def of(cls, directory: Path) -> "Start":
        """Raises:
        UserError: it is not the directory of a model that `lpa train` can start from.
        """
        config = source_config(directory)
        return cls(open_weights(directory, "model.from").sha256(), config.to_dict())

    def save(self, run: Path) -> None:
        write_text(run / START_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, run: Path) -> "Start":
        """Raises:
        UserError: the run has none that can be read.
        """
        return read_json(run / START_FILE, cls)


def find_start(config: RunConfig, resumed: Path | None) -> Start | None:
    """What `model.from` of a run stands for, None without it.

    Args:
        resumed: the directory of a run that goes on: it remembers, whatever the source holds by now.
    """
    directory = config.model.from_
    if directory is None:
        return None
    if resumed is not None:
        return Start.load(resumed)
    check_same_tokens("model.from", directory, config.data.path)
    return Start.of(directory)


def source_config(directory: Path) -> LPAConfig:
    """The configuration of a directory that holds an `LPAForCausalLM`.

    Raises:
        UserError: it holds none.
    """
    if not (directory / "config.json").is_file():
        what = "has no config.json" if directory.is_dir() else "no such directory"
        raise UserError(
            f"model.from {directory}: {what}; expected what `lpa convert factorize` or a run's final/ is"
        )
    config = open_config(directory, "model.from")
    kinds = config.architectures
    kind = kinds[0] if isinstance(kinds, list) and kinds else config.model_type
    if not isinstance(config, LPAConfig) or kind != "LPAForCausalLM":
        raise UserError(
            f"model.from {directory}: is a {kind}; expected an LPAForCausalLM, which `lpa convert "
            "factorize` makes of Llama-like models; load any other with lpa.load and train it in a loop "
            "of your own"
        )
    return config


def model_config(config: RunConfig, manifest: Manifest, start: Start | None) -> LPAConfig:
    """The architecture of a run.

    Raises:
        UserError: one that cannot be, or that does not fit the data.
    """
    context = config.data.context
    if start is None:
        built = config.model.build(vocab_size=manifest.vocab_size, context=context)
        built.eos_token_id = manifest.eos_token_id
        return built
    source, directory = LPAConfig.from_dict(start.config), config.model.from_
    if source.vocab_size < manifest.vocab_size:
        raise UserError(
            f"model.from {directory}: has {source.vocab_size} tokens and the data {manifest.vocab_size}; "
            f"prepare it with the model's own tokenizer: lpa prepare --tokenizer {directory}"
        )
    if context > source.max_position_embeddings:
        raise UserError(
            f"data.context: got {context}; expected at most the {source.max_position_embeddings} positions "
            f"of model.from {directory}"
        )
    return source


def check_same_tokens(field: str, directory: Path, data: Path) -> None:
    """Refuse data whose tokens mean something else to a model.

    Compared are the tokens and their numbers, where the model's directory has a tokenizer.

    Raises:
        UserError: naming the field by which the directory was given.
    """
    if (directory / "config.json").exists():
        open_config(directory, field)  # in which the class of the tokenizer is looked up
    try:
        theirs = load_vocabulary(directory)
    except UserError as error:
        raise UserError(f"{field} {directory}: {error}") from error
    ours = load_vocabulary(data / TOKENIZER_DIRECTORY)
    if theirs is not None and ours is not None and theirs != ours:
        raise UserError(
            f"{field} {directory}: its tokenizer is not that of the data; prepare the data with it: "
            f"lpa prepare --tokenizer {directory}"
        )


def build_model(
    config: RunConfig,
    architecture: LPAConfig,
    layout: Layout,
    world: World,
    *,
    source: Path | None,
) -> LPAForCausalLM:
    """The model of a run, spread over its processes.

    Args:
        source: a directory to take the weights from, in place of those that the seed stands for.

    Raises:
        UserError: a layout that does not divide the model, or weights that are not its own.
    """
    settings = config.train
    model = meta_model(architecture).train()
    if config.optim.train == "factors":
        train_only_factors(model)
    if settings.compile:
        compile_layers(model)
    set_activation_checkpointing(model, settings.activation_checkpointing)
    parallelize(model, layout, world.device.type, getattr(torch, settings.dtype))
    if source is None:
        materialise(model, architecture, world.device, seed=settings.seed)
    else:
        load_weights(model, architecture, source, world.device)
        torch.manual_seed(settings.seed)
    return model


def train_only_factors(model: LPAForCausalLM) -> None:
    """Leave everything but the low-rank pairs, their biases among them, as it is."""
    pairs = [module for module in model.modules() if isinstance(module, LowRankLinear)]
    if not pairs:
        raise UserError("optim.train: got factors; the model has no low-rank projections")
    model.requires_grad_(False)
    for pair in pairs:
        pair.requires_grad_(True)


@torch.no_grad()
def load_weights(
    model: LPAForCausalLM, config: LPAConfig, directory: Path, device: torch.device
) -> None:
    """Give a model on the meta device, sharded or not, the weights of a Hugging Face directory, as float32.

    Every process reads one tensor after another and keeps its shard of it.

    Raises:
        UserError: weights are missing, too many, of another shape, or unreadable.
    """
    weights = open_weights(directory, "model.from")
    _check_fit(model, config, weights)
    model.to_empty(device=device)
    model.tie_weights()
    compute_buffers(model, config, device)
    targets = dict(model.named_parameters())
    for name, value in weights.read():
        if name in targets:
            target = targets[name]
            target.copy_(laid_out_like(value.to(device, torch.float32), target))


def _check_fit(model: LPAForCausalLM, config: LPAConfig, weights: Weights) -> None:
    """Before memory is taken: every parameter has a tensor of its shape, and every tensor a parameter."""
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name, tensor in weights.tensors.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if expected.get(name) != tensor.shape:
            raise weights.error(
                weights.name,
                f"has {name} of shape {tensor.shape}, which the model of config.json has not",
            )
    absent = expected.keys() - weights.tensors.keys()
    if absent:
        raise weights.error(weights.name, f"has no {min(absent)}")
