"""The model that a run starts with: drawn from its seed, or taken from a Hugging Face directory."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from lpa.data.manifest import TOKENIZER_DIRECTORY, Manifest
from lpa.data.tokenizer import load_vocabulary
from lpa.device import resolve_dtype
from lpa.errors import UserError
from lpa.gguf_import import is_gguf
from lpa.lowrank import LowRankLinear
from lpa.model.activation_checkpointing import apply_activation_checkpointing
from lpa.model.compile import compile_layers
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.layers.attention import check_attention
from lpa.model.loading import generation_fields, model_directory, open_config
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.model.weight_checks import as_user_error, silence_loading
from lpa.model.weights import Weights, open_weights
from lpa.storage.files import write_json
from lpa.storage.records import read_json
from lpa.storage.run_directory import INITIAL_WEIGHTS_FILE
from lpa.train.config import RunConfig
from lpa.train.config.sections import MAX_INHERITED_SEQ_LEN
from lpa.train.distributed.dtensor import shard_like
from lpa.train.distributed.meta_init import build_meta_model, init_buffers, materialize
from lpa.train.distributed.parallelize import (
    ParallelLayout,
    check_tensor_parallel_size,
    parallelize,
)
from lpa.train.distributed.process_group import World, run_on_all_ranks


@dataclass(frozen=True)
class InitialWeights:
    """What a run was started from; `initial_weights.json` in the directory of a run that `model.from` began.

    Attributes:
        sha256: of the files of weights.
        config: the model's configuration.
        generation: how it generates, as its generation_config.json says; empty where there is none.
    """

    sha256: str
    config: dict[str, Any]
    generation: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_directory(cls, directory: Path) -> "InitialWeights":
        """Raises:
        UserError: it is not the directory of a model that `lpa train` can start from.
        """
        config, source = load_source_config(directory), source_directory(directory)
        generation = generation_fields(source, "model.from")
        # The trained model is saved with it, and `save_pretrained` refuses what does not hold together.
        with as_user_error(f"model.from {source}: its generation_config.json"), silence_loading():
            GenerationConfig.from_dict(dict(generation)).validate(strict=True)
        weights = open_weights(source, "model.from")
        if config.tie_word_embeddings and _has_own_head(weights):
            config.tie_word_embeddings = False
        return cls(weights.sha256(), config.to_dict(), generation)

    def save(self, run: Path) -> None:
        write_json(run / INITIAL_WEIGHTS_FILE, asdict(self))

    @classmethod
    def load(cls, run: Path) -> "InitialWeights":
        """Raises:
        UserError: the run has none that can be read.
        """
        return read_json(run / INITIAL_WEIGHTS_FILE, cls)


def find_initial_weights(config: RunConfig, resumed: Path | None) -> InitialWeights | None:
    """What `model.from` of a run stands for, None without it.

    Args:
        resumed: the directory of a resumed run: it keeps what it started from, whatever the source
            holds by now.
    """
    directory = config.model.from_
    if directory is None:
        return None
    if resumed is not None:
        return InitialWeights.load(resumed)
    check_same_tokenizer("model.from", source_directory(directory), config.data.path)
    return InitialWeights.from_directory(directory)


def source_directory(path: Path) -> Path:
    """The Hugging Face directory that `model.from` means.

    Raises:
        UserError: there is none.
    """
    if is_gguf(path):
        raise UserError(
            f"model.from {path}: is a GGUF file; expected a directory; convert the file first: lpa convert "
            f"factorize {path} --out DIR"
        )
    return model_directory(path, "model.from")


def load_source_config(path: Path) -> LPAConfig:
    """The configuration of an `LPAForCausalLM` that `model.from` means.

    Raises:
        UserError: there is none.
    """
    directory = source_directory(path)
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


def with_source_seq_len(config: RunConfig) -> RunConfig:
    """A run, its `data.seq_len` where it says none the positions of its model, at most 512.

    Raises:
        UserError: there is no such model.
    """
    if config.data.seq_len:
        return config
    assert config.model.from_ is not None  # or the configuration has chosen
    positions = load_source_config(config.model.from_).max_position_embeddings
    return config.with_seq_len(min(positions, MAX_INHERITED_SEQ_LEN))


def resolve_model_config(
    config: RunConfig, manifest: Manifest, initial_weights: InitialWeights | None
) -> LPAConfig:
    """The architecture of a run.

    Raises:
        UserError: one that cannot be, or that does not fit the data.
    """
    seq_len = config.data.seq_len
    if initial_weights is None:
        built = config.model.build(vocab_size=manifest.vocab_size, seq_len=seq_len)
        built.bos_token_id = manifest.bos_token_id
        built.eos_token_id = manifest.eos_token_id
        built.intra_document_mask = config.data.intra_document_mask
        return built
    source = LPAConfig.from_dict(initial_weights.config)
    check_source_sizes(source, config, manifest)
    if source.bos_token_id is None:
        source.bos_token_id = manifest.bos_token_id
    if source.eos_token_id is None:
        source.eos_token_id = manifest.eos_token_id
    source.intra_document_mask = config.data.intra_document_mask
    return source


def check_source_sizes(source: LPAConfig, config: RunConfig, manifest: Manifest | None) -> None:
    """Refuse a model to start from that is too small for the data.

    Args:
        source: the model's.
        manifest: that of the data; None where it is not prepared yet.

    Raises:
        UserError: it has fewer tokens, or fewer positions than a sample.
    """
    directory, seq_len = config.model.from_, config.data.seq_len
    if manifest is not None and source.vocab_size < manifest.vocab_size:
        raise UserError(
            f"model.from {directory}: has {source.vocab_size} tokens and the data {manifest.vocab_size}; "
            f"prepare it with the model's own tokenizer: lpa prepare --tokenizer {directory}"
        )
    if seq_len > source.max_position_embeddings:
        raise UserError(
            f"data.seq_len: got {seq_len}; expected at most the {source.max_position_embeddings} positions "
            f"of model.from {directory}"
        )


def check_same_tokenizer(field: str, directory: Path, data: Path) -> None:
    """Refuse data whose tokens mean something else to a model.

    Compared are the tokens and their numbers, where the model's directory has a tokenizer.

    Raises:
        UserError: naming the field by which the directory was given.
    """
    if (directory / "config.json").exists():
        open_config(directory, field)  # in which the class of the tokenizer is looked up
    try:
        model_tokenizer = load_vocabulary(directory)
    except UserError as error:
        raise UserError(f"{field} {directory}: {error}") from error
    check_same_vocabulary(field, directory, model_tokenizer, data)


def check_same_vocabulary(
    field: str, path: Path, model_tokenizer: dict[str, int] | None, data: Path
) -> None:
    """Refuse a model whose tokens or their numbers are not those of the data.

    Args:
        model_tokenizer: token -> number; None where the model has no tokenizer, and nothing is known.
    """
    data_tokenizer = load_vocabulary(data / TOKENIZER_DIRECTORY)
    if (
        model_tokenizer is not None
        and data_tokenizer is not None
        and model_tokenizer != data_tokenizer
    ):
        raise UserError(
            f"{field} {path}: its tokenizer is not that of the data; prepare the data with it: "
            f"lpa prepare --tokenizer {path}"
        )


def build_model(
    config: RunConfig,
    architecture: LPAConfig,
    layout: ParallelLayout,
    world: World,
    *,
    source: Path | None,
) -> LPAForCausalLM:
    """The model of a run, sharded over its processes.

    Args:
        source: a directory to take the weights from, in place of those that the seed stands for.

    Raises:
        UserError: a layout that does not divide the model, weights that are not its own, or attention that
            cannot run here.
    """
    settings = config.train
    model = run_on_all_ranks(lambda: _meta_model(config, architecture, layout, world))
    parallelize(model, layout, world.device.type, getattr(torch, settings.dtype))

    def fill() -> None:
        if source is None:
            materialize(model, architecture, world.device, seed=settings.seed)
        else:
            load_weights(model, architecture, source, world.device)
            torch.manual_seed(settings.seed)

    run_on_all_ranks(fill)
    return model


def _meta_model(
    config: RunConfig, architecture: LPAConfig, layout: ParallelLayout, world: World
) -> LPAForCausalLM:
    """The model on the meta device, as it trains, but for the division over processes."""
    if layout.tensor > 1:
        check_tensor_parallel_size(architecture, layout.tensor)
    settings = config.train
    attention = config.model.attn_implementation
    if attention is not None:
        check_attention(
            attention,
            world.device,
            resolve_dtype(settings.dtype, world.device.type),
            dropout=architecture.attention_dropout,
            separates_documents=config.data.intra_document_mask,
            micro_batch_size=settings.resolve_micro_batch_size(layout.data_parallel_size),
        )
        architecture._attn_implementation = attention
    model = build_meta_model(architecture).train()
    if config.optim.trainable == "factors":
        freeze_all_but_factors(model)
    if settings.compile:
        compile_layers(model, world.device)
    apply_activation_checkpointing(model, settings.activation_checkpointing)
    return model


def freeze_all_but_factors(model: LPAForCausalLM) -> None:
    """Leave everything but the low-rank pairs, their biases among them, as it is."""
    pairs = [module for module in model.modules() if isinstance(module, LowRankLinear)]
    if not pairs:
        raise UserError("optim.trainable: got factors; the model has no low-rank projections")
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
    weights = open_weights(source_directory(directory), "model.from")
    _check_fit(model, config, weights)
    model.to_empty(device=device)
    model.tie_weights()
    init_buffers(model, config, device)
    targets = dict(model.named_parameters())
    for name, value in weights.read():
        if name in targets:
            target = targets[name]
            target.copy_(shard_like(value.to(device, torch.float32), target))


def _has_own_head(weights: Weights) -> bool:
    """Whether the files hold an LM head that is not the embedding."""
    names = ("lm_head.weight", "model.embed_tokens.weight")
    both = [value for _, value in weights.read(names)] if names[0] in weights.tensors else []
    return len(both) == 2 and not torch.equal(*both)


def _check_fit(model: LPAForCausalLM, config: LPAConfig, weights: Weights) -> None:
    """Check that every parameter has a tensor of its shape, and every tensor a parameter."""
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name, tensor in weights.tensors.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if expected.get(name) != tensor.shape:
            raise weights.error(
                weights.name,
                f"has {name} of shape {tensor.shape}, which the model of config.json lacks",
            )
    missing = expected.keys() - weights.tensors.keys()
    if missing:
        raise weights.error(weights.name, f"has no {min(missing)}")
