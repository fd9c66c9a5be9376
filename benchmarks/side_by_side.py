"""What the scripts here share: runs that take turns, and a line that says where they ran."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path


def take_turns(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each run in each round.

    The runs take turns, in an order that turns around every round, so that whatever else the machine
    does slows all alike. On a machine that others use too, `time.process_time` and one thread leave out
    the time that others had.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-warm_up, rounds):
        for name in runs if number % 2 else reversed(list(runs)):
            start = clock()
            runs[name]()
            if number >= 0:
                seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> tuple[float, float]:
    """The median over rounds of one run's time over another's, and half the range of its middle half."""
    ratios = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
    if len(ratios) < 2:
        return ratios[0], 0.0
    first, middle, third = statistics.quantiles(ratios, n=4)
    return middle, (third - first) / 2


def machine() -> str:
    """Processor, threads and versions, in one line."""
    import torch

    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return (
        f"{names[0]}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, Python {platform.python_version()}, {versions}"
    )


def resident_peak() -> int:
    """The most bytes that this process has held."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024
