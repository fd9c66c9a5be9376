"""Fine-tuning a model on one task with one seed, through the Trainer of transformers."""

import math
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lpa.callbacks import StepCallback
from lpa.device import resolve_device, resolve_dtype
from lpa.errors import LPAWarning, UserError
from lpa.eval.glue.examples import Examples
from lpa.eval.glue.metrics import score_logits
from lpa.eval.glue.tasks import Task, metric_prefix
from lpa.eval.glue.tokenization import TextPairEncoder, ensure_pad_token
from lpa.model.loading import (
    check_drawable,
    load_model,
    new_model,
    open_classifier_config,
    positions_of,
)
from lpa.model.weights import open_weights


@dataclass(frozen=True)
class FineTuningConfig:
    """How a model is fine-tuned.

    Attributes:
        epochs: passes over the training examples.
        batch_size: examples per step.
        learning_rate: peak; linear warmup over 6% of the steps, then linear decay (as Devlin et al. 2019
            and Liu et al. 2019 fine-tune).
        weight_decay: of AdamW.
        max_length: most tokens of an example; at most what the model was made for.
        dtype: of the arithmetic: float32, bfloat16 or auto (see `resolve_dtype`); weights stay float32.
    """

    epochs: float = 3.0
    batch_size: int = 32
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    max_length: int = 128
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(
                    f"--{name.replace('_', '-')}: got {getattr(self, name)}; expected a number above 0"
                )
        if self.max_length < 4:
            raise UserError(f"--max-length: got {self.max_length}; expected at least 4")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"--weight-decay: got {self.weight_decay}; expected at least 0")


def fine_tune(
    directory: Path,
    task: Task,
    examples: dict[str, Examples],
    settings: FineTuningConfig,
    *,
    seed: int,
    from_scratch: bool = False,
    device: str = "auto",
    on_progress: StepCallback = lambda step, steps: None,
) -> dict[str, float]:
    """Train on `train` and score on each dev split.

    Args:
        directory: a Hugging Face directory of a causal language model.
        examples: of `load_examples`.
        seed: of the new head, the order of examples and dropout; of all weights if from scratch.
        from_scratch: begin with random weights of the same architecture.
        on_progress: called with steps done and steps in all.

    Returns:
        The task's metrics, nan where training diverged; those of MNLI's second dev split with the prefix
        `mismatched_`.

    Raises:
        UserError: the model cannot be loaded or cannot classify, or a value is bad.
    """
    from transformers import (
        DataCollatorWithPadding,
        PrinterCallback,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    target = resolve_device(device)
    config, tokenizer = open_classifier(directory, task, from_scratch=from_scratch)
    ensure_pad_token(tokenizer, config)
    config.pad_token_id = tokenizer.pad_token_id
    set_seed(seed)
    model = _build_classifier(directory, config, from_scratch=from_scratch)
    positions = positions_of(model.config)
    max_length = settings.max_length if positions is None else min(settings.max_length, positions)
    encoder = TextPairEncoder(tokenizer, max_length)
    encoded = {split: encoder.encode(split_examples) for split, split_examples in examples.items()}
    if encoder.num_truncated:
        warnings.warn(
            f"{task.title}: {encoder.num_truncated} examples are longer than "
            f"{max_length} tokens and were shortened",
            LPAWarning,
            stacklevel=2,
        )
    steps = math.ceil(math.ceil(len(encoded["train"]) / settings.batch_size) * settings.epochs)
    # The Trainer needs a directory, though it saves nothing.
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            warmup_steps=math.ceil(0.06 * steps),
            lr_scheduler_type="linear",
            train_sampling_strategy="group_by_length",
            seed=seed,
            data_seed=seed,
            use_cpu=target.type == "cpu",
            bf16=resolve_dtype(settings.dtype, target.type) == torch.bfloat16,
            save_strategy="no",
            logging_strategy="no",
            eval_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        _keep_to(target, arguments)
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=encoded["train"],
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[_progress(on_progress)],
        )
        trainer.remove_callback(PrinterCallback)  # progress is reported; figures are returned
        trainer.train()
        scores = {}
        for split, _ in task.dev:
            output = trainer.predict(encoded[split], ignore_keys=["past_key_values"])
            # Labels in the Trainer's order, which is by length.
            for name, value in score_logits(task, output.predictions, output.label_ids).items():
                scores[metric_prefix(split) + name] = value
    return scores


def open_classifier(directory: Path, task: Task, *, from_scratch: bool) -> tuple[Any, Any]:
    """The configuration and the tokenizer of a model that can be fine-tuned on a task.

    Raises:
        UserError: as `fine_tune`, of all that is known before weights are read.
    """
    from lpa.data.model_tokenizer import load_model_tokenizer

    config = open_classifier_config(
        directory,
        num_labels=len(task.labels) or 1,
        problem_type="single_label_classification" if task.labels else "regression",
        use_cache=False,  # it would come back with the logits of every batch
    )
    if from_scratch:
        check_drawable(directory, config)
    else:
        open_weights(directory)
    return config, load_model_tokenizer(directory, config)


def _build_classifier(directory: Path, config: Any, *, from_scratch: bool) -> Any:
    model: Any = (
        new_model(directory, config, classify=True)
        if from_scratch
        else load_model(directory, config=config, classify=True, dtype="float32")
    )
    embeddings = model.get_input_embeddings()
    # Stock classes start the token that pads at zero and give it no gradient. It may separate texts too.
    if getattr(embeddings, "padding_idx", None) is not None:
        embeddings.padding_idx = None
        if from_scratch:
            model._init_weights(embeddings)
    return model


def _keep_to(device: torch.device, arguments: Any) -> None:
    """Let the Trainer use one device; by itself it takes all visible GPUs, with a batch for each."""
    arguments._n_gpu = int(device.type == "cuda")
    arguments.__dict__["_setup_devices"] = device  # where it keeps what it has found
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _progress(on_progress: StepCallback) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            on_progress(state.global_step, state.max_steps)

    return Progress()
