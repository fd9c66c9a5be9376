"""The smaller sections of a recipe: data, layout of processes, checkpoints, teacher."""

from dataclasses import dataclass
from pathlib import Path

from lpa.train.config.field_ranges import (
    MAX_PROCESSES,
    check_integer,
    check_positive,
    check_types,
    require,
)

# Of a run that says no `data.seq_len`, without `model.from`; and the most that one with it takes.
DEFAULT_SEQ_LEN = 256
MAX_INHERITED_SEQ_LEN = 512


@dataclass
class DataConfig:
    """What to train on.

    Attributes:
        path: a prepared data directory.
        seq_len: tokens per sample, the context; also the model's max_position_embeddings. 0: 256, or with
            model.from the max_position_embeddings of that model, at most 512.
        intra_document_mask: whether documents in one sample are kept from attending to each other.
        num_workers: processes that read samples ahead of time; 0: the training process reads.
        verify: whether to compare the checksums of the training shards before the first step. The
            processes share the work; a shard with unchanged size and modification time is skipped.
    """

    path: Path
    seq_len: int = 0
    intra_document_mask: bool = False
    num_workers: int = 0
    verify: bool = True

    def __post_init__(self) -> None:
        check_types("data", self)
        self.path = Path(self.path)  # which Python code may give as text
        check_integer("data", self, "seq_len", minimum=0)
        check_integer("data", self, "num_workers", minimum=0, maximum=MAX_PROCESSES)


@dataclass
class ParallelConfig:
    """How the processes divide the work; replicate · shard · tensor is the number of processes.

    Attributes:
        replicate: groups of processes that hold the same weights and train on different samples (HSDP).
        shard: processes over which weights, gradients and optimizer states are divided (FSDP2); null: as
            many as replicate and tensor leave.
        tensor: processes that divide each matrix product (tensor parallelism).
        sync_each_batch: reduce gradients over processes in the backward pass of each micro-batch, which
            keeps them sharded, instead of in the last alone, which sends less.
        timeout: seconds that a process waits for another in a step before it gives up.
        long_timeout: the same while a process may verify data, load or save.
    """

    replicate: int = 1
    shard: int | None = None
    tensor: int = 1
    sync_each_batch: bool = False
    timeout: float = 600.0
    long_timeout: float = 7200.0

    def __post_init__(self) -> None:
        check_types("parallel", self)
        check_integer("parallel", self, "replicate", "shard", "tensor", maximum=2**20)
        check_positive("parallel", self, "timeout", "long_timeout", maximum=1e8)


@dataclass
class CheckpointConfig:
    """When to save what a run needs to resume.

    Attributes:
        every: steps between checkpoints; 0: only when the run stops before its last step.
        keep_latest_k: how many of the latest checkpoints to keep.
        keep_best: also keep the model with the lowest validation loss, as `best/`. With train.eval_tokens
            the evaluation at the end, of the whole split, is not among those compared.
        async_save: continue training while a checkpoint is written, at the cost of memory for a copy of
            weights and optimizer states.
    """

    every: int = 100
    keep_latest_k: int = 2
    keep_best: bool = False
    async_save: bool = False

    def __post_init__(self) -> None:
        check_types("checkpoint", self)
        check_integer("checkpoint", self, "every", minimum=0)
        check_integer("checkpoint", self, "keep_latest_k")


@dataclass
class DistillConfig:
    """Distillation from a teacher, beside the loss on the text (Hinton et al. 2015, section 2).

    The loss is (1 - weight) · CE + weight · temperature² · KL(teacher ‖ student), logits divided by the
    temperature in KL.

    Attributes:
        teacher: a causal language model with the tokenizer of the data: a run, a Hugging Face directory or
            a GGUF file; null: no teacher.
        temperature: larger ones weigh unlikely tokens more.
        weight: weight of the teacher's term (KL) in the loss, from 0 to 1.
    """

    teacher: Path | None = None
    temperature: float = 2.0
    weight: float = 0.5

    def __post_init__(self) -> None:
        check_types("distill", self)
        self.teacher = None if self.teacher is None else Path(self.teacher)
        check_positive("distill", self, "temperature", maximum=1e6)
        require(0 <= self.weight <= 1, "distill.weight", self.weight, "from 0 to 1")
