"""The configuration of a run: what a recipe may say, checked field by field."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from lpa.errors import UserError
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.presets import preset_config
from lpa.train.config.field_ranges import (
    LEAST_FLOAT32,
    MOST,
    MOST_PROCESSES,
    check_positive,
    check_whole,
    require,
)


@dataclass
class DataConfig:
    """What to train on.

    Attributes:
        path: a prepared data directory.
        seq_len: tokens per sample; also the positions that the model is made for.
        intra_document_mask: whether documents in one sample are kept from attending to each other.
        num_workers: processes that read samples ahead of time; 0: the training process reads.
        verify: whether to compare the checksums of the training shards before the first step. The
            processes share the work; a shard whose size and time of change are as before is not read again.
    """

    path: Path
    seq_len: int = 256
    intra_document_mask: bool = False
    num_workers: int = 0
    verify: bool = True

    def __post_init__(self) -> None:
        self.path = Path(self.path)  # which Python code may give as text
        check_whole("data", self, "seq_len")
        check_whole("data", self, "num_workers", least=0, most=MOST_PROCESSES)


@dataclass
class ModelConfig:
    """The architecture: a preset, its placement and ranks, and any size that differs from it.

    Attributes:
        preset: a named architecture.
        placement: which projections are low-rank: none, attention, ffn or all.
        rank: the rank of the low-rank projections (by default the preset's).
        ffn_rank: the rank of those in the FFN where it differs.
        ranks: projection name to rank, or a rank for each layer, over what placement and rank say; null
            keeps one dense.
        hidden_size: where it differs from the preset's, as all that follow.
        intermediate_size: width of the FFN.
        num_hidden_layers: decoder layers.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads (fewer for grouped queries).
        head_dim: width of a head; by default hidden_size / num_attention_heads.
        vocab_size: by default that of the data.
        tie_word_embeddings: whether the LM head shares the embedding's weights.
        lm_head_bias: whether the LM head has a bias.
        attention_dropout: probability of dropping an attention weight.
        resid_pdrop: probability of dropping a branch's output before it is added.
        dense_layers: layers, counted from 0, that keep all projections dense.
        initializer_range: standard deviation of the weights, of the product where they are low-rank.
        initialization: how low-rank pairs start: linear (each factor as an nn.Linear), scaled,
            spectral or orthogonal; by default scaled.
        residual_scaling: whether what writes to the residual stream starts smaller by
            sqrt(2 * num_hidden_layers); by default not.
        low_rank_method: what a low-rank projection is: by default the plain pair; cola, with a SiLU
            between the factors; or sltrain, plus a sparse matrix.
        sparse_density: the share of entries of that sparse matrix; by default 0.03 with sltrain.
        attn_implementation: what computes attention, by its name in transformers; by default sdpa. It changes
            rounding and speed, and is not part of the model that is saved.
        from_: `model.from` in recipes: the directory of an LPAForCausalLM, such as `lpa convert factorize`
            makes, whose weights and architecture the run starts from; only attn_implementation goes with it.
    """

    preset: str = "nano"
    placement: str = "attention"
    rank: int | None = None
    ffn_rank: int | None = None
    ranks: dict[str, int | list[int | None] | None] | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None
    tie_word_embeddings: bool | None = None
    lm_head_bias: bool | None = None
    attention_dropout: float | None = None
    resid_pdrop: float | None = None
    dense_layers: list[int] | None = None
    initializer_range: float | None = None
    initialization: str | None = None
    residual_scaling: bool | None = None
    low_rank_method: str | None = None
    sparse_density: float | None = None
    attn_implementation: (
        Literal["eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"] | None
    ) = None
    from_: Path | None = None

    def __post_init__(self) -> None:
        self.from_ = None if self.from_ is None else Path(self.from_)
        for known in fields(self):
            value = getattr(self, known.name)
            require(
                self.from_ is None
                or known.name in ("from_", "attn_implementation")
                or value == known.default,
                f"model.{known.name}",
                value,
                f"nothing beside model.from, as {self.from_} decides the architecture",
            )

    def build(self, *, vocab_size: int, seq_len: int) -> LPAConfig:
        """The model configuration for a vocabulary and context.

        Raises:
            UserError: a value that the model cannot have, or a vocabulary smaller than the data's.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        preset = given.pop("preset")
        given.pop("attn_implementation", None)  # how it is computed, not what it is
        if given.setdefault("vocab_size", vocab_size) < vocab_size:
            raise UserError(
                f"model.vocab_size: got {self.vocab_size}; the data has tokens up to "
                f"{vocab_size - 1}, so expected at least {vocab_size}"
            )
        return preset_config(preset, **given, max_position_embeddings=seq_len)


# Settings of single optimizers.
_OPTIMIZERS_WITH = {
    "projection_rank": ("galore", "apollo", "relora"),
    "restart_every": ("relora",),
    "spectron_bound": ("spectron",),
}


@dataclass
class OptimConfig:
    """The optimizer (AdamW, Loshchilov & Hutter 2019; Muon, Jordan et al. 2024) and its schedule.

    Attributes:
        name: `adamw`, or for the matrices of the decoder layers, with AdamW for the rest: `muon`; `galore`
            or `apollo`, whose states are of a low rank; `relora`, whose updates are; or `spectron` for the
            factors of low-rank projections, with `muon` for the other matrices. All but `adamw` and `muon`
            take one process.
        projection_rank: of the states of galore and apollo and of the updates of relora; by default a quarter
            of a matrix's shorter side.
        restart_every: steps from one merge of relora to the next; the first that many train whole matrices.
        spectron_bound: how spectron bounds a step of the product: by default as the paper does, or exact.
        trainable: `all` weights, or only the `factors` of low-rank projections, their biases included; the
            others stay as they are, without gradients or optimizer states.
        lr: the peak learning rate; one for both, since Muon's steps are scaled to the size of AdamW's.
        beta1: AdamW's, of the gradient's mean.
        beta2: AdamW's, of its square's mean.
        eps: AdamW's, added to the root of the latter.
        weight_decay: on matrices only, not on norms and biases.
        low_rank_decay: what decays in a low-rank pair: its `factors`, as any matrix, or their `product`
            (Frobenius decay, Khodak et al. 2021), by weight_decay too.
        down_weight_decay: decay of the pairs' first factors where it differs from weight_decay; only with
            low_rank_decay factors.
        up_weight_decay: likewise of their second factors.
        down_lr_scale: multiplier of the learning rate for the pairs' first factors.
        up_lr_scale: likewise for their second factors.
        max_grad_norm: the largest gradient norm; larger gradients are scaled down to it.
        schedule: after the warm-up `cosine`; `linear`; or `wsd`: constant, then linear decay.
        warmup_steps: steps of linear warm-up.
        min_lr_ratio: the last learning rate as a share of the peak.
        decay_fraction: the share of all steps that `wsd` decays over.
    """

    name: Literal["adamw", "muon", "spectron", "galore", "apollo", "relora"] = "adamw"
    projection_rank: int | None = None
    restart_every: int | None = None
    spectron_bound: Literal["paper", "exact"] | None = None
    trainable: Literal["all", "factors"] = "all"
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    low_rank_decay: Literal["factors", "product"] = "factors"
    down_weight_decay: float | None = None
    up_weight_decay: float | None = None
    down_lr_scale: float = 1.0
    up_lr_scale: float = 1.0
    max_grad_norm: float = 1.0
    schedule: Literal["cosine", "wsd", "linear"] = "cosine"
    warmup_steps: int = 20
    min_lr_ratio: float = 0.1
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        # Products of two of them must still have a float32; a clip without effect may be large.
        check_positive("optim", self, "lr", "eps", "down_lr_scale", "up_lr_scale", most=1e6)
        check_positive("optim", self, "max_grad_norm", most=1e30)
        require(self.eps >= LEAST_FLOAT32, "optim.eps", self.eps, f"at least {LEAST_FLOAT32:.2g}")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optim.{name}", value, "at least 0 and below 1")
        for name in ("min_lr_ratio", "decay_fraction"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"optim.{name}", value, "from 0 to 1")
        for name in ("weight_decay", "down_weight_decay", "up_weight_decay"):
            value = getattr(self, name)
            own = name != "weight_decay" and value is not None
            require(
                not (own and self.low_rank_decay == "product"),
                f"optim.{name}",
                value,
                "null with optim.low_rank_decay product, which decays by optim.weight_decay",
            )
            require(
                value is None or 0 <= value <= 1e6,
                f"optim.{name}",
                value,
                "a number from 0 to 1,000,000",
            )
        check_whole("optim", self, "warmup_steps", least=0)
        check_whole("optim", self, "projection_rank")
        check_whole("optim", self, "restart_every")
        require(
            self.name != "relora" or self.restart_every is not None,
            "optim.restart_every",
            self.restart_every,
            "steps from one merge to the next with optim.name relora",
        )
        for name, optimizers in _OPTIMIZERS_WITH.items():
            value = getattr(self, name)
            require(
                value is None or self.name in optimizers,
                f"optim.{name}",
                value,
                f"null unless optim.name is {' or '.join(optimizers)}",
            )
        for name in ("down_lr_scale", "up_lr_scale"):
            require(
                self.name != "spectron" or getattr(self, name) == 1,
                f"optim.{name}",
                getattr(self, name),
                "1 with optim.name spectron, which steps both factors of a pair together",
            )
        require(
            self.name != "spectron" or self.down_weight_decay == self.up_weight_decay,
            "optim.down_weight_decay",
            self.down_weight_decay,
            "that of optim.up_weight_decay with optim.name spectron",
        )


@dataclass
class TrainConfig:
    """How long, in what portions and on what.

    Attributes:
        steps: optimizer steps.
        tokens: tokens to train on, which then decide the steps: the least that reach them.
        batch_size: samples per step, of all processes together.
        batch_tokens: tokens per step, a multiple of data.seq_len, which then decide the batch size.
        micro_batch_size: samples per forward pass of one process; the gradients of a step add up over
            them. By default all that a process has of a step at once.
        seed: of weights and data order.
        log_every: steps between lines of metrics.
        loggers: where metrics go beside metrics.jsonl: tensorboard, wandb, trackio.
        project: the name under which wandb and trackio file the run.
        eval_every: steps between evaluations on the validation split; 0: only after the last.
        eval_tokens: tokens of that split to score each time; 0: all.
        sample_every: steps between continuations of sample_prompt, kept in samples.jsonl; 0: none.
        sample_prompt: what they continue; empty: they begin a document.
        sample_tokens: how many tokens they have at most.
        dtype: of the arithmetic: float32; bfloat16, while weights and optimizer states stay float32; or
            `auto`, bfloat16 where every process has a GPU or CPU with units for it. A run resumes in
            what it began with.
        matmul_precision: of products that stay float32, by torch.set_float32_matmul_precision: `highest`,
            the default; `high`, which is TF32 on GPUs that have it; or `medium`, bfloat16.
        compile: compile each decoder layer with torch.compile.
        activation_checkpointing: what decoder layers compute again in the backward pass: none; latent,
            all but the latents, what dense projections make, and the output of attention; or full, all
            but their input.
        device: `auto` takes a GPU where there is one.
        threads: CPU threads; 0 leaves it to torch. The same number gives the same bits.
        on_nonfinite: when a loss or gradient is not a finite number: `stop`, or `skip` the step's
            update; neither touches the weights.
        stop_at: stop after this step with a checkpoint, to be continued later with --resume.
        max_seconds: stop with a checkpoint once the run, all its processes one after another together,
            has taken so long.
    """

    steps: int = 200
    tokens: int | None = None
    batch_size: int = 8
    batch_tokens: int | None = None
    micro_batch_size: int | None = None
    seed: int = 0
    log_every: int = 10
    loggers: list[str] = field(default_factory=lambda: ["tensorboard"])
    project: str = "lpa"
    eval_every: int = 100
    eval_tokens: int = 0
    sample_every: int = 0
    sample_prompt: str = ""
    sample_tokens: int = 64
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    matmul_precision: Literal["highest", "high", "medium"] | None = None
    compile: bool = False
    activation_checkpointing: Literal["none", "latent", "full"] = "none"
    device: str = "auto"
    threads: int = 0
    on_nonfinite: Literal["stop", "skip"] = "stop"
    stop_at: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        check_whole("train", self, "steps", "batch_size", "log_every", "sample_tokens")
        check_whole("train", self, "batch_tokens", "micro_batch_size", "stop_at")
        check_whole("train", self, "tokens", most=2**63 - 1)
        check_whole("train", self, "eval_every", "sample_every", least=0)
        check_whole("train", self, "seed", "eval_tokens", least=0, most=2**63 - 1)
        check_whole("train", self, "threads", least=0, most=MOST_PROCESSES)
        check_positive("train", self, "max_seconds", most=1e12)

    def resolve_length(self, seq_len: int) -> None:
        """Turn tokens into samples and steps, given the tokens of a sample.

        Raises:
            UserError: tokens per step that are no whole samples, or too many steps or tokens per step.
        """
        if self.batch_tokens is not None:
            require(
                self.batch_tokens % seq_len == 0,
                "train.batch_tokens",
                self.batch_tokens,
                f"a multiple of data.seq_len ({seq_len})",
            )
            self.batch_size = self.batch_tokens // seq_len
        in_step = self.batch_size * seq_len
        require(
            in_step <= MOST,
            "train.batch_size",
            self.batch_size,
            f"at most {MOST:,} tokens per step, with data.seq_len {seq_len}",
        )
        if self.tokens is not None:
            self.steps = -(-self.tokens // in_step)
            require(
                self.steps <= MOST,
                "train.tokens",
                self.tokens,
                f"at most {MOST:,} steps of {in_step:,} tokens",
            )

    def resolve_micro_batch_size(self, processes: int) -> int:
        """Samples per forward pass, for so many processes that see different samples.

        Raises:
            UserError: a step's samples cannot be divided so.
        """
        require(
            self.batch_size % processes == 0,
            "train.batch_size",
            self.batch_size,
            f"a multiple of the processes that see different samples ({processes})",
        )
        samples_per_process = self.batch_size // processes
        size = samples_per_process if self.micro_batch_size is None else self.micro_batch_size
        require(
            samples_per_process % size == 0,
            "train.micro_batch_size",
            size,
            f"a divisor of each process's samples per step ({samples_per_process} of train.batch_size "
            f"{self.batch_size})",
        )
        return size


@dataclass
class ParallelConfig:
    """How the processes that torchrun starts divide the work; their product is their number.

    Attributes:
        replicate: groups with the same weights and different samples.
        shard: processes over which weights, gradients and optimizer states are divided (FSDP2); null:
            those that are left.
        tensor: processes that divide each matrix product.
        timeout: seconds that a process waits for another before it gives up.
    """

    replicate: int = 1
    shard: int | None = None
    tensor: int = 1
    timeout: float = 600.0

    def __post_init__(self) -> None:
        check_whole("parallel", self, "replicate", "shard", "tensor", most=2**20)
        check_positive("parallel", self, "timeout", most=1e8)


@dataclass
class CheckpointConfig:
    """When to save what a run needs to resume.

    Attributes:
        every: steps between checkpoints; 0: only when the run stops before its last step.
        keep_latest_k: how many of the latest to keep.
        keep_best: also keep the model with the lowest validation loss, as `best/`.
        async_save: continue training while a checkpoint is written, at the cost of memory for a copy of
            weights and optimizer states.
    """

    every: int = 100
    keep_latest_k: int = 2
    keep_best: bool = False
    async_save: bool = False

    def __post_init__(self) -> None:
        check_whole("checkpoint", self, "every", least=0)
        check_whole("checkpoint", self, "keep_latest_k")


@dataclass
class DistillConfig:
    """Learning from a teacher beside the text (Hinton et al. 2015, section 2).

    The loss is (1 - weight) · CE + weight · temperature² · KL(teacher ‖ student), logits divided by the
    temperature in KL.

    Attributes:
        teacher: the Hugging Face directory of a causal language model with the tokenizer of the data;
            null: no teacher.
        temperature: larger ones weigh unlikely tokens more.
        weight: of the teacher's part, from 0 to 1.
    """

    teacher: Path | None = None
    temperature: float = 2.0
    weight: float = 0.5

    def __post_init__(self) -> None:
        self.teacher = None if self.teacher is None else Path(self.teacher)
        check_positive("distill", self, "temperature", most=1e6)
        require(0 <= self.weight <= 1, "distill.weight", self.weight, "from 0 to 1")
