"""Timing things against each other on a machine that does other things as well."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def time_interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    on_tick: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each run in each round.

    The runs take turns, in an order that turns around every round, so that whatever else the machine
    does slows all alike. On a machine that others use too, `time.process_time` and one thread leave out
    the time that others had.

    Args:
        warm_up: rounds before those that count.
        on_tick: called after each run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(-warm_up, rounds):
        for name in functions if number % 2 else reversed(list(functions)):
            start = clock()
            functions[name]()
            if number >= 0:
                seconds[name].append(clock() - start)
            on_tick()
    return seconds


def median_ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> tuple[float, float]:
    """The median over rounds of one run's time over another's, and half the range of its middle half.

    The latter is nan where there is one round.
    """
    ratios = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
    if len(ratios) < 2:
        return ratios[0], math.nan
    first, middle, third = statistics.quantiles(ratios, n=4)
    return middle, (third - first) / 2


class PeakMemory:
    """The most memory held above what was held when the block began.

    Attributes:
        bytes: set when the block ends; None where the system does not tell (a CPU other than Linux's).
    """

    _RESET = Path("/proc/self/clear_refs")

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        elif self._RESET.exists():
            self._RESET.write_text("5")  # forget the peak so far (Linux, proc_pid_clear_refs)
            self._before = _proc_status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
        elif self._RESET.exists():
            self.bytes = _proc_status("VmHWM") - self._before


def _proc_status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024
