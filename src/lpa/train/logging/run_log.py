"""All that a run reports while it trains: metrics for machines, and lines and a bar for people.

The lines go to the logger `lpa`, the bar to a terminal, the metrics where `lpa.train.logging.metrics`
says.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType

import torch

from lpa.device import training_flops
from lpa.display import console
from lpa.display.units import format_count, format_duration
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.cost import parameter_count
from lpa.scoring.perplexity import Perplexity
from lpa.train.config import RunConfig
from lpa.train.logging.metrics import MetricsLog
from lpa.train.state import TrainState

logger = logging.getLogger(__name__)


class RunLog(AbstractContextManager["RunLog"]):
    """Reports one run. Only the main process reports; the others have one that is silent.

    Args:
        config: the run.
        out: its directory.
        is_main: whether this process reports.
        show_bar: draw a bar on standard error, where that is a terminal.
    """

    def __init__(self, config: RunConfig, out: Path, *, is_main: bool, show_bar: bool) -> None:
        self._config = config
        self._out = out
        self._metrics: MetricsLog | None = None  # while the run trains
        self._steps = config.train.steps
        self._first_step = 0
        self._is_main = is_main
        self._description = f"training {config.model.placement}"
        self._shows_bar = is_main and show_bar and console.stderr.is_terminal
        self._display_context = console.progress_display(visible=self._shows_bar)
        self._display: console.Progress | None = None
        self._bar: console.TaskID | None = None
        self._start = time.perf_counter()

    def __enter__(self) -> "RunLog":
        self._display = self._display_context.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._display_context.__exit__(kind, error, trace)
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def start(
        self,
        state: TrainState,
        *,
        model_config: LPAConfig,
        device: torch.device,
        layout: str,
        processes: int,
    ) -> None:
        """Open the metrics, and say in five lines what the run is about to do.

        Args:
            state: where the run begins.
            layout: how the processes divide the work.
            processes: how many there are.
        """
        step = state.step
        self._first_step, self._start = step, time.perf_counter()
        if not self._is_main:
            return
        model, train, data = self._config.model, self._config.train, self._config.data
        self._metrics = MetricsLog(
            self._out,
            step=step,
            evaluation_pending=state.evaluation_pending,
            loggers=train.loggers,
            project=train.project,
            config=self._config.to_dict(),
        )
        name = str(model.from_) if model.from_ else model.preset
        tokens = train.batch_size * data.seq_len
        resumed = f", {step:,} of them done" if step else ""
        flops = self._config.training_flops_per_token(model_config) * tokens
        rate = processes * training_flops(device, getattr(torch, train.dtype))
        expected = format_duration(flops * (self._steps - step) / rate)
        for line in (
            f"model      {name}, placement {model_config.placement}, "
            f"{format_count(parameter_count(model_config))} parameters",
            f"device     {device}, {layout}",
            f"precision  {train.dtype}"
            + ("" if train.dtype == "float32" else ", weights and optimizer states in float32"),
            f"length     {self._steps:,} steps{resumed}; {format_count(tokens)} tokens each, "
            f"{format_count(self._steps * tokens)} in all; about {expected}",
            f"output     {self._out}",
        ):
            self.info(line)
            if self._shows_bar and not logger.isEnabledFor(logging.INFO):
                console.stderr.print(line, soft_wrap=True)
        self.step_done(step)

    def step_done(self, step: int) -> None:
        """Move the bar."""
        if self._shows_bar and self._display is not None:
            if self._bar is None:
                self._bar = self._display.add_task(
                    self._description, total=self._steps, completed=step, status=""
                )
            self._display.update(self._bar, completed=step)

    def metrics(self, step: int, record: Mapping[str, float]) -> None:
        """Report a record of the metrics (see `training_record`) and the time that is left."""
        self.write(step, **record)
        loss, rate = record.get("loss", math.nan), record["tokens_per_second"]
        if self._display is not None and self._bar is not None:
            self._display.update(self._bar, status=f"loss {loss:.3f}")
        self.info(
            f"step {step}/{self._steps}  loss {loss:.4f}  lr {record['lr']:.2e}  "
            f"grad norm {record['grad_norm']:.3f}  {rate:,.0f} tokens/s  "
            f"{format_duration(self._seconds_left(step))} left"
        )

    def validation(self, step: int, result: Perplexity) -> None:
        """Report an evaluation on the validation split."""
        self.write(step, validation_loss=result.loss, validation_perplexity=result.perplexity)
        self.info(
            f"step {step}/{self._steps}  validation loss {result.loss:.4f}  "
            f"perplexity {result.perplexity:,.2f}"
        )

    def write(self, step: int, **values: float) -> None:
        """Write numbers of a step to the metrics."""
        if self._metrics is not None:
            self._metrics.write(step, **values)

    def _seconds_left(self, step: int) -> float:
        """At the pace since this process began, evaluation and saving included."""
        done = step - self._first_step
        return (time.perf_counter() - self._start) / max(done, 1) * (self._steps - step)

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """Show work beside the training steps as a separate bar.

        Args:
            total: steps of it, where they are known.

        Yields:
            What to call before each of them.
        """
        display = self._display
        if display is None or self._bar is None:
            yield lambda: None
            return
        bar = display.add_task(name, total=total, status="")
        yield lambda: display.advance(bar)
        display.remove_task(bar)

    def info(self, line: str) -> None:
        """One line of the log."""
        if self._is_main:
            logger.info(line)
