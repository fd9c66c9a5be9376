"""Where the numbers of a run go beside `metrics.jsonl`: TensorBoard, Weights & Biases, Trackio.

Each is imported only when it is asked for.
"""

import json
import os
import secrets
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from lpa.errors import LPAWarning, UserError, expected_one_of
from lpa.storage.files import write_text_atomic
from lpa.storage.records import read_json
from lpa.storage.run_directory import LOGGER_IDS_FILE

LOGGERS = ("tensorboard", "wandb", "trackio")


# W&B retries for minutes, or without end, where there is no network: training does not wait that long.
_CONNECT_SECONDS = 30
_FINISH_SECONDS = 60


class Logger(Protocol):
    """What takes the numbers of a step."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def check_loggers(names: Sequence[str]) -> None:
    """Whether these loggers exist and are installed.

    Raises:
        UserError: naming what is accepted, or the extra to install.
    """
    for name in names:
        if name not in LOGGERS:
            raise UserError(f"train.loggers: got {name!r}; {expected_one_of(name, LOGGERS)}")
        spec = find_spec(name)
        # A folder of that name in the working directory, as W&B leaves one, has no origin.
        if spec is None or spec.origin is None:
            raise UserError(
                f"train.loggers: {name} is not installed; install it: pip install 'lpa[{name}]'"
            )


def open_logger(
    name: str,
    run: Path,
    *,
    step: int,
    records: Sequence[Mapping[str, Any]],
    evaluation_pending: bool,
    project: str,
    config: dict[str, Any],
) -> Logger:
    """Begin to log, or go on in the same run of the service where `run` knows its id.

    Args:
        name: one of `LOGGERS`, installed.
        run: the run directory.
        step: the step that the run resumes from.
        records: of the steps up to there, for a service that lacks some.
        evaluation_pending: whether the evaluation of that step is still to come.
        project: what W&B and Trackio file the run under.
        config: what they show as its configuration.
    """
    if name == "tensorboard":
        return _GuardedLogger(name, lambda: _TensorBoard(run, step))
    kind = _WandB if name == "wandb" else _Trackio
    service = _GuardedLogger(
        name,
        lambda: kind(run, _tracking_id(run, name), project, config),
        evaluation_pending=evaluation_pending,
    )
    for record in records:
        service.log(record["step"], {key: x for key, x in record.items() if key != "step"})
    return service


def _tracking_id(run: Path, name: str) -> str:
    """The identifier by which a service recognizes this run, kept in the run directory."""
    path = run / LOGGER_IDS_FILE
    ids = read_json(path, dict[str, str]) if path.exists() else {}
    if name not in ids:
        ids[name] = secrets.token_hex(4)
        write_text_atomic(path, json.dumps(ids) + "\n")
    return ids[name]


class _GuardedLogger:
    """A logger kept from ending or repeating anything.

    Neither W&B nor Trackio takes steps back, and both send in the background, so that a killed process
    leaves them with fewer or more steps than its last checkpoint. What they hold is not sent again, what
    they lack is; an evaluation that a run still owes to a step goes with the next one there. Whatever goes
    wrong in a logger is said once; training continues without it.

    Args:
        name: one of `LOGGERS`.
        connect: makes the logger.
        evaluation_pending: whether the run owes an evaluation to the step that it resumes from.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], "_TensorBoard | _WandB | _Trackio"],
        *,
        evaluation_pending: bool = False,
    ) -> None:
        self._name = name
        self._evaluation_pending = evaluation_pending
        self._logger: _TensorBoard | _WandB | _Trackio | None = None
        try:
            self._logger = connect()
        except Exception as error:  # of another package: no list of them is complete
            self._give_up(error)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._logger is None:
            return
        if step <= self._logger.last_step:
            if not (self._evaluation_pending and "validation_loss" in values):
                return
            self._evaluation_pending = False
            step = self._logger.last_step + 1
        try:
            self._logger.log(step, values)
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        if self._logger is None:
            return
        try:
            self._logger.close()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._logger = None
        _warn(
            f"{self._name}: {error}; the run continues without it, metrics.jsonl holds its numbers"
        )


class _TensorBoard:
    """An event file, in which the steps after `step` no longer count.

    It is written at once. The writers of torch and TensorBoard have a thread, which prints its errors.

    Attributes:
        last_step: before all steps, as they may be logged again.
    """

    last_step = -1

    def __init__(self, run: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        name = f"{seconds:010d}.{socket.gethostname()}.{os.getpid()}.{nanoseconds:09d}"
        # Closed by close().
        self._file = open(run / f"events.out.tfevents.{name}", "xb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        first = step + 1 if step else None
        self._write(Event(step=first, file_version="brain.Event:2"))
        if first is not None:
            self._write(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        try:
            self._records.write(event.SerializeToString())
            self._file.flush()
        except OSError:
            self._file.raw.close()  # or Python writes the rest once more, and prints that it cannot
            raise

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
        self._write(Event(step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        self._file.close()


class _WandB:
    """A run of Weights & Biases; without a network or a key its files stay in `RUN/wandb`.

    Offline it cannot know what was sent, so each process writes the run from its beginning.

    Attributes:
        last_step: the last step that the service has.
    """

    def __init__(self, run: Path, tracking_id: str, project: str, config: dict[str, Any]) -> None:
        import wandb

        def begin(**mode: Any) -> Any:
            return wandb.init(
                project=project,
                name=run.resolve().name,
                id=tracking_id,
                resume="allow",
                dir=str(run),
                config=config,
                settings=wandb.Settings(
                    silent=True,
                    console="off",  # the terminal is not the run's record
                    init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", _CONNECT_SECONDS)),
                    finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", _FINISH_SECONDS)),
                ),
                **mode,
            )

        try:
            self._run = begin()
        except wandb.Error as error:
            _warn(
                f"wandb: {error}; logging offline, "
                f"`wandb sync {run}/wandb/offline-run-*` sends it later"
            )
            wandb.teardown()  # its service still holds the run that failed
            self._run = begin(mode="offline")
        self.last_step = self._run.starting_step - 1

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A run of Trackio, in its local database unless its own settings name a server.

    Attributes:
        last_step: the last step that the service has.
    """

    def __init__(self, run: Path, tracking_id: str, project: str, config: dict[str, Any]) -> None:
        import trackio

        # What it prints would end up in the output of `--json`.
        with redirect_stdout(None):
            self._run = trackio.init(
                project=project,
                name=f"{run.resolve().name}-{tracking_id}",  # by which it knows a run again
                resume="allow",
                config=config,
                embed=False,
            )
        self.last_step = self._run._next_step - 1  # which it has no public name for

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        import trackio

        with redirect_stdout(None):
            trackio.finish()  # the run's own would be repeated, and printed about, at exit


def _warn(message: str) -> None:
    warnings.warn(" ".join(message.split()), LPAWarning, stacklevel=2)
