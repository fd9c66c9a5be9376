"""The configuration of a run: what a recipe may say, checked field by field."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lpa.errors import UserError
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.presets import preset_config


def _require(condition: bool, name: str, value: object, accepted: str) -> None:
    if not condition:
        raise UserError(f"{name}: got {value}; expected {accepted}")


def _finite_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


@dataclass
class DataConfig:
    """What to train on.

    Attributes:
        path: a prepared data directory.
        context: tokens per sample; also the positions that the model is made for.
        separate_documents: whether documents in one sample are kept from attending to each other.
        workers: processes that read samples ahead of time; 0: the training process reads.
        verify: whether to compare the checksums of the training shards before the first step, which
            reads them once.
    """

    path: Path
    context: int = 256
    separate_documents: bool = False
    workers: int = 0
    verify: bool = True

    def __post_init__(self) -> None:
        _require(self.context >= 1, "data.context", self.context, "at least 1")
        _require(self.workers >= 0, "data.workers", self.workers, "at least 0")


@dataclass
class ModelConfig:
    """The architecture: a preset, its placement and ranks, and any size that differs from it.

    Attributes:
        preset: a named architecture.
        placement: which projections are low-rank: none, attention, ffn or all.
        rank: the rank of the low-rank projections (by default the preset's).
        ffn_rank: the rank of those in the FFN where it differs.
        ranks: projection name to rank, over what placement and rank say; null keeps one dense.
        hidden_size: where it differs from the preset's, as all that follow.
        intermediate_size: width of the FFN.
        num_hidden_layers: decoder layers.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads (fewer for grouped queries).
        vocab_size: by default that of the data.
        tie_word_embeddings: whether the LM head shares the embedding's weights.
        lm_head_bias: whether the LM head has a bias.
        attention_dropout: probability of dropping an attention weight.
        resid_pdrop: probability of dropping a branch's output before it is added.
        dense_layers: layers, counted from 0, that keep all projections dense.
        initializer_range: standard deviation of the weights, of the product where they are low-rank.
        initialization: how low-rank pairs start: default (each factor as an nn.Linear), scaled,
            spectral or orthogonal; by default scaled.
        residual_scaling: whether what writes to the residual stream starts smaller by
            sqrt(2 * num_hidden_layers); by default not.
    """

    preset: str = "nano"
    placement: str = "attention"
    rank: int | None = None
    ffn_rank: int | None = None
    ranks: dict[str, int | None] | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    vocab_size: int | None = None
    tie_word_embeddings: bool | None = None
    lm_head_bias: bool | None = None
    attention_dropout: float | None = None
    resid_pdrop: float | None = None
    dense_layers: list[int] | None = None
    initializer_range: float | None = None
    initialization: str | None = None
    residual_scaling: bool | None = None

    def build(self, *, vocab_size: int, context: int) -> LPAConfig:
        """The model configuration for a vocabulary and context.

        Raises:
            UserError: a value that the model cannot have, or a vocabulary smaller than the data's.
        """
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        preset = fields.pop("preset")
        if fields.setdefault("vocab_size", vocab_size) < vocab_size:
            raise UserError(
                f"model.vocab_size: got {self.vocab_size}; the data has tokens up to "
                f"{vocab_size - 1}, so expected at least {vocab_size}"
            )
        return preset_config(preset, **fields, max_position_embeddings=context)


@dataclass
class OptimConfig:
    """AdamW (Loshchilov & Hutter 2019) and its learning-rate schedule.

    Attributes:
        lr: the peak learning rate.
        beta1, beta2, eps: AdamW's.
        weight_decay: on matrices only, not on norms and biases.
        clip: the largest gradient norm; larger gradients are scaled down to it.
        schedule: `cosine` after the warm-up, or `wsd`: constant, then linear decay.
        warmup_steps: steps of linear warm-up.
        min_lr_ratio: the last learning rate as a share of the peak.
        decay_fraction: the share of all steps that `wsd` decays over.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup_steps: int = 20
    min_lr_ratio: float = 0.1
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        _require(_finite_positive(self.lr), "optim.lr", self.lr, "a positive number")
        _require(_finite_positive(self.eps), "optim.eps", self.eps, "a positive number")
        _require(_finite_positive(self.clip), "optim.clip", self.clip, "a positive number")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"optim.{name}", value, "at least 0 and below 1")
        for name in ("min_lr_ratio", "decay_fraction"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"optim.{name}", value, "from 0 to 1")
        _require(
            math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            "optim.weight_decay",
            self.weight_decay,
            "a number from 0",
        )
        _require(self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "at least 0")


@dataclass
class TrainConfig:
    """How long, in what portions and on what.

    Attributes:
        steps: optimizer steps.
        batch_size: samples per step.
        micro_batch_size: samples per forward pass, a divisor of batch_size; the gradients of a step
            add up over them. By default all at once.
        seed: of weights and data order.
        log_every: steps between lines of metrics.
        eval_every: steps between evaluations on the validation split; 0: only after the last.
        eval_tokens: tokens of that split to score each time; 0: all.
        dtype: of the arithmetic; weights and optimizer states stay float32.
        compile: compile the decoder with torch.compile.
        device: `auto` takes a GPU where there is one.
        threads: CPU threads; 0 leaves it to torch. The same number gives the same bits.
        stop_at: stop after this step with a checkpoint, to go on later with --resume.
    """

    steps: int = 200
    batch_size: int = 8
    micro_batch_size: int | None = None
    seed: int = 0
    log_every: int = 10
    eval_every: int = 100
    eval_tokens: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    device: str = "auto"
    threads: int = 0
    stop_at: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every"):
            _require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        for name in ("eval_every", "eval_tokens", "threads"):
            _require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "at least 0")
        if self.micro_batch_size is None:
            self.micro_batch_size = self.batch_size
        _require(
            self.micro_batch_size >= 1 and self.batch_size % self.micro_batch_size == 0,
            "train.micro_batch_size",
            self.micro_batch_size,
            f"a divisor of train.batch_size ({self.batch_size})",
        )
        _require(0 <= self.seed < 2**63, "train.seed", self.seed, "from 0 to 2^63 - 1")
        _require(
            self.stop_at is None or self.stop_at >= 1, "train.stop_at", self.stop_at, "at least 1"
        )


@dataclass
class CheckpointConfig:
    """When to save what a run needs to go on.

    Attributes:
        every: steps between checkpoints; 0: only when the run stops before its last step.
        keep: how many of the latest to keep.
    """

    every: int = 100
    keep: int = 2

    def __post_init__(self) -> None:
        _require(self.every >= 0, "checkpoint.every", self.every, "at least 0")
        _require(self.keep >= 1, "checkpoint.keep", self.keep, "at least 1")


@dataclass
class RunConfig:
    """A whole run; what `config.yaml` in a run directory holds."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def to_yaml(self) -> str:
        fields = asdict(self)
        fields["data"]["path"] = str(self.data.path)
        return yaml.safe_dump(fields, sort_keys=False)


# What may differ when a run goes on: it changes where the run stops and what is kept, never the weights.
_FREE_ON_RESUME = {
    "data.path",  # data may move; its tokens are compared by hash instead
    "data.workers",
    "data.verify",
    "train.stop_at",
    "checkpoint.every",
    "checkpoint.keep",
}


def check_same(saved: str, current: RunConfig) -> None:
    """Refuse to go on with a configuration other than the one a run began with.

    Args:
        saved: the run's `config.yaml`.
        current: what it is asked to go on with.

    Raises:
        UserError: naming the fields that differ.
    """
    before, after = _flat(yaml.safe_load(saved)), _flat(yaml.safe_load(current.to_yaml()))
    differences = [
        f"{name} was {before.get(name)}, now {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if name not in _FREE_ON_RESUME and before.get(name) != after.get(name)
    ]
    if differences:
        raise UserError(
            f"--resume: the run began with another configuration: {'; '.join(differences)}"
        )


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{name}": value
        for section, fields in tree.items()
        for name, value in fields.items()
    }
