"""The section `train` of a recipe: how long, in what portions and on what."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lpa.errors import UserError
from lpa.train.config.field_ranges import (
    MAX,
    MAX_PROCESSES,
    check_integer,
    check_positive,
    check_types,
    require,
)

# Two fields that say the same: the second decides where it is set.
SAME_LENGTHS = (("steps", "tokens"), ("batch_size", "batch_tokens"))


@dataclass
class TrainConfig:
    """How long, in what portions and on what.

    Attributes:
        steps: optimizer steps.
        tokens: tokens to train on, instead of steps: the run takes the fewest steps that reach them.
        batch_size: samples per step, of all processes together.
        batch_tokens: tokens per step, instead of batch_size; a multiple of data.seq_len.
        micro_batch_size: samples per forward pass of one process; gradients accumulate over the
            micro-batches of a step. By default one micro-batch holds all samples of the process.
        seed: the seed of the initial weights and of the data order.
        log_every: steps between lines of metrics.
        loggers: where metrics go beside metrics.jsonl: tensorboard, wandb, trackio.
        project: the name under which wandb and trackio file the run.
        eval_every: steps between evaluations on the validation split; 0: only after the last.
        eval_tokens: tokens of the validation split to score each time; 0: all.
        sample_every: steps between greedy continuations of sample_prompt, kept in samples.jsonl; 0: none.
        sample_prompt: the text that the samples continue; empty: each sample begins a document.
        sample_tokens: the most tokens of a sample.
        dtype: the precision of the arithmetic: float32; bfloat16, while weights and optimizer states stay
            float32; or `auto`, bfloat16 where the hardware of every process supports it, else float32. A
            resumed run keeps the precision that it started with.
        matmul_precision: precision of float32 products (torch.set_float32_matmul_precision): `highest`,
            the default; `high`, which is TF32 on GPUs that have it; or `medium`, bfloat16.
        compile: compile each decoder layer with torch.compile.
        activation_checkpointing: what decoder layers recompute in the backward pass: none; latent,
            everything except the latents and the outputs of dense projections and of attention; or
            full, everything except the input of the layer.
        device: `auto` takes a GPU where there is one.
        threads: CPU threads; 0 leaves it to torch. The same number gives bit-identical results.
        on_nonfinite: when a loss or gradient is not a finite number: `stop`, or `skip` the step's
            update; neither touches the weights.
        stop_at: stop after this step with a checkpoint, to be continued later with --resume.
        max_seconds: stop with a checkpoint after this many seconds of wall time, including the time
            before each resume.
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
        check_types("train", self)
        check_integer("train", self, "steps", "batch_size", "log_every", "sample_tokens")
        check_integer("train", self, "batch_tokens", "micro_batch_size", "stop_at")
        check_integer("train", self, "tokens", maximum=2**63 - 1)
        check_integer("train", self, "eval_every", "sample_every", minimum=0)
        check_integer("train", self, "seed", "eval_tokens", minimum=0, maximum=2**63 - 1)
        check_integer("train", self, "threads", minimum=0, maximum=MAX_PROCESSES)
        check_positive("train", self, "max_seconds", maximum=1e12)

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
            in_step <= MAX,
            "train.batch_size",
            self.batch_size,
            f"at most {MAX:,} tokens per step, with data.seq_len {seq_len}",
        )
        if self.tokens is not None:
            self.steps = -(-self.tokens // in_step)
            require(
                self.steps <= MAX,
                "train.tokens",
                self.tokens,
                f"at most {MAX:,} steps of {in_step:,} tokens",
            )

    @staticmethod
    def check_lengths(
        fields: Mapping[str, Any], seq_len: int, settled: Collection[str] = ()
    ) -> None:
        """Whether two fields of one file that say the same say it alike, as those of a resolved run do.

        Args:
            fields: of the section `train`, of the declared types.
            seq_len: tokens of a sample; 0: not known yet, so that nothing can agree.
            settled: fields that options decide, whatever the file says.

        Raises:
            UserError: naming both.
        """
        names = [name for pair in SAME_LENGTHS for name in pair]
        given: dict[str, Any] = {
            name: fields[name] for name in names if fields.get(name) is not None
        }
        try:
            resolved = TrainConfig(**given)
            if seq_len:
                resolved.resolve_length(seq_len)
        except UserError:  # options may replace it; the whole configuration is checked later
            return
        for name, other in SAME_LENGTHS:
            if not {name, other} <= given.keys() or {name, other} & set(settled):
                continue
            meant = getattr(resolved, name)
            if not seq_len or given[name] != meant:
                makes = f", which makes it {meant}" if seq_len else ""
                raise UserError(
                    f"train.{name}: got {given[name]} beside train.{other} {given[other]}{makes}; "
                    "expected one of the two"
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
