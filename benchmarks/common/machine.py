"""A line that says where a script ran, and the clock by which it measures."""

import argparse
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "CPU")


def describe_machine() -> str:
    """Processor, threads and versions, in one line."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return (
        f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, Python {platform.python_version()}, {versions}"
    )


def add_clock_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="one thread, and the time that it had a core: for a machine that others use too",
    )


def open_clock(options: argparse.Namespace) -> Callable[[], float]:
    """The clock asked for; prints the machine."""
    if options.processor_time:
        torch.set_num_threads(1)
    print(describe_machine() + (", processor time" if options.processor_time else ""))
    return time.process_time if options.processor_time else time.perf_counter
