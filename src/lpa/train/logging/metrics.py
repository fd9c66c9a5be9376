"""The record of a run: JSON Lines, and the same numbers for other loggers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lpa.device import peak_flops, peak_memory_bytes
from lpa.model.compile import compile_seconds
from lpa.storage.files import write_text_atomic
from lpa.storage.run_directory import METRICS_FILE
from lpa.train.logging.loggers import check_loggers, open_logger
from lpa.train.logging.metrics_file import recover_metrics
from lpa.train.state import TrainState


def training_record(
    state: TrainState,
    *,
    lr: float,
    grad_norm: float,
    flops_per_token: int,
    device: torch.device,
    dtype: torch.dtype,
    processes: int,
    distilling: bool,
    phase_seconds: dict[str, float],
) -> dict[str, float]:
    """The numbers of the steps since the last record; the sums of the next begin at zero.

    Args:
        grad_norm: of the last step, before clipping.
        flops_per_token: forward and backward.
        distilling: whether the loss has a part from a teacher.
        phase_seconds: seconds by phase since the last record, in the main process.

    Returns:
        loss (mean, where a step was not skipped), distill_loss (where it has that part), lr,
        grad_norm, tokens, tokens_per_second and flops_per_second (of all processes, over elapsed time of
        training), mfu (fraction of the devices' peak, Chowdhery et al. 2022, appendix B; where the peak is
        known), train_seconds, peak_memory_bytes, <phase>_seconds, and compile_seconds (so far, where
        layers are compiled).
    """
    rate = state.pending_tokens / state.pending_seconds
    record = {
        "tokens": state.tokens,
        "lr": lr,
        "grad_norm": grad_norm,
        "tokens_per_second": rate,
        "flops_per_second": rate * flops_per_token,
        "train_seconds": state.train_seconds,
        "peak_memory_bytes": peak_memory_bytes(device),
        **{f"{name}_seconds": seconds for name, seconds in phase_seconds.items()},
    }
    if state.pending_steps:
        record["loss"] = state.pending_loss / state.pending_steps
        if distilling:
            record["distill_loss"] = state.pending_distill_loss / state.pending_steps
    compiling = compile_seconds()
    if compiling:
        record["compile_seconds"] = compiling
    peak = peak_flops(device, dtype)
    if peak is not None:
        record["mfu"] = rate * flops_per_token / (peak * processes)
    state.pending_loss, state.pending_distill_loss, state.pending_seconds = 0.0, 0.0, 0.0
    state.pending_steps, state.pending_tokens = 0, 0
    return record


class MetricsLog:
    """Appends records to `metrics.jsonl` and hands them to the loggers asked for.

    One process of a run has one.

    Args:
        run: the run directory.
        step: the step that the run resumes from; later records, left by a process that died after
            its last checkpoint, are dropped, since those steps are now done again.
        evaluation_pending: whether the evaluation of that step is still to be done; its record is
            dropped too.
        loggers: further places, some of `lpa.train.logging.loggers.LOGGERS`.
        project: what W&B and Trackio file the run under.
        config: what they show as its configuration.

    Raises:
        UserError: a logger is unknown or not installed; nothing is written then.
    """

    def __init__(
        self,
        run: Path,
        *,
        step: int = 0,
        evaluation_pending: bool = False,
        loggers: Sequence[str] = ("tensorboard",),
        project: str = "lpa",
        config: dict[str, Any] | None = None,
    ) -> None:
        check_loggers(loggers)
        kept = [record for record in recover_metrics(run) if record["step"] <= step]
        if evaluation_pending:
            kept = [r for r in kept if r["step"] < step or "validation_loss" not in r]
        write_text_atomic(run / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = open(run / METRICS_FILE, "a", encoding="utf-8")  # noqa: SIM115, closed by close()
        self._loggers = [
            open_logger(
                *(name, run),
                step=step,
                records=kept,
                evaluation_pending=evaluation_pending,
                project=project,
                config=config or {},
            )
            for name in dict.fromkeys(loggers)
        ]

    def write(self, step: int, **values: float) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for logger in self._loggers:
            logger.log(step, values)

    def close(self) -> None:
        self._file.close()
        for logger in self._loggers:
            logger.close()
