"""How long a run takes, and the most memory that it holds."""

import time

import torch

from lpa.device import peak_memory_bytes
from lpa.train.distributed.process_group import all_gather_objects
from lpa.train.state import TrainState


class RunClock:
    """Measures a run over all its sessions: from its start, and from each resume, to the next stop.

    Args:
        max_seconds: of wall time, after which the run should stop; None for no limit.
    """

    def __init__(self, max_seconds: float | None) -> None:
        self._max_seconds = max_seconds
        self._session_start = self._step_start = time.perf_counter()
        self._earlier_seconds = 0.0

    def resume(self, state: TrainState) -> None:
        """Continue from the wall time of a checkpoint."""
        self._earlier_seconds = state.wall_seconds

    def is_time_up(self) -> bool:
        return self._max_seconds is not None and self._wall_seconds() >= self._max_seconds

    def start_step(self) -> None:
        """What came before, such as an evaluation or a checkpoint, does not count as training."""
        self._step_start = time.perf_counter()

    def end_step(self, state: TrainState) -> None:
        """Add the time of a step, reading and waiting included."""
        seconds = time.perf_counter() - self._step_start
        state.pending_seconds += seconds
        state.train_seconds += seconds

    def update_totals(self, state: TrainState, device: torch.device) -> None:
        """Bring wall time and peak memory up to date; every process of the run calls it."""
        state.wall_seconds = self._wall_seconds()
        state.peak_memory_bytes = max(
            state.peak_memory_bytes, *all_gather_objects(peak_memory_bytes(device))
        )

    def _wall_seconds(self) -> float:
        return self._earlier_seconds + time.perf_counter() - self._session_start
