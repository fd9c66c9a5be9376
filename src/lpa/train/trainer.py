"""The training loop: one process, CPU or one GPU."""

import math
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from lpa import console
from lpa.data.dataset import TokenDataset, check_shards, split_tokens
from lpa.data.loader import sample_loader
from lpa.data.manifest import TOKENIZER_DIRECTORY, Manifest
from lpa.errors import UserError
from lpa.files import check_output, new_directory, write_text
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.cost import parameter_count, training_flops_per_token
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.train.checkpoint import (
    Progress,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from lpa.train.config import RunConfig, check_same
from lpa.train.evaluate import Perplexity, total_loss
from lpa.train.machine import peak_memory_bytes, pick_device
from lpa.train.metrics import MetricsLog
from lpa.train.optim import build_optimizer
from lpa.train.result import RESULT_FILE, RunInterruptedError, RunResult
from lpa.train.schedule import learning_rate

CONFIG_FILE = "config.yaml"
FINAL = "final"


def train(
    config: RunConfig, out: Path, *, resume: bool = False, overwrite: bool = False
) -> RunResult | None:
    """Train as `config` says and leave a run directory.

    SIGINT and SIGTERM end the run after the step in hand, with a checkpoint.

    Args:
        config: the run.
        out: its directory.
        resume: go on from the latest checkpoint in `out`; the result is bit for bit that of a run
            that was never stopped.
        overwrite: delete an earlier run in `out`.

    Returns:
        The result, or None where `train.stop_at` ended the run before its last step.

    Raises:
        RunInterruptedError: a signal ended it.
        UserError: bad input, named, before anything is written; or a loss that is not finite.
    """
    if resume:
        finished = (out / RESULT_FILE).exists()
        if not finished:
            latest_checkpoint(out)
        if not (out / CONFIG_FILE).is_file():
            raise UserError(f"--resume: {out} is not a run directory (no {CONFIG_FILE})")
        check_same((out / CONFIG_FILE).read_text(encoding="utf-8"), config)
        if finished:
            return RunResult.load(out)
    else:
        _check_new_run(out, overwrite)
    trainer = Trainer(config, out)
    if resume:
        trainer.load()
    else:
        if out.exists():
            shutil.rmtree(out)
        write_text(out / CONFIG_FILE, config.to_yaml())
    return trainer.run()


def _check_new_run(out: Path, overwrite: bool) -> None:
    if not overwrite and (out / CONFIG_FILE).exists():
        raise UserError(
            f"--out {out}: already holds a run; pass --resume to go on with it, "
            "--overwrite to delete it, or choose a new directory"
        )
    check_output(out, overwrite=overwrite, marker=CONFIG_FILE)


class Trainer:
    """A run in progress: model, optimizer, data and how far it has come.

    Building one checks all input and writes nothing.
    """

    def __init__(self, config: RunConfig, out: Path) -> None:
        self.config = config
        self.out = out
        self.device = pick_device(config.train.device)
        self.dtype = getattr(torch, config.train.dtype)
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        torch.manual_seed(config.train.seed)

        self.manifest = Manifest.load(config.data.path)
        self.data = TokenDataset(
            config.data.path,
            "train",
            context=config.data.context,
            seed=config.train.seed,
            separate_documents=config.data.separate_documents,
        )
        if config.data.verify:
            check_shards(config.data.path, "train")
        self.validation = None
        if "validation" in self.manifest.splits:
            self.validation = split_tokens(config.data.path, "validation")

        self.model_config: LPAConfig = config.model.build(
            vocab_size=self.manifest.vocab_size, context=config.data.context
        )
        self.model_config.eos_token_id = self.manifest.eos_token_id
        self.model = LPAForCausalLM(self.model_config).to(self.device).train()
        if config.train.compile:
            self.model.model.compile()
        self.optimizer = build_optimizer(self.model, config.optim)
        self.progress = Progress()
        self._loss_total = torch.zeros((), device=self.device)  # since the last record
        self._grad_norm = torch.zeros((), device=self.device)  # of the last step, before clipping
        self._session_start = time.perf_counter()
        self._earlier_seconds = 0.0

    @property
    def _data_sha256(self) -> str:
        """Stands for the tokens trained on."""
        return "+".join(shard.sha256 for shard in self.manifest.split("train").shards)

    def load(self) -> None:
        """Take up the latest checkpoint."""
        self.progress = load_checkpoint(
            self.out, self.model, self.optimizer, data_sha256=self._data_sha256
        )
        self._loss_total.fill_(self.progress.pending_loss)
        self._earlier_seconds = self.progress.wall_seconds

    def save(self) -> None:
        """Leave a checkpoint of this step."""
        self._measure()
        save_checkpoint(
            self.out,
            self.model,
            self.optimizer,
            self.progress,
            data_sha256=self._data_sha256,
            keep=self.config.checkpoint.keep,
        )

    def run(self) -> RunResult | None:
        """Train to the last step, or until stopped."""
        settings = self.config.train
        last = min(settings.steps, settings.stop_at or settings.steps)
        log = MetricsLog(self.out, step=self.progress.step)
        try:
            with console.progress() as display, stop_requests() as requests:
                bar = display.add_task(
                    f"training {self.config.model.placement}",
                    total=settings.steps,
                    completed=self.progress.step,
                    status="",
                )
                self._open_batches()
                self._start_clock()
                while self.progress.step < last and not requests:
                    self._step()
                    step = self.progress.step
                    done = step == settings.steps
                    # The last evaluation is that of the whole split, in _finish.
                    evaluating = self._due(settings.eval_every) and not done
                    saving = self._due(self.config.checkpoint.every) or (
                        not done and (bool(requests) or step == last)
                    )
                    recording = self._due(settings.log_every) or done
                    if recording or evaluating or saving:
                        self._stop_clock()
                        if recording:
                            record = self._record()
                            log.write(step, **record)
                            rate = f"{record['tokens_per_second']:,.0f} tokens/s"
                            display.update(bar, status=f"loss {record['loss']:.3f}  {rate}")
                        if evaluating:
                            self._evaluate(log, settings.eval_tokens)
                        if saving:
                            self.save()
                        self._start_clock()
                    display.update(bar, completed=step)
            if self.progress.step == settings.steps:
                return self._finish(log)
            if requests:
                raise RunInterruptedError(requests[0], self.progress.step)
            return None
        finally:
            log.close()

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0

    @property
    def _step_tokens(self) -> int:
        return self.config.train.batch_size * self.config.data.context

    def _start_clock(self) -> None:
        self._clock = time.perf_counter()

    def _stop_clock(self) -> None:
        """Bring loss and seconds since the last record up to date.

        Reading the loss waits for the work queued on a GPU.

        Raises:
            UserError: the loss is not finite.
        """
        progress = self.progress
        progress.pending_loss = self._loss_total.item()
        seconds = time.perf_counter() - self._clock
        progress.pending_seconds += seconds
        progress.train_seconds += seconds
        if not math.isfinite(progress.pending_loss):
            raise UserError(
                f"training: the loss is {progress.pending_loss} by step {progress.step}; lower "
                f"optim.lr (now {self.config.optim.lr}) or lengthen optim.warmup_steps; earlier "
                "checkpoints are kept"
            )

    def _step(self) -> Tensor:
        """One optimizer step; returns its loss."""
        settings = self.config.train
        step = self.progress.step + 1
        rate = learning_rate(self.config.optim, step, settings.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

        assert settings.micro_batch_size is not None
        total = torch.zeros((), device=self.device)
        for _ in range(settings.batch_size // settings.micro_batch_size):
            batch = self._next_batch()
            with torch.autocast(
                self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
            ):
                # Divided by the tokens of the whole step, the parts add up to its mean.
                loss = self.model(
                    **batch, num_items_in_batch=self._step_tokens, use_cache=False
                ).loss
            loss.backward()
            total += loss.detach()
        self._grad_norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.optim.clip
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step = step
        self.progress.tokens += self._step_tokens
        self.progress.pending_steps += 1
        self._loss_total += total
        return total

    def _open_batches(self) -> None:
        """Begin reading at the first sample of the next step."""
        settings = self.config.train
        assert settings.micro_batch_size is not None
        self._batches = sample_loader(
            self.data,
            batch_size=settings.micro_batch_size,
            start=self.progress.step * settings.batch_size,
            stop=settings.steps * settings.batch_size,
            workers=self.config.data.workers,
        )

    def _next_batch(self) -> dict[str, Tensor]:
        batch = next(self._batches)
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def _record(self) -> dict[str, float]:
        """The numbers of the steps since the last record; begins the next."""
        progress = self.progress
        record = {
            "tokens": progress.tokens,
            "loss": progress.pending_loss / progress.pending_steps,
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": self._grad_norm.item(),
            "tokens_per_second": progress.pending_steps
            * self._step_tokens
            / progress.pending_seconds,
            "train_seconds": progress.train_seconds,
        }
        progress.pending_loss, progress.pending_steps, progress.pending_seconds = 0.0, 0, 0.0
        self._loss_total.zero_()
        return record

    def _evaluate(self, log: MetricsLog, limit: int) -> Perplexity | None:
        """Perplexity on the validation split, on its first `limit` tokens if that is not 0."""
        if self.validation is None:
            return None
        split = self.manifest.split("validation")
        tokens = self.validation[: limit + 1] if limit else self.validation
        # Of a part of the split the amount of text is not known.
        whole = len(tokens) == split.tokens
        total = total_loss(
            self.model,
            tokens,
            context=self.config.data.context,
            batch_size=self.config.train.micro_batch_size or 1,
            device=self.device,
            dtype=self.dtype,
        )
        result = Perplexity.from_total(
            total,
            tokens=len(tokens) - 1,
            words=split.words if whole else 0,
            bytes=split.bytes if whole else 0,
        )
        log.write(
            self.progress.step,
            validation_loss=result.loss,
            validation_perplexity=result.perplexity,
        )
        return result

    def _finish(self, log: MetricsLog) -> RunResult:
        """Evaluate, write `final/` and `result.json`."""
        validation = self._evaluate(log, 0)
        self._measure()
        progress = self.progress
        result = RunResult(
            steps=progress.step,
            tokens=progress.tokens,
            parameters=parameter_count(self.model_config),
            train_flops_per_token=training_flops_per_token(
                self.model_config, self.config.data.context
            ),
            tokens_per_second=progress.tokens / progress.train_seconds,
            train_seconds=progress.train_seconds,
            wall_seconds=progress.wall_seconds,
            peak_memory_bytes=progress.peak_memory_bytes,
            validation=validation,
        )
        self.model.generation_config.eos_token_id = self.manifest.eos_token_id
        self.model.generation_config.pad_token_id = self.manifest.eos_token_id
        with new_directory(self.out / FINAL, overwrite=True) as directory:
            self.model.save_pretrained(directory)
            shutil.copytree(
                self.config.data.path / TOKENIZER_DIRECTORY, directory, dirs_exist_ok=True
            )
        result.save(self.out)
        return result

    def _measure(self) -> None:
        """Bring the clock and the memory mark of the run up to date."""
        session = time.perf_counter() - self._session_start
        self.progress.wall_seconds = self._earlier_seconds + session
        self.progress.peak_memory_bytes = max(
            self.progress.peak_memory_bytes, peak_memory_bytes(self.device)
        )


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second SIGINT interrupts as usual."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
