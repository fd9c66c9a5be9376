"""Where the time of a run goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseTimer:
    """Adds up real elapsed seconds by phase.

    A phase within a phase pauses the outer one, so that no second counts twice and the phases add up
    to the time spent in any. On a GPU, work is queued: a phase holds the wait for it only if it waits.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._active: list[str] = []
        self._last_change = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the body's time toward `phase`, also if it raises."""
        self._accumulate()
        self._active.append(phase)
        try:
            yield
        finally:
            self._accumulate()
            self._active.pop()

    def pop(self) -> dict[str, float]:
        """The seconds of each phase since the last call; phases still open go on from here."""
        self._accumulate()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _accumulate(self) -> None:
        """Count the time since the last change of phase toward the innermost open one."""
        now = time.perf_counter()
        if self._active:
            phase = self._active[-1]
            self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last_change
        self._last_change = now
