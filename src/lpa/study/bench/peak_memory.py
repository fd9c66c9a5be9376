"""The peak memory of the first steps of models on a CPU, in a process that returns what they free.

Elsewhere a model takes the memory that an earlier one has freed, and so seems to need less.
`python -m lpa.study.bench.peak_memory TASK` prints the bytes; `TASK` and what is printed are JSON.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lpa.device import dtype_name, resolve_dtype
from lpa.errors import UserError
from lpa.model.configuration_lpa import LPAConfig
from lpa.study.bench.timing import PeakMemory
from lpa.study.bench.training_step import random_tokens, take_first_steps

# glibc returns freed memory of this many bytes at once to the system. Otherwise it adapts the number as a
# program runs, and what it keeps depends on where pieces happen to lie: a fifth of the peak at `nano`.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}


@dataclass
class _Task:
    configs: dict[str, dict[str, Any]]
    batch_size: int
    seq_len: int
    dtype: str
    compiled: bool
    threads: int


def cpu_peak_memory(
    configs: Mapping[str, LPAConfig],
    *,
    batch_size: int,
    seq_len: int,
    dtype: torch.dtype,
    compiled: bool,
) -> dict[str, int | None]:
    """Bytes that the first steps of each model hold at most, above what their process held before.

    None where the system does not tell (see `PeakMemory`).

    Raises:
        UserError: the process failed, as where there is not enough memory.
    """
    task = _Task(
        {name: config.to_diff_dict() for name, config in configs.items()},
        batch_size,
        seq_len,
        dtype_name(dtype),
        compiled,
        torch.get_num_threads(),
    )
    done = subprocess.run(
        [sys.executable, "-m", "lpa.study.bench.peak_memory", json.dumps(asdict(task))],
        env={**os.environ, **_ALLOCATOR},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no word"]
        raise UserError(
            f"peak memory: the process that measures it ended with exit code {done.returncode} ({said[-1]})"
        )
    found: dict[str, int | None] = json.loads(done.stdout)
    return found


def main() -> None:
    task = _Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    device = torch.device("cpu")
    dtype = resolve_dtype(task.dtype, device.type)
    configs = {name: LPAConfig(**fields) for name, fields in task.configs.items()}
    peaks: dict[str, int | None] = {}
    # The first one twice, as it also wakes up the libraries.
    for name in (next(iter(configs)), *configs):
        config = configs[name]
        tokens = random_tokens(config, task.batch_size, task.seq_len, device)
        with PeakMemory(device) as peak:
            kept = take_first_steps(config, tokens, dtype, task.compiled)
        del kept
        _return_freed_memory()
        peaks[name] = peak.bytes
    print(json.dumps(peaks))


def _return_freed_memory() -> None:
    """Give what small pieces held back to the system, where its library can."""
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


if __name__ == "__main__":
    main()
