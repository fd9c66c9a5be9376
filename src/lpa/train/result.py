"""How a run ended."""

import signal
from dataclasses import asdict, dataclass
from pathlib import Path

from lpa.display.units import format_bytes, format_count, format_duration, format_flops
from lpa.scoring.perplexity import ValidationPerplexity
from lpa.storage.files import write_json
from lpa.storage.records import Count, Finite, read_json
from lpa.storage.run_directory import RESULT_FILE
from lpa.train.state import TrainState


@dataclass
class RunResult:
    """The result of a finished run, written as `result.json`.

    Attributes:
        steps, tokens: trained.
        parameters: of the model.
        train_flops_per_token: forward and backward (see `lpa.model.cost`).
        tokens_per_second: tokens over train_seconds.
        train_seconds, wall_seconds, peak_memory_bytes: see `TrainState`.
        validation: on the whole validation split; None where the data has none.
        processes: that trained together.
        skipped_steps: without an update, as loss or gradient were not finite.
        best_step: the step with the lowest validation loss.
        peak_flops: FLOP/s that all devices together promise (see `lpa.device.peak_flops`);
            None where that is unknown.
    """

    steps: Count
    tokens: Count
    parameters: Count
    train_flops_per_token: Count
    tokens_per_second: Finite
    train_seconds: Finite
    wall_seconds: Finite
    peak_memory_bytes: Count
    validation: ValidationPerplexity | None
    processes: Count = 1
    skipped_steps: Count = 0
    best_step: Count | None = None
    peak_flops: Finite | None = None

    @classmethod
    def from_state(
        cls,
        state: TrainState,
        *,
        parameters: int,
        flops_per_token: int,
        peak_flops: float | None,
        processes: int,
        validation: ValidationPerplexity | None,
    ) -> "RunResult":
        """The result of a run that has made its last step.

        Args:
            peak_flops: of one device.
        """
        return cls(
            steps=state.step,
            tokens=state.tokens,
            parameters=parameters,
            train_flops_per_token=flops_per_token,
            tokens_per_second=state.tokens / state.train_seconds,
            train_seconds=state.train_seconds,
            wall_seconds=state.wall_seconds,
            peak_memory_bytes=state.peak_memory_bytes,
            validation=validation,
            peak_flops=None if peak_flops is None else peak_flops * processes,
            processes=processes,
            skipped_steps=state.skipped,
            best_step=state.best_step,
        )

    def save(self, run: Path) -> None:
        write_json(run / RESULT_FILE, asdict(self))

    @classmethod
    def load(cls, run: Path) -> "RunResult":
        """The result of a finished run.

        Raises:
            UserError: its file is damaged.
        """
        return read_json(run / RESULT_FILE, cls)


@dataclass(frozen=True)
class RunStopped:
    """A run that stopped before its last step, as requested, and left a checkpoint.

    Attributes:
        step: the last one done.
        reason: the field that said so.
    """

    step: int
    reason: str


def format_summary(result: RunResult, out: Path) -> str:
    """A finished run in one line.

    MFU is the fraction of the devices' peak that the model's matrix products reach (Chowdhery et al.
    2022, appendix B), over the time of the training steps; FLOP/s stand in where the peak is unknown.
    """
    flops = result.train_flops_per_token * result.tokens_per_second
    parts = [f"{result.steps:,} steps", f"{format_count(result.tokens)} tokens"]
    if result.skipped_steps:
        parts.append(f"{result.skipped_steps:,} of them skipped")
    if result.validation:
        parts.append(f"validation perplexity {result.validation.perplexity:,.2f}")
    parts += [
        f"{result.tokens_per_second:,.0f} tokens/s",
        f"MFU {flops / result.peak_flops:.1%}"
        if result.peak_flops
        else format_flops(flops, "FLOP/s"),
        f"peak memory {format_bytes(result.peak_memory_bytes)}",
        format_duration(result.wall_seconds),
    ]
    return f"{out}: {', '.join(parts)}"


class RunInterruptedError(Exception):
    """A signal ended a run, which left a checkpoint of this step.

    Attributes:
        from_launcher: whether torchrun sent it, which knows whether it ends or restarts.
    """

    def __init__(self, signal_number: int, step: int, *, from_launcher: bool = False) -> None:
        super().__init__(f"{signal.Signals(signal_number).name} at step {step}")
        self.signal_number = signal_number
        self.step = step
        self.from_launcher = from_launcher
