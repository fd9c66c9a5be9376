"""The training loop: the same on one process and on many."""

from pathlib import Path

import torch
from torch import Tensor

from lpa.data.tokenizer import load_data_tokenizer
from lpa.device import dtype_name, peak_flops, resolve_dtype
from lpa.model.cost import parameter_count
from lpa.scoring.perplexity import ValidationPerplexity
from lpa.storage.run_directory import BEST_DIRECTORY, FINAL_DIRECTORY
from lpa.train.batches import BatchReader, MicroBatch, TrainingData
from lpa.train.checkpoint import store
from lpa.train.checkpoint.best_model import BestEvaluation
from lpa.train.checkpoint.checkpointer import Checkpointer
from lpa.train.checkpoint.export import export_model
from lpa.train.checkpoint.run_card import run_card
from lpa.train.config import RunConfig
from lpa.train.distillation import Distiller, cross_entropy_loss
from lpa.train.distributed.parallelize import (
    inference_context,
    loss_parallel_context,
    prepare_pass,
    resolve_layout,
)
from lpa.train.distributed.process_group import World, all_reduce_sum, run_on_all_ranks
from lpa.train.distributed.step_sync import StepStats, sync_step
from lpa.train.distributed.stop_signals import StopRequests
from lpa.train.init_weights import build_model, find_initial_weights, resolve_model_config
from lpa.train.logging.loggers import check_loggers
from lpa.train.logging.metrics import training_record
from lpa.train.logging.nonfinite import skip_or_refuse
from lpa.train.logging.run_clock import RunClock
from lpa.train.logging.run_log import RunLog
from lpa.train.logging.samples import sample_text
from lpa.train.logging.timers import PhaseTimer
from lpa.train.optim.grad_clip import clip_grad_norm, square_grad_norm
from lpa.train.optim.lr_schedule import lr_at_step
from lpa.train.optim.optimizers import build_optimizers
from lpa.train.result import RunInterruptedError, RunResult, RunStopped
from lpa.train.state import TrainState
from lpa.train.validation import validate


class Trainer:
    """A run in progress: model, optimizers, data and how far it has come.

    Building one checks all input and writes nothing. Every process of a run has one, and all make the
    same decisions: what a process alone cannot know is agreed on once per step.

    Args:
        config: the run.
        out: its directory.
        world: this process among those that train; by default it is alone.
        resumed: whether a checkpoint will be loaded, so that no other weights are read.
        show_bar: draw a bar on standard error, where that is a terminal.
    """

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        world: World | None = None,
        *,
        resumed: bool = False,
        show_bar: bool = False,
    ) -> None:
        self._clock = RunClock(config.train.max_seconds)  # first, so that all that follows counts
        self.out = out
        self.world = world or World.single_process(config.train.device)
        self.dtype = resolve_dtype(config.train.dtype, self.world.device.type)
        self.config = config = config.with_dtype(dtype_name(self.dtype))
        self.layout = run_on_all_ranks(lambda: resolve_layout(config.parallel, self.world.size))
        self.dp_rank = self.layout.dp_rank(self.world.rank)
        # Of the processes that see the same samples one counts.
        self._is_counted = self.world.rank % self.layout.tensor == 0
        self.micro_batch_size = run_on_all_ranks(
            lambda: config.train.resolve_micro_batch_size(self.layout.data_parallel_size)
        )
        run_on_all_ranks(lambda: check_loggers(config.train.loggers))
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        torch.set_float32_matmul_precision(config.train.matmul_precision or "highest")

        self.data = TrainingData(config.data, config.train.seed, self.world)
        if config.checkpoint.keep_best:
            run_on_all_ranks(lambda: self.data.require_validation("checkpoint.keep_best"))
        self.initial_weights = run_on_all_ranks(
            lambda: find_initial_weights(config, out if resumed else None)
        )
        self.model_config = run_on_all_ranks(
            lambda: resolve_model_config(config, self.data.manifest, self.initial_weights)
        )
        self.distiller = run_on_all_ranks(
            lambda: Distiller.from_run_config(
                config, self.data.manifest, self.layout, self.world.device, self.dtype
            )
        )
        self._compute_loss = self.distiller.loss if self.distiller else cross_entropy_loss
        self.fingerprints = self.data.fingerprints | (
            self.distiller.fingerprints if self.distiller else {}
        )
        source = None if resumed else config.model.from_
        self.model = build_model(config, self.model_config, self.layout, self.world, source=source)
        if self.dp_rank:  # dropout differs where samples do
            torch.manual_seed((config.train.seed + 1_000_003 * self.dp_rank) % 2**63)
        self.optimizers = run_on_all_ranks(
            lambda: build_optimizers(self.model, config.optim, self.dtype)
        )
        self.state = TrainState()
        self.checkpointer = Checkpointer(
            out,
            self.world,
            self.model,
            self.optimizers,
            rng_stream=self.dp_rank,
            keep_latest_k=config.checkpoint.keep_latest_k,
            async_save=config.checkpoint.async_save,
        )
        self._flops_per_token = config.training_flops_per_token(self.model_config)
        self.timer = PhaseTimer()
        self._stop_requests = StopRequests(self.world, self._clock.is_time_up)
        self._run_log = RunLog(config, out, is_main=self.world.is_main, show_bar=show_bar)
        self._reader: BatchReader | None = None  # from the first step on
        self._next_targets: int | None = None  # likewise
        self._grad_norm = 0.0  # of the last step

    def load(self, path: Path) -> None:
        """Take up a checkpoint that is intact (`find_intact`)."""
        self.state = self.checkpointer.load(path)
        self._clock.resume(self.state)
        self._reader = None

    def save(self) -> None:
        """Leave a checkpoint of this step."""
        with self.timer("checkpoint"), self._run_log.phase("saving a checkpoint"):
            self._clock.update_totals(self.state, self.world.device)
            self.checkpointer.save(self.state, self.fingerprints)
        self._run_log.info(f"step {self.state.step}  checkpoint saved below {self.out}")

    def run(self) -> RunResult | RunStopped:
        """Train to the last step, or until stopped.

        A signal that comes when there is nothing left to stop takes effect once all is written.

        Raises:
            RunInterruptedError: a signal ended the run, which left a checkpoint.
            UserError: a loss or gradient that is not finite; a checkpoint that could not be written.
        """
        settings = self.config.train
        last = min(settings.steps, settings.stop_at or settings.steps)
        may_be_best = self.config.checkpoint.keep_best and not settings.eval_tokens
        if self.state.step < settings.steps and not self._is_due(settings.eval_every):
            self.state.evaluation_pending &= may_be_best  # of an end that is one no more
        with (
            self._stop_requests,  # left last: a late signal may end the process
            self._run_log,
        ):
            self._run_log.start(
                self.state,
                model_config=self.model_config,
                device=self.world.device,
                layout=str(self.layout),
                processes=self.world.size,
            )
            self._reader = None
            if self.state.evaluation_pending and self.state.step < settings.steps:
                self.evaluate(settings.eval_tokens)
            if self.state.sample_pending and settings.sample_every:
                self.sample()
            self._clock.start_step()
            while self.state.step < last and not self._stop_requests.should_stop:
                self.train_step()
                self._after_step(last)
            self.checkpointer.wait()
            result = self._finish_run() if self.state.step == settings.steps else None
        if result is not None:
            return result
        if self._stop_requests.signal:
            raise RunInterruptedError(
                self._stop_requests.signal,
                self.state.step,
                from_launcher=self._stop_requests.is_from_launcher(),
            )
        reason = "train.max_seconds" if self._stop_requests.should_stop else "train.stop_at"
        return RunStopped(self.state.step, reason)

    @property
    def _batches(self) -> BatchReader:
        """A reader that begins at the first sample of the next step."""
        if self._reader is None:
            settings = self.config.train
            self._next_targets = None
            self._reader = BatchReader(
                self.data.dataset,
                self.world.device,
                start=self.state.samples,
                steps=settings.steps - self.state.step,
                batch_size=settings.batch_size,
                micro_batch_size=self.micro_batch_size,
                dp_rank=self.dp_rank,
                dp_size=self.layout.data_parallel_size,
                num_workers=self.config.data.num_workers,
            )
        return self._reader

    def next_batches(self) -> list[MicroBatch]:
        """This process's micro-batches of the next step, in the order of the stream of samples."""
        return self._batches.next_step()

    def train_step(self) -> StepStats:
        """Do one optimizer step on the next samples; every process of the run calls it.

        Returns:
            Loss (mean over the tokens of the step, in nats), gradient norm before clipping, and whether
            both are finite numbers; the same in every process.

        Raises:
            UserError: a loss or gradient that is not finite, unless `train.on_nonfinite` skips them.
            StopIteration: after the last step of the run.
        """
        settings, optim, state = self.config.train, self.config.optim, self.state
        self.optimizers.set_lr(lr_at_step(optim, state.step + 1, settings.steps, state.skipped))
        with self.timer("data"):
            batches = self.next_batches()
            tokens = self._count_targets(batches)
        with self.timer("forward_backward"):
            losses = self.forward_backward(batches, tokens)
            with self.timer("data"):  # while a GPU works on what was asked of it
                next_targets = self._batches.prefetch_step()
            outcome = sync_step(
                losses.double().sum(),
                square_grad_norm(self.model.parameters()),
                distill_loss=self.distiller.pop_divergence() if self.distiller else None,
                is_counted=self._is_counted,
                checkpoint_failed=self.checkpointer.failed,
                next_targets=next_targets,
                stop_requests=self._stop_requests,
            )
        self._next_targets = outcome.next_targets
        if outcome.checkpoint_failed:
            self.checkpointer.wait()
        with self.timer("optimizer"):
            if outcome.is_finite:
                clip_grad_norm(self.model.parameters(), outcome.grad_norm, optim.max_grad_norm)
                self.optimizers.step()
            self.optimizers.zero_grad()
        state.step += 1
        state.samples += settings.batch_size
        if outcome.is_finite:
            state.tokens += tokens
            state.pending_tokens += tokens
            state.pending_loss += outcome.loss
            state.pending_distill_loss += outcome.distill_loss
            state.pending_steps += 1
            self._grad_norm = outcome.grad_norm
        else:
            if settings.on_nonfinite == "stop":
                self.checkpointer.wait()  # so that the run can resume from what is being saved
            skip_or_refuse(settings, optim, state, batches, losses.tolist(), self.world)
            self._run_log.write(state.step, skipped_steps=state.skipped)
        return outcome

    def _count_targets(self, batches: list[MicroBatch]) -> int:
        """Tokens that count in the loss of a step of all processes, mostly known since the step before."""
        if self._next_targets is None:
            counted = batches if self._is_counted else []
            return int(all_reduce_sum([sum(batch.num_targets for batch in counted)])[0])
        return self._next_targets

    def forward_backward(self, batches: list[MicroBatch], tokens: int) -> Tensor:
        """Add up the gradients of a step; returns what each micro-batch adds to its loss, on the device.

        Args:
            batches: of this process.
            tokens: of the whole step in all processes. Divided by them, the parts add up to its mean.
        """
        losses = []
        with loss_parallel_context(self.layout):
            for number, batch in enumerate(batches, start=1):
                prepare_pass(
                    self.model,
                    is_last=number == len(batches),
                    sync_each_batch=self.config.parallel.sync_each_batch,
                )
                with self._autocast():
                    loss = self._compute_loss(self.model, batch.inputs, max(tokens, 1))
                loss.backward()
                losses.append(loss.detach())
        return torch.stack(losses)

    def _autocast(self) -> torch.autocast:
        """Within it products are of `train.dtype`."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.world.device.type, dtype=self.dtype, enabled=enabled)

    # Between steps

    def _after_step(self, last: int) -> None:
        """Whatever is due after the step just done: records, evaluation, sample, checkpoint."""
        settings, state = self.config.train, self.state
        self._clock.end_step(state)
        is_done = state.step == settings.steps
        stopping = self._stop_requests.should_stop or state.step == last
        if self._is_due(settings.log_every) or is_done:
            self._log_metrics()
        # The last evaluation is that of the whole split, in `_finish_run`.
        if self._is_due(settings.eval_every) and not is_done:
            if self._stop_requests.signal:
                state.evaluation_pending = True
            else:
                self.evaluate(settings.eval_tokens)
        state.sample_pending = self._is_due(settings.sample_every)
        if state.sample_pending and not self._stop_requests.signal:
            self.sample()
        # At the end too, whatever `checkpoint.every` says: what comes after it may fail.
        state.evaluation_pending |= is_done
        if (
            self._is_due(self.config.checkpoint.every)
            or stopping
            or self._stop_requests.should_stop
        ):
            self.save()
        self._run_log.step_done(state.step)
        self._clock.start_step()

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.state.step % every == 0

    def _log_metrics(self) -> None:
        """Write the numbers of the steps since the last record; begins the next."""
        record = training_record(
            self.state,
            lr=self.optimizers.lr,
            grad_norm=self._grad_norm,
            flops_per_token=self._flops_per_token,
            device=self.world.device,
            dtype=self.dtype,
            processes=self.world.size,
            distilling=self.distiller is not None,
            phase_seconds=self.timer.pop(),
        )
        self._run_log.metrics(self.state.step, record)

    def evaluate(self, limit: int = 0) -> ValidationPerplexity | None:
        """Perplexity on the validation split, on its first `limit` tokens if that is not 0.

        Returns:
            None where the data has no such split, or a signal came first: the run owes it then.
        """
        state = self.state
        if self.data.validation is None:
            state.evaluation_pending = False
            return None
        tokens = self.data.validation[: limit + 1] if limit else self.data.validation
        per_batch = self.config.data.seq_len * self.micro_batch_size
        batches = -(-len(tokens) // (per_batch * self.layout.data_parallel_size))
        with (
            self.timer("evaluation"),
            self._run_log.phase("evaluating", batches) as advance,
            inference_context(self.model, self.layout),
        ):
            result = validate(
                self.model,
                tokens,
                self.data.manifest.split("validation"),
                seq_len=self.config.data.seq_len,
                batch_size=self.micro_batch_size,
                device=self.world.device,
                dtype=self.dtype,
                rank_and_size=(self.dp_rank, self.layout.data_parallel_size),
                is_counted=self._is_counted,
                eos_token_id=self.data.document_end,
                should_stop=lambda: bool(advance() or self._stop_requests.poll()),
            )
        state.evaluation_pending = result is None
        if result is None:
            return None
        self._run_log.validation(state.step, result)
        if state.is_best(result.loss, limit, self.config.train.eval_tokens):
            keeps = self.config.checkpoint.keep_best
            if not keeps or self.export(BEST_DIRECTORY, result):
                state.set_best(result.loss, limit, self.data.validation_fingerprint)
        return result

    def sample(self) -> None:
        """Continue the prompt and keep the text, on all processes together."""
        with (
            self.timer("sampling"),
            inference_context(self.model, self.layout),
            self._autocast(),
        ):
            data, manifest = self.config.data.path, self.data.manifest
            tokenizer = run_on_all_ranks(lambda: load_data_tokenizer(data, manifest))
            step, write = self.state.step, self.world.is_main
            sample_text(self.model, tokenizer, self.config, self.out, step, write=write)
        self.state.sample_pending = False

    # The end

    def _finish_run(self) -> RunResult | None:
        """Evaluate, write `final/` and `result.json`; None where a signal came before that was done.

        The checkpoint of the last step is there already. It is deleted where no checkpoints were asked for.
        """
        validation = self.evaluate(0)
        if self.state.evaluation_pending or self._stop_requests.signal:
            return None
        self._clock.update_totals(self.state, self.world.device)
        result = RunResult.from_state(
            self.state,
            parameters=parameter_count(self.model_config),
            flops_per_token=self._flops_per_token,
            peak_flops=peak_flops(self.world.device, self.dtype),
            processes=self.world.size,
            validation=validation,
        )
        with self._run_log.phase("saving the model"):
            self.export(FINAL_DIRECTORY, validation)
        if self.world.is_main:
            result.save(self.out)
            if not self.config.checkpoint.every:
                store.remove_all(self.out)
        self._run_log.info(f"finished: the model is in {self.out / FINAL_DIRECTORY}")
        return result

    def export(self, name: str, validation: ValidationPerplexity | None) -> bool:
        """Write the model as it is now, with what it scored, to a directory in the run's (`export_model`)."""
        card = run_card(self.config, self.model_config, self.data.manifest, self.state, validation)
        data, out = self.config.data.path, self.out / name
        best = None
        if name == BEST_DIRECTORY and validation:
            best = BestEvaluation(self.state.step, validation.loss)
        return export_model(
            *(self.model, self.model_config, data, self.data.manifest, out, self.world, card),
            generation=self.initial_weights.generation if self.initial_weights else {},
            best=best,
        )
