"""What the scripts here share: a line that says where they ran."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def machine() -> str:
    """Processor, threads and versions, in one line."""
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
