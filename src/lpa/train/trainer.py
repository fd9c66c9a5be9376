"""The training loop: the same on one process and on many."""

import math
import time
import warnings
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import torch

from lpa import console
from lpa.errors import LPAWarning, UserError
from lpa.model.cost import parameter_count, training_flops_per_token
from lpa.train import checkpoint_store as store
from lpa.train.agreement import StepOutcome, agree_on_step
from lpa.train.checkpoint import Checkpointer
from lpa.train.config import RunConfig
from lpa.train.distill import Distiller, plain_loss
from lpa.train.distributed import OtherRankFailedError, World, gather_objects, sum_over_ranks
from lpa.train.evaluate import validate
from lpa.train.export import export_model
from lpa.train.gradients import clip, total_norm
from lpa.train.inputs import MicroBatch, RunData, StepReader
from lpa.train.loggers import check_loggers
from lpa.train.machine import peak_flops, peak_memory_bytes
from lpa.train.metrics import MetricsLog, training_record
from lpa.train.nonfinite import bad_samples
from lpa.train.optim import build_optimizers
from lpa.train.parallel import plan_layout, split_loss, synchronize_gradients, without_training
from lpa.train.perplexity import Perplexity
from lpa.train.phases import PhaseClock
from lpa.train.progress import Progress
from lpa.train.result import RunInterruptedError, RunResult, RunStopped
from lpa.train.sampling import sample_text
from lpa.train.schedule import learning_rate
from lpa.train.signals import StopRequests
from lpa.train.starting import build_model, find_start, model_config

FINAL = "final"
BEST = "best"


class Trainer:
    """A run in progress: model, optimizers, data and how far it has come.

    Building one checks all input and writes nothing. Every process of a run has one, and all make the
    same decisions: what a process alone cannot know is agreed on once per step.
    """

    def __init__(
        self, config: RunConfig, out: Path, world: World | None = None, *, resumed: bool = False
    ) -> None:
        self.config = config
        self.out = out
        self.world = world or World.alone(config.train.device)
        self.layout = plan_layout(config.parallel, self.world.size)
        self.data_rank = self.layout.data_rank(self.world.rank)
        # Of the processes that see the same samples one counts.
        self._counts = self.world.rank % self.layout.tensor == 0
        self.micro_batch = config.train.micro_batch(self.layout.data)
        self.dtype = getattr(torch, config.train.dtype)
        check_loggers(config.train.loggers)
        if config.train.threads:
            torch.set_num_threads(config.train.threads)

        self.data = RunData(config.data, config.train.seed, self.world)
        self.start = find_start(config, out if resumed else None)
        self.model_config = model_config(config, self.data.manifest, self.start)
        self.distiller = Distiller.of(config, self.layout, self.world.device, self.dtype)
        self._loss = self.distiller.loss if self.distiller else plain_loss
        self.identity = self.data.identity | (self.distiller.identity if self.distiller else {})
        source = None if resumed else config.model.from_
        self.model = build_model(config, self.model_config, self.layout, self.world, source=source)
        if self.data_rank:  # dropout differs where samples do
            torch.manual_seed((config.train.seed + 1_000_003 * self.data_rank) % 2**63)
        self.optimizers = build_optimizers(self.model, config.optim)
        self.progress = Progress()
        self.checkpointer = Checkpointer(
            out,
            self.world,
            self.model,
            self.optimizers,
            random_stream=self.data_rank,
            keep=config.checkpoint.keep,
            asynchronous=config.checkpoint.asynchronous,
        )
        self._flops_per_token = training_flops_per_token(self.model_config, config.data.context)
        self.clock = PhaseClock()
        self._requests = StopRequests(self.world, self._time_is_up)
        self._log: MetricsLog | None = None  # while running, in the main process
        self._norm = 0.0  # of the last step
        self._session_start = time.perf_counter()
        self._earlier_seconds = 0.0

    def load(self, path: Path) -> dict[str, str]:
        """Take up a checkpoint; returns the identity of what it was trained on."""
        self.progress, identity = self.checkpointer.load(path)
        self._earlier_seconds = self.progress.wall_seconds
        return identity

    def save(self) -> None:
        """Leave a checkpoint of this step."""
        with self.clock("checkpoint"):
            self._measure()
            self.checkpointer.save(self.progress, self.identity)

    def run(self) -> RunResult | RunStopped:
        """Train to the last step, or until stopped.

        A signal that comes when there is nothing left to stop takes effect once all is written.

        Raises:
            RunInterruptedError: a signal ended the run, which left a checkpoint.
            UserError: a loss or gradient that is not finite; a checkpoint that could not be written.
        """
        settings = self.config.train
        last = min(settings.steps, settings.stop_at or settings.steps)
        with (
            self._requests,  # left last: a late signal may end the process
            self._open_log() as self._log,
            console.progress(visible=self.world.is_main) as self._display,
        ):
            self._bar = self._display.add_task(
                f"training {self.config.model.placement}",
                total=settings.steps,
                completed=self.progress.step,
                status="",
            )
            self._open_reader()
            if self.progress.evaluation_due and self.progress.step < settings.steps:
                self._evaluate(settings.eval_tokens)
            self._mark = time.perf_counter()
            while self.progress.step < last and not self._requests.agreed:
                self._step()
                self._between_steps(last)
            self.checkpointer.wait()
            result = self._finish() if self.progress.step == settings.steps else None
        if result is not None:
            return result
        if self._requests.signal:
            raise RunInterruptedError(self._requests.signal, self.progress.step)
        reason = "train.max_seconds" if self._requests.agreed else "train.stop_at"
        return RunStopped(self.progress.step, reason)

    # One step

    def _open_reader(self) -> None:
        """Begin reading at the first sample of the next step."""
        settings = self.config.train
        self._reader = StepReader(
            self.data.stream,
            self.world.device,
            start=self.progress.samples,
            steps=settings.steps - self.progress.step,
            batch_size=settings.batch_size,
            micro_batch=self.micro_batch,
            data_rank=self.data_rank,
            data_size=self.layout.data,
            workers=self.config.data.workers,
        )

    def _step(self) -> StepOutcome:
        """One optimizer step."""
        settings, progress = self.config.train, self.progress
        self.optimizers.set_learning_rate(
            learning_rate(self.config.optim, progress.step + 1, settings.steps)
        )
        with self.clock("data"):
            batches = self._reader.next_step()
            own = sum(batch.targets for batch in batches) if self._counts else 0
            tokens = int(sum_over_ranks([own])[0])
        with self.clock("forward_backward"):
            losses = self._accumulate(batches, tokens)
            norm = total_norm(self.model.parameters())
        outcome = agree_on_step(
            sum(losses),
            norm,
            distill_loss=self.distiller.take() if self.distiller else 0.0,
            world=self.world,
            counts=self._counts,
            save_failed=self.checkpointer.failed,
            requests=self._requests,
        )
        if outcome.save_failed:
            self.checkpointer.wait()
        with self.clock("optimizer"):
            if outcome.finite:
                clip(self.model.parameters(), outcome.norm, self.config.optim.clip)
                self.optimizers.step()
            self.optimizers.zero_grad()
        progress.step += 1
        progress.samples += settings.batch_size
        if outcome.finite:
            progress.tokens += tokens
            progress.pending_tokens += tokens
            progress.pending_loss += outcome.loss
            progress.pending_distill_loss += outcome.distill_loss
            progress.pending_steps += 1
            self._norm = outcome.norm
        else:
            self._refuse(batches, losses)
        return outcome

    def _accumulate(self, batches: list[MicroBatch], tokens: int) -> list[float]:
        """Add up the gradients of a step; returns what each micro-batch adds to its loss.

        Divided by the tokens of the whole step in all processes, the parts add up to its mean.
        """
        losses = []
        with split_loss(self.layout):
            for place, batch in enumerate(batches, start=1):
                synchronize_gradients(self.model, place == len(batches))
                with torch.autocast(
                    self.world.device.type,
                    dtype=self.dtype,
                    enabled=self.dtype != torch.float32,
                ):
                    loss = self._loss(self.model, batch.inputs, max(tokens, 1))
                loss.backward()
                losses.append(loss.detach())
        return torch.stack(losses).tolist()

    def _refuse(self, batches: list[MicroBatch], losses: list[float]) -> None:
        """Report a step whose loss or gradient is not finite; its gradients are gone already.

        Raises:
            UserError: unless such steps are skipped.
        """
        step, first = self.progress.step, self.progress.samples - self.config.train.batch_size
        where = bad_samples(batches, losses, self.world, range(first, self.progress.samples))
        if self.config.train.on_nonfinite == "skip":
            self.progress.skipped += 1
            if self.world.is_main:
                warnings.warn(f"step {step} skipped: {where}", LPAWarning, stacklevel=2)
            self._write(skipped_steps=self.progress.skipped)
            return
        if not self.world.is_main:
            raise OtherRankFailedError
        raise UserError(
            f"training: step {step}: {where}; the weights are as before this step, and earlier "
            f"checkpoints are kept; lower optim.lr (now {self.config.optim.lr}), lengthen "
            "optim.warmup_steps, or pass --train.on_nonfinite skip"
        )

    # Between steps

    def _between_steps(self, last: int) -> None:
        """Whatever is due after the step just done: records, evaluation, sample, checkpoint."""
        settings, progress = self.config.train, self.progress
        self._tick()
        done = progress.step == settings.steps
        stopping = self._requests.agreed or progress.step == last
        if self._due(settings.log_every) or done:
            self._record()
        # The last evaluation is that of the whole split, in _finish.
        if self._due(settings.eval_every) and not done:
            if self._requests.signal:
                progress.evaluation_due = True
            else:
                self._evaluate(settings.eval_tokens)
        if self._due(settings.sample_every) and not self._requests.signal:
            self._sample()
        # At the end too, whatever `checkpoint.every` says: what comes after it may fail.
        progress.evaluation_due |= done
        if self._due(self.config.checkpoint.every) or stopping or self._requests.agreed:
            self.save()
        self._display.update(self._bar, completed=progress.step)
        self._mark = time.perf_counter()

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0

    def _time_is_up(self) -> bool:
        limit = self.config.train.max_seconds
        return limit is not None and self._wall_seconds() >= limit

    def _wall_seconds(self) -> float:
        return self._earlier_seconds + time.perf_counter() - self._session_start

    def _tick(self) -> None:
        """Count the time since the last step, reading and waiting included, but not evaluation and saving."""
        seconds = time.perf_counter() - self._mark
        self.progress.pending_seconds += seconds
        self.progress.train_seconds += seconds

    def _record(self) -> None:
        """Write the numbers of the steps since the last record; begins the next."""
        record = training_record(
            self.progress,
            learning_rate=self.optimizers.learning_rate,
            gradient_norm=self._norm,
            flops_per_token=self._flops_per_token,
            device=self.world.device,
            dtype=self.dtype,
            processes=self.world.size,
            distills=self.distiller is not None,
            phases=self.clock.take(),
        )
        self._write(**record)
        rate = f"{record['tokens_per_second']:,.0f} tokens/s"
        self._display.update(self._bar, status=f"loss {record.get('loss', math.nan):.3f}  {rate}")

    def _evaluate(self, limit: int) -> Perplexity | None:
        """Perplexity on the validation split, on its first `limit` tokens if that is not 0.

        Returns:
            None where the data has no such split, or a signal came first: the run owes it then.
        """
        progress = self.progress
        if self.data.validation is None:
            progress.evaluation_due = False
            return None
        with self.clock("evaluation"), without_training(self.model, self.layout):
            result = validate(
                self.model,
                self.data.validation[: limit + 1] if limit else self.data.validation,
                self.data.manifest.split("validation"),
                context=self.config.data.context,
                batch_size=self.micro_batch,
                device=self.world.device,
                dtype=self.dtype,
                share=(self.data_rank, self.layout.data),
                counts=self._counts,
                stop=self._requests.ask,
            )
        progress.evaluation_due = result is None
        if result is None:
            return None
        self._write(validation_loss=result.loss, validation_perplexity=result.perplexity)
        if progress.best_loss is None or result.loss < progress.best_loss:
            progress.best_loss, progress.best_step = result.loss, progress.step
            if self.config.checkpoint.keep_best:
                self._export(BEST, required=False)
        return result

    def _sample(self) -> None:
        with self.clock("sampling"), without_training(self.model, self.layout):
            sample_text(
                self.model, self.config, self.out, self.progress.step, write=self.world.is_main
            )

    # The end

    def _finish(self) -> RunResult | None:
        """Evaluate, write `final/` and `result.json`; None where a signal came during the evaluation.

        The checkpoint of the last step is there already. It goes where no checkpoints were asked for.
        """
        validation = self._evaluate(0)
        if self.progress.evaluation_due:
            return None
        self._measure()
        result = RunResult.of(
            self.progress,
            parameters=parameter_count(self.model_config),
            flops_per_token=self._flops_per_token,
            peak_flops=peak_flops(self.world.device, self.dtype),
            processes=self.world.size,
            validation=validation,
        )
        self._export(FINAL)
        if self.world.is_main:
            result.save(self.out)
            if not self.config.checkpoint.every:
                store.remove_all(self.out)
        return result

    def _export(self, name: str, *, required: bool = True) -> None:
        export_model(
            self.model,
            self.model_config,
            self.config.data.path,
            self.out / name,
            self.world,
            required=required,
        )

    def _measure(self) -> None:
        """Bring the clock and the memory mark of the run up to date."""
        self.progress.wall_seconds = self._wall_seconds()
        self.progress.peak_memory_bytes = max(
            self.progress.peak_memory_bytes,
            *gather_objects(peak_memory_bytes(self.world.device)),
        )

    def _open_log(self) -> AbstractContextManager[MetricsLog | None]:
        if not self.world.is_main:
            return nullcontext()
        settings = self.config.train
        return closing(
            MetricsLog(
                self.out,
                step=self.progress.step,
                evaluation_due=self.progress.evaluation_due,
                loggers=settings.loggers,
                project=settings.project,
                config=self.config.to_dict(),
            )
        )

    def _write(self, **values: float) -> None:
        if self._log is not None:
            self._log.write(self.progress.step, **values)
